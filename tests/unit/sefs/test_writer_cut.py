# SPDX-License-Identifier: Apache-2.0
"""What an attempt wrote in vain is given back, however far the attempt and the giving back came."""

from __future__ import annotations

import errno

import pytest

from serdab.keys import Key
from serdab.sefs.anchor import volume_keys
from serdab.sefs.keyspace import V2
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.memorydir import MemoryDir, MemoryFile
from serdab.sefs.segment import HEADER_BYTES, POINTER, SegmentStore, page_aad

AAD = page_aad(0)
LIMITS = VolumeLimits(segment_bytes=20_000, buffer_bytes=4096)


@pytest.fixture
def store() -> SegmentStore:
    host = MemoryDir("seg")
    keys = volume_keys(Key(b"key of a segment"), bytes(16), V2)
    return SegmentStore(lambda: host, keys, 1, V2, LIMITS)


def names(store: SegmentStore) -> list[str]:
    return store._directory().names()


def test_it_goes_on_from_where_it_was_with_other_nonces(store: SegmentStore) -> None:
    writer = store.writer()
    kept = writer.append(b"k" * 500, AAD)
    writer.sync()
    mark = writer.mark()
    lost = [writer.append(bytes(3000), AAD) for _ in range(12)]
    assert len(names(store)) == 3
    writer.cut(mark)
    assert names(store) == ["00000001"]
    assert store.used_bytes == mark[1]
    again = writer.append(b"a" * 500, AAD)
    writer.sync()
    # The same place, and a number that no record of the segment ever had.
    assert POINTER.unpack(again)[:2] == POINTER.unpack(lost[0])[:2]
    assert POINTER.unpack(again)[3] > max(
        POINTER.unpack(pointer)[3] for pointer in lost if POINTER.unpack(pointer)[0] == 1
    )
    assert store.read(kept, AAD, 500) == b"k" * 500
    assert store.read(again, AAD, 500) == b"a" * 500
    writer.close()


def test_what_a_writer_began_from_nothing_is_all_gone(store: SegmentStore) -> None:
    writer = store.writer()
    mark = writer.mark()
    for _ in range(12):
        writer.append(bytes(3000), AAD)
    writer.cut(mark)
    assert names(store) == []
    assert store.usage == {}
    assert POINTER.unpack(writer.append(b"next", AAD))[1] == HEADER_BYTES
    writer.close()


def test_a_host_that_does_not_shorten_a_file_keeps_no_other(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.writer()
    writer.append(b"k" * 500, AAD)
    writer.sync()
    mark = writer.mark()
    for _ in range(12):
        writer.append(bytes(3000), AAD)

    def refused(_self: MemoryFile, _size: int) -> None:
        raise OSError(errno.EIO, "refused")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFile, "truncate", refused)
        with pytest.raises(OSError, match="refused"):
            writer.cut(mark)
    assert names(store) == ["00000001"]
    assert list(store.usage) == [1]
    assert [number for number in range(9) if store.is_open(number)] == [1]
    again = writer.append(b"a" * 500, AAD)
    writer.sync()
    assert store.read(again, AAD, 500) == b"a" * 500
    writer.close()
