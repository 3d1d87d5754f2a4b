# SPDX-License-Identifier: Apache-2.0
"""The shares of a memory limit never come to more than it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serdab.libos.shares import LEAST_MOUNTS, MOUNT_BYTES, RamfsShares, Shares, tmpfs_options

MIB = 1 << 20


def test_without_a_limit_only_the_count_binds() -> None:
    shares = Shares(None, 2)
    assert (shares.shm_bytes, shares.ramfs_bytes, shares.mounts(64)) == (None, None, 64)
    assert shares.layer_bytes(None) == 0
    assert RamfsShares(None).take() is None
    assert tmpfs_options(None) == ""


@given(st.integers(1 << 20, 1 << 40), st.integers(0, 20), st.integers(0, 60))
def test_what_lies_in_memory_leaves_a_quarter(limit: int, configured: int, mounted: int) -> None:
    shares, ramfs = Shares(limit, configured), RamfsShares(limit)
    taken = sum(ramfs.take() or 0 for _ in range(mounted))
    assert (shares.shm_bytes or 0) + configured * (shares.ramfs_bytes or 0) + taken <= limit * 3 / 4


def test_a_size_that_is_given_back_is_there_again() -> None:
    shares = RamfsShares(64 * MIB)
    first = shares.take()
    assert first == 8 * MIB
    assert shares.take() == 4 * MIB
    shares.give_back(first)
    assert shares.take() == 6 * MIB


def test_at_the_end_nothing_is_left() -> None:
    shares = RamfsShares(MIB)
    assert [shares.take() for _ in range(3)] == [128 << 10, 64 << 10, 0]


@pytest.mark.parametrize(
    ("limit", "wanted", "mounts"),
    [
        (MIB, 64, LEAST_MOUNTS),
        (MIB, 2, 2),
        (10 * MOUNT_BYTES - 1, 64, 9),
        (10 * MOUNT_BYTES, 64, 10),
        (1000 * MOUNT_BYTES, 64, 64),
    ],
)
def test_mounts_fit_into_the_limit(limit: int, wanted: int, mounts: int) -> None:
    assert Shares(limit).mounts(wanted) == mounts


def test_a_layer_in_memory_has_its_own_size_before_the_limit() -> None:
    assert Shares(8 * MIB).layer_bytes(5 * MIB) == 5 * MIB
    assert Shares(8 * MIB).layer_bytes(None) == 8 * MIB
