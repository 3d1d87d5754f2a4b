# SPDX-License-Identifier: Apache-2.0
"""Workloads for the crash simulator: bounded ones after ACE, random ones without end.

ACE (Mohan et al., "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing", OSDI 2018)
tries all short sequences of operations over a few names, each followed by each persistence call.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from tests.crash.actor import Operation, Step
from tests.property.fsops import Operations

FOO, BAR = (b"foo",), (b"bar",)
A, B, A_FOO, A_BAR, B_FOO = (b"A",), (b"B",), (b"A", b"foo"), (b"A", b"bar"), (b"B", b"foo")


def _op(
    kind: str, path: tuple[bytes, ...], other: tuple[bytes, ...] = (), offset: int = 0,
    size: int = 0, byte: int = 65, mode: int = 0o600,
) -> Operation:  # fmt: skip
    return (kind, path, other, offset, size, byte, mode)


SETUP: list[Step] = [
    _op("mkdir", A),
    _op("create", FOO),
    _op("write", FOO, size=6000),
    _op("create", A_FOO),
    _op("write", A_FOO, size=100),
    _op("setxattr", A_FOO, size=20),
    "syncfs",
]
"""What every bounded workload starts from."""

OPERATIONS: list[Operation] = [
    _op("create", BAR),
    _op("create", A_BAR),
    _op("mkdir", B),
    _op("mkdir", (b"A", b"B")),
    _op("rmdir", B),
    _op("symlink", BAR, FOO),
    ("fifo", A_BAR),
    _op("write", FOO, offset=6000, size=3000),  # append
    _op("write", FOO, offset=100, size=50, byte=66),  # overwrite within a chunk
    _op("write", FOO, offset=0, size=9000, byte=67),  # whole chunks and more
    _op("write", FOO, offset=20_000, size=10, byte=68),  # a hole
    _op("write", A_FOO, offset=50, size=3000, byte=69),  # leaves its inode
    _op("write", BAR, size=5000, byte=70),
    _op("truncate", FOO, offset=0),
    _op("truncate", FOO, offset=4100),
    _op("truncate", FOO, offset=30_000),
    _op("truncate", A_FOO, offset=10),
    _op("punch", FOO, offset=0, size=4096),
    _op("punch", FOO, offset=4000, size=300),
    ("falloc", FOO, 16, 5000, 9000),
    ("falloc", FOO, 17, 5000, 9000),
    ("falloc", FOO, 16, 100, 5000),
    ("copy", FOO, A_FOO, 0, 6000),
    _op("link", FOO, BAR),
    _op("link", FOO, A_BAR),
    _op("link", A_FOO, BAR),
    _op("unlink", FOO),
    _op("unlink", A_FOO),
    _op("unlink", BAR),
    _op("rename", FOO, BAR),
    _op("rename", FOO, A_FOO),
    _op("rename", A_FOO, FOO),
    _op("rename", A_FOO, A_BAR),
    _op("rename", A, B),
    _op("exchange", FOO, A_FOO),
    _op("exchange", A, FOO),
    _op("chmod", FOO, mode=0o4711),
    _op("setxattr", FOO, size=100),
    _op("setxattr", A_FOO, size=2000),
    _op("removexattr", A_FOO),
    ("hold", FOO),
    ("held write", FOO, 10, 5000, 71),
    ("let go", FOO),
]

PERSISTENCE = ("fsync", "syncfs", "tick", "reopen")


def bounded(length: int) -> Iterator[list[Step]]:
    """Yield every sequence of ``length`` operations with a persistence call at its end.

    Each call is global here, so where it stands matters more than what it names: in sequences of
    two a call also stands between them.
    """
    for operations in itertools.product(OPERATIONS, repeat=length):
        for call in PERSISTENCE[:2] if length > 1 else PERSISTENCE:
            yield [*operations, call]
        if length > 1:
            yield [operations[0], "fsync", *operations[1:]]


def sampled(length: int, count: int, seed: int) -> Iterator[list[Step]]:
    """Yield random sequences of ``length`` operations with calls in random places."""
    rng = random.Random(seed)
    for _ in range(count):
        steps: list[Step] = []
        for operation in rng.choices(OPERATIONS, k=length):
            steps.append(operation)
            if rng.random() < 0.35:
                steps.append(rng.choice(PERSISTENCE))
        if isinstance(steps[-1], tuple):
            steps.append(rng.choice(PERSISTENCE))
        yield steps


_SIZES = (0, 1, 10, 100, 2000, 2049, 4096, 4097, 8192, 9000, 13_000)


def random_workload(seed: int, length: int = 60) -> list[Step]:
    """Return operations that mostly hit what is there, and calls between them."""
    operations = Operations(seed)
    rng = operations.random
    steps: list[Step] = []
    while len(steps) < length:
        kind, path, other, _, _, byte, mode = operations.draw()
        if rng.random() < 0.5:
            path = path[:1]
        size = rng.choice(_SIZES)
        offset = rng.choice((0, 0, rng.choice(_SIZES), rng.randrange(12_000)))
        roll = rng.random()
        if roll < 0.03:
            steps.append(("hold", path))
        elif roll < 0.05:
            steps.append(("held write", path, offset, size, byte))
        elif roll < 0.06:
            steps.append(("let go", path))
        elif roll < 0.08:
            steps.append(("falloc", path, rng.choice((16, 17)), offset, size + 1))
        elif roll < 0.10:
            steps.append(("copy", path, other, offset, size))
        else:
            steps.append((kind, path, other, offset, size, byte, mode))
        roll = rng.random()
        if roll < 0.12:
            steps.append(rng.choice(PERSISTENCE[:2]))
        elif roll < 0.17:
            steps.append("tick")
        elif roll < 0.19:
            steps.append("reopen")
    return steps
