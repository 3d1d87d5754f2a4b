#!/usr/bin/python3 -IS
# SPDX-License-Identifier: Apache-2.0
"""What mounter.c does for ``mount`` and ``umount``, through the C library and ctypes."""

import ctypes
import errno
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mount.argtypes = (
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p,
)  # fmt: skip
LIBC.umount2.argtypes = (ctypes.c_void_p, ctypes.c_int)
LIBC.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
LIBC.mmap.restype = ctypes.c_size_t
LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
PROT_READ_WRITE = 3
MAP_PRIVATE_ANONYMOUS = 0x22
POINTERS = {"NULL": None, "BAD": 0x10, "KERNEL": 0xFFFF888000000000, "MIDDLE": (1 << 63) + 1}


def pages(offset: int) -> int:
    """Return an address in two pages of text, the second of which may not be read."""
    start: int = LIBC.mmap(None, 8192, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0)
    ctypes.memset(start, ord("/"), 4096)
    ctypes.memmove(start + 4096, b"mnt", 4)
    LIBC.mprotect(start + 4096, 4096, 0)
    return start + offset


def pointer(word: str) -> int | bytes | None:
    if word in POINTERS:
        return POINTERS[word]
    if word in ("CLOSED", "CUT"):
        return pages(4096 if word == "CLOSED" else 4090)
    if word.startswith("long:"):
        return b"/" + b"x" * (int(word[5:]) - 1)
    return word.encode()


def main(words: list[str]) -> int:
    while words:
        what = words.pop(0)
        if what == "mount":
            source, target, fstype, flags, options = (words.pop(0) for _ in range(5))
            done = LIBC.mount(
                pointer(source), pointer(target), pointer(fstype), int(flags, 0), pointer(options)
            )
        elif what == "umount":
            target, flags = words.pop(0), words.pop(0)
            done = LIBC.umount2(pointer(target), int(flags, 0))
        else:
            return 2
        print(what, "ok" if done == 0 else errno.errorcode[ctypes.get_errno()], flush=True)
    return 0


sys.exit(main(sys.argv[1:]))
