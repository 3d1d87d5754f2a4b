# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole, on file systems with and without files that have no name."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from serdab.errors import UsageError
from serdab.instance.pendingfile import PendingFile
from serdab.linux.dirfd import DirFd


@pytest.fixture(params=["nameless", "named"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder; for ``named``, as on a file system without O_TMPFILE (NFS, FUSE)."""
    if request.param == "named":
        real = os.open

        def open_(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
            return real(path, flags, mode, dir_fd=dir_fd)

        monkeypatch.setattr(os, "open", open_)
    return tmp_path


def test_it_appears_when_it_is_published(folder: Path) -> None:
    target = folder / "file"
    with DirFd.at(str(folder)) as place, ExitStack() as stack:
        pending = PendingFile(place, target.name, stack)
        pending.file.write(b"content")
        assert not target.exists()
        pending.publish()
        assert target.read_bytes() == b"content"
    assert list(folder.iterdir()) == [target]


def test_what_is_there_stays(folder: Path) -> None:
    target = folder / "file"
    with DirFd.at(str(folder)) as place, ExitStack() as stack:
        pending = PendingFile(place, target.name, stack)
        target.write_bytes(b"mine")
        with pytest.raises(UsageError, match="there already"):
            pending.publish()
    assert target.read_bytes() == b"mine"
    assert list(folder.iterdir()) == [target]


def test_what_was_not_published_is_gone(folder: Path) -> None:
    with DirFd.at(str(folder)) as place, ExitStack() as stack:
        PendingFile(place, "file", stack).file.write(b"content")
    assert list(folder.iterdir()) == []
