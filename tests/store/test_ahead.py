# SPDX-License-Identifier: Apache-2.0
"""While nobody waits, the union reads the inode that is likely to be looked up next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serdab.errors import AuthenticationError
from serdab.keys import Key
from serdab.sefs.memorydir import MemoryDir, MemoryFile
from serdab.sefs.volume import Volume, open_volume_in
from serdab.vfs.union import Union

KEY = Key(b"a" * 16)
NAMES = [b"%03d" % number for number in range(60)]


class Reads:
    """Counts the reads of the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = MemoryFile.pread_into

        def counted(file: MemoryFile, buf: memoryview, offset: int) -> int:
            self.count += 1
            return real(file, buf, offset)

        monkeypatch.setattr(MemoryFile, "pread_into", counted)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture
def fs() -> Iterator[Union]:
    """A file system just mounted, with files that were made one after the other."""
    directory = MemoryDir()
    fs = Union(open_volume_in(directory, key=KEY, create=True), None)
    for name in NAMES:
        inode = fs.mknod(1, name, 0o100644, 0, 0, 0)
        fs.write(inode.ino, 0, memoryview(bytes(1500)), kill_suidgid=False)
    fs.close()
    fs = Union(open_volume_in(directory, key=KEY), None)
    yield fs
    fs.close()


def test_files_looked_up_in_the_order_they_were_made_wait_for_no_page(
    fs: Union, reads: Reads
) -> None:
    for name in NAMES[:2]:
        fs.lookup(1, name)
        fs.ahead()
    waited = 0
    before_all = reads.count
    for name in NAMES[2:]:
        before = reads.count
        assert fs.lookup(1, name).size == 1500
        waited += reads.count - before
        fs.ahead()
    assert reads.count > before_all
    assert waited == 0


def test_nothing_is_read_ahead_of_lookups_in_another_order(fs: Union, reads: Reads) -> None:
    for name in NAMES[::-2]:
        fs.lookup(1, name)
        before = reads.count
        fs.ahead()
        assert reads.count == before


def test_what_cannot_be_read_ahead_is_told_to_whoever_asks_for_it(
    fs: Union, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs.lookup(1, NAMES[0])
    fs.lookup(1, NAMES[1])

    def refuse(_volume: Volume, _ino: int) -> None:
        raise AuthenticationError("the tag does not verify")

    monkeypatch.setattr(Volume, "inode", refuse)
    fs.ahead()
    with pytest.raises(AuthenticationError):
        fs.lookup(1, NAMES[2])
