# SPDX-License-Identifier: Apache-2.0
"""Positions: which of two states came first, and the numbers of checkpoints."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serdab.errors import FormatError
from serdab.sefs.position import History, Order, Position

UUID = b"u" * 16
CHAIN = b"c" * 16

positions = st.builds(
    Position,
    st.just(UUID),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from([CHAIN, b"d" * 16]),
)


def at(epoch: int, sequence: int, chain: bytes = CHAIN) -> Position:
    return Position(UUID, epoch, sequence, chain)


class TestOrder:
    @pytest.mark.parametrize(
        ("found", "order"),
        [
            (at(5, 7), Order.SAME),
            (at(5, 7, b"d" * 16), Order.FORK),
            (at(5, 8), Order.NEWER),
            (at(6, 7), Order.NEWER),
            (at(9, 9), Order.NEWER),
            (at(5, 6), Order.OLDER),
            (at(4, 7), Order.OLDER),
            (at(0, 0), Order.OLDER),
            (at(6, 6), Order.FORK),
            (at(4, 8), Order.FORK),
            (Position(b"v" * 16, 5, 7, CHAIN), Order.FORK),
        ],
    )
    def test_against_a_trusted_one(self, found: Position, order: Order) -> None:
        assert found.order(at(5, 7)) is order

    @given(positions, positions)
    def test_is_antisymmetric(self, one: Position, other: Position) -> None:
        mirror = {Order.NEWER: Order.OLDER, Order.OLDER: Order.NEWER}
        order = one.order(other)
        assert other.order(one) is mirror.get(order, order)
        assert (order is Order.SAME) == (one == other)


class TestText:
    @given(
        st.integers(0, (1 << 63) - 1),
        st.integers(0, (1 << 63) - 1),
        st.binary(min_size=16, max_size=16),
    )
    def test_reads_what_it_writes(self, epoch: int, sequence: int, chain: bytes) -> None:
        position = Position(UUID, epoch, sequence, chain)
        assert Position.parse(UUID, position.dump()) == position

    @pytest.mark.parametrize(
        "line",
        [
            "",
            "1",
            "1 2",
            "1 2 " + "a" * 31,
            "1 2 " + "A" * 32,
            "1 2 " + "a" * 34,
            "01 2 " + "a" * 32,
            "-1 2 " + "a" * 32,
            " 1 2 " + "a" * 32,
            "1 2 " + "a" * 32 + "\n",
            "1 2 " + "a" * 32 + " 3",
            f"{1 << 63} 2 " + "a" * 32,
            "1_0 2 " + "a" * 32,
            "\u0661 2 " + "a" * 32,
            "9" * 5000 + " 2 " + "a" * 32,
        ],
    )
    def test_refuses_every_other_spelling(self, line: str) -> None:
        with pytest.raises(FormatError):
            Position.parse(UUID, line)


class TestNumbersOfCheckpoints:
    def test_count_one_by_one(self) -> None:
        assert [History().next_epoch(epoch) for epoch in range(3)] == [1, 2, 3]

    @given(st.integers(0, 50), st.integers(0, 50))
    def test_jump_over_a_history_that_was_given_up(self, epoch: int, floor: int) -> None:
        history = History()
        history.begin_above(floor)
        found = history.next_epoch(epoch)
        assert found > floor
        assert found > epoch
        assert (found - epoch) % 2 == 1, "the slots are written in turn"
        assert found <= max(epoch, floor) + 2

    def test_a_floor_is_never_lowered(self) -> None:
        history = History()
        history.begin_above(9)
        history.begin_above(3)
        assert history.next_epoch(0) > 9


class TestAnnouncing:
    def test_each_state_is_told_once(self) -> None:
        told: list[Position] = []
        history = History()
        history.on_durable = told.append
        for position in (None, at(1, 0), at(1, 0), at(1, 1), at(2, 1)):
            history.announce(position)
        assert told == [at(1, 0), at(1, 1), at(2, 1)]

    def test_a_state_that_could_not_be_told_is_told_again(self) -> None:
        history = History()

        def fail(position: Position) -> None:
            raise OSError

        history.on_durable = fail
        for _ in range(2):
            with pytest.raises(OSError):  # noqa: PT011 - ours, from above
                history.announce(at(1, 0))
