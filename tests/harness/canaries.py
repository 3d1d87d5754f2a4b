# SPDX-License-Identifier: Apache-2.0
"""A tree that nobody has any business with, and who touched it all the same.

fanotify(7) hears of every open, read, write, attribute change, execution, new, moved and removed
name, by whatever path, link, mount or descriptor it was reached, and says which process
did it. Each directory and file of the tree is marked by its inode, so what is moved elsewhere is
heard too, of whichever user it is. Content and names are compared besides. What happened is queued,
so nothing is missed between two looks.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Final, Self

#: struct fanotify_event_metadata, struct fanotify_event_info_header
_EVENT: Final = struct.Struct("=IBBHQii")
_INFO: Final = struct.Struct("=BBH")
#: fsid, then handle_bytes and handle_type of struct file_handle
_HANDLE: Final = struct.Struct("=8sIi")
_VERSION: Final = 3
_DIRECTORY_AND_NAME: Final = 2  # FAN_EVENT_INFO_TYPE_DFID_NAME
#: With the file itself: else what is done to it by a descriptor alone (link(2)) is not told.
_REPORT: Final = 0xE00  # FAN_REPORT_FID | FAN_REPORT_DFID_NAME
_CLOEXEC, _NONBLOCK, _UNLIMITED = 0x1, 0x2, 0x10
_ADD: Final = 0x1
_DONT_FOLLOW: Final = 0x4
_AT_FDCWD: Final = -100
_WRITTEN: Final = 0x2
_OVERFLOW: Final = 0x4000
_ON_CHILD, _ON_DIRECTORY = 0x08000000, 0x40000000
_NAMES: Final = {
    0x1: "read",
    _WRITTEN: "written",
    0x4: "attributes changed",
    0x8: "closed after writing",
    0x20: "opened",
    0x40: "moved from",
    0x80: "moved to",
    0x100: "made",
    0x200: "removed",
    0x400: "removed itself",
    0x800: "moved itself",
    0x1000: "executed",
    _OVERFLOW: "overflow",
}
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_MARK: Final = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p,
    use_errno=True,
)(("fanotify_mark", _LIBC))  # fmt: skip


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class Canaries:
    """Watches the tree at ``path`` until it is closed; makes one if there is none."""

    def __init__(self, path: Path, *, hears_reads: bool = True) -> None:
        self.path = path
        if not path.exists():
            for name in ("secret", "deep/secret", "mount/__ROOT/secret", "lib/secret", "bin/init"):
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_text("canary")
                (path / name).chmod(0o755)
        self._before = self._picture()
        flags = _CLOEXEC | _NONBLOCK | _REPORT
        # An ordinary user may watch what is theirs, with a queue of 16384 events (Linux 5.13).
        flags |= _UNLIMITED if os.geteuid() == 0 else 0
        self._fd = _checked(_LIBC.fanotify_init(flags, os.O_RDONLY))
        mask = sum(_NAMES) & ~_OVERFLOW if hears_reads else _WRITTEN
        places = [(folder, names) for folder, _, names in os.walk(path)] or [(str(path), [])]
        for folder, names in places:
            for each in (folder, *(os.path.join(folder, name) for name in names)):
                more = _ON_CHILD | _ON_DIRECTORY if os.path.isdir(each) else 0
                _checked(
                    _MARK(self._fd, _ADD | _DONT_FOLLOW, mask | more, _AT_FDCWD, os.fsencode(each))
                )

    def _picture(self) -> dict[str, str]:
        if self.path.is_file():
            return {"": hashlib.sha256(self.path.read_bytes()).hexdigest()}
        return {
            os.path.join(folder, name): hashlib.sha256(Path(folder, name).read_bytes()).hexdigest()
            for folder, _, names in os.walk(self.path)
            for name in names
        }

    def touched(self) -> list[str]:
        """Return what happened to them since the last look."""
        found = []
        try:
            while raw := os.read(self._fd, 1 << 16):
                at = 0
                while at < len(raw):
                    length, version, _, head, mask, _, pid = _EVENT.unpack_from(raw, at)
                    assert version == _VERSION
                    name = os.fsdecode(_name(raw[at + head : at + length]))
                    at += length
                    words = [word for bit, word in _NAMES.items() if mask & bit]
                    found.append(f"{name}: {', '.join(words)} by process {pid}")
        except BlockingIOError:
            pass
        return found

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        found = self.touched()
        self.close()
        if kind is None:
            assert found == []
            assert self._picture() == self._before


def _name(info: bytes) -> bytes:
    """Return the name in the directory that an event tells of; ``.``: it is the directory."""
    at = 0
    while at < len(info):
        kind, _, length = _INFO.unpack_from(info, at)
        if kind == _DIRECTORY_AND_NAME:
            _, handle_bytes, _ = _HANDLE.unpack_from(info, at + _INFO.size)
            start = at + _INFO.size + _HANDLE.size + handle_bytes
            return info[start : at + length].split(b"\0", 1)[0]
        at += length
    return b"itself"
