# SPDX-License-Identifier: Apache-2.0
"""Values between processes: what is dumped is parsed, and hostile bytes are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serdab.errors import FormatError, InternalError
from serdab.libos.channel import Channel, close_all, socket_pair
from serdab.libos.messages import Value, dump, parse, parse_record

_text = st.text(st.characters(codec="utf-8"))
_plain = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.binary() | _text
values = st.recursive(
    _plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_a_value_survives(value: Value) -> None:
    assert parse(dump(value)) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(raw: bytes) -> None:
    try:
        parse(raw)
    except FormatError:
        pass


@given(values, st.data())
def test_a_cut_value_is_refused(value: Value, data: st.DataObject) -> None:
    raw = dump(value)
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(FormatError):
        parse(raw[:cut])


def test_what_follows_a_value_is_refused() -> None:
    with pytest.raises(FormatError):
        parse(dump(1) + b"n")


def test_depth_is_bounded() -> None:
    with pytest.raises(FormatError):
        parse(b"l\1\0\0\0" * 100 + b"n")


def test_a_count_beyond_the_bytes_is_refused_at_once() -> None:
    with pytest.raises(FormatError):
        parse(b"l\xff\xff\xff\xff")


def test_file_names_that_are_no_text_survive() -> None:
    name = b"\xff\xfe".decode("utf-8", "surrogateescape")
    assert parse(dump(name)) == name


def test_a_record_is_a_dict() -> None:
    with pytest.raises(FormatError):
        parse_record(dump([1]))


def test_what_cannot_travel_is_a_defect() -> None:
    with pytest.raises(InternalError):
        dump(1.5)  # type: ignore[arg-type]


class TestChannel:
    @pytest.mark.parametrize("size", [0, 1, 32 << 10, 1 << 20])
    def test_records_of_any_size_arrive(self, size: int) -> None:
        one, two = socket_pair()
        left, right = Channel(one), Channel(two)
        left.send({"body": bytes(size)})
        assert right.receive() == ({"body": bytes(size)}, [])
        left.close()
        right.close()

    def test_descriptors_travel_beside(self) -> None:
        one, two = socket_pair()
        left, right = Channel(one), Channel(two)
        left.send({"body": bytes(1 << 20)}, (one.fileno(), two.fileno()))
        message = right.receive()
        assert message is not None
        assert len(message[1]) == 2
        close_all(message[1])
        left.close()
        right.close()

    def test_a_closed_peer_is_the_end(self) -> None:
        one, two = socket_pair()
        one.close()
        channel = Channel(two)
        assert channel.receive() is None
        with pytest.raises(BrokenPipeError):
            channel.send({})
        channel.close()

    def test_what_a_peer_said_last_arrives_although_it_left_something_unread(self) -> None:
        one, two = socket_pair()
        left, right = Channel(one), Channel(two)
        left.send({"op": "sync"})
        right.send({"op": "synced"})
        right.send({"op": "closed"})
        right.close()
        assert left.receive() == ({"op": "synced"}, [])
        assert left.receive() == ({"op": "closed"}, [])
        assert left.receive() is None
        left.close()

    def test_a_malformed_datagram_is_refused(self) -> None:
        one, two = socket_pair()
        one.send(b"\7nonsense")
        channel = Channel(two)
        with pytest.raises(FormatError):
            channel.receive()
        one.close()
        channel.close()
