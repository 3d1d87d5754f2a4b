# SPDX-License-Identifier: Apache-2.0
"""A tree that nobody has any business with, and who touched it all the same.

inotify(7) hears of every open, read, write, attribute change, new and removed name in the
directories it watches, by whatever path, link or descriptor they were reached; content and names
are compared besides. It queues what happened, so nothing is missed between two looks.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_EVENT: Final = struct.Struct("iIII")
_NAMES: Final = {
    0x1: "read",
    0x2: "written",
    0x4: "attributes changed",
    0x8: "closed after writing",
    0x20: "opened",
    0x40: "moved from",
    0x80: "moved to",
    0x100: "made",
    0x200: "removed",
    0x400: "removed itself",
    0x800: "moved itself",
    0x4000: "overflow",
}
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


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
        self._fd = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._fd >= 0
        mask = sum(_NAMES) & ~0x4000 if hears_reads else 0x2  # else: written
        places = [(folder, names) for folder, _, names in os.walk(path)] or [(str(path), [])]
        for folder, names in places:
            for each in (folder, *(os.path.join(folder, name) for name in names)):
                assert _LIBC.inotify_add_watch(self._fd, os.fsencode(each), mask) > 0

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
                    _, mask, _, length = _EVENT.unpack_from(raw, at)
                    name = raw[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                    at += _EVENT.size + length
                    words = [word for bit, word in _NAMES.items() if mask & bit]
                    found.append(f"{os.fsdecode(name) or 'itself'}: {', '.join(words)}")
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
