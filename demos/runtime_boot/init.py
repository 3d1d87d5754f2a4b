#!/usr/bin/python3 -IS
# SPDX-License-Identifier: Apache-2.0
"""The same init in Python: an init may be written in anything that can make a system call."""

import ctypes
import os
import sys

MOUNT_ROOT_FS = 363
KEY = bytes.fromhex("c732b3ed44dfec7b252d9a32388d5861")


class UserRootfsConfig(ctypes.Structure):
    _fields_ = (
        ("len", ctypes.c_size_t),
        ("upper_layer_path", ctypes.c_char_p),
        ("lower_layer_path", ctypes.c_char_p),
        ("entry_point", ctypes.c_char_p),
        ("hostfs_source", ctypes.c_char_p),
        ("hostfs_target", ctypes.c_char_p),
        ("envp", ctypes.POINTER(ctypes.c_char_p)),
    )


def main() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    envp = (ctypes.c_char_p * 4)(b"OCCLUM=NO", b"TEST=1234", b"TEST2=4567", None)
    config = UserRootfsConfig(
        ctypes.sizeof(UserRootfsConfig),
        b"../gen_rootfs_instance/mnt_unionfs/upper",
        b"../gen_rootfs_instance/mnt_unionfs/lower",
        b"/bin",
        b"/tmp",
        b"/host",
        envp,
    )
    key = ctypes.create_string_buffer(KEY, len(KEY))
    if libc.syscall(MOUNT_ROOT_FS, key, ctypes.byref(config)) < 0:
        print(f"init: MountRootFS: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        return 1
    return 0


status = main()
# The interpreter's own files went with the old root: nothing is left to be tidied up.
sys.stdout.flush()
os._exit(status)
