# SPDX-License-Identifier: Apache-2.0
"""Work that grows with what is asked for, in steps of some milliseconds.

A request may be answered only after much work: a large file is cut, a name is looked for among a
hundred thousand whiteouts. Such an operation is a generator. Each ``next`` does one step, after
which the file system is in order, whatever comes in between: other requests, commits, the end. It
yields None, or a descriptor that becomes readable when going on makes sense: whoever waits for it
reads what is there (eventfd(2)) and goes on. What it returns is the answer. Who has nobody else to
serve runs it to its end (:func:`finish`).

A file system that has operations in steps offers them beside the plain ones, by the name
``<operation>_steps``; and ``chores``, work that nobody waits for.

Above: ``union``, ``sefs.volume``, ``fuse.session``. Below: nothing.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Generator, Iterator
from typing import TypeAlias, TypeVar, cast

T = TypeVar("T")

Steps: TypeAlias = "Generator[int | None, None, T]"
Chores: TypeAlias = "deque[Iterator[None]]"


class Unfinished(Exception):
    """The answer needs ``steps`` first; then ask again. Nothing was changed.

    Raised only by a file system that was told that its caller can wait (``stepwise``).
    """

    def __init__(self, steps: Iterator[None]) -> None:
        super().__init__("asked again after some steps")
        self.steps = steps


def finish(steps: Steps[T]) -> T:
    """Do all steps at once; return the answer."""
    while True:
        try:
            descriptor = next(steps)
        except StopIteration as end:
            return cast("T", end.value)
        if descriptor is not None:
            select.select((descriptor,), (), ())
            os.eventfd_read(descriptor)


def after(steps: Iterator[None]) -> Steps[None]:
    """Return steps that have no answer."""
    yield from steps
