# SPDX-License-Identifier: Apache-2.0
"""Requests that are answered after more work than one request may take at once.

A handler that is not at the end of its steps (``vfs.steps``) raises :class:`Parked`; a file system
that must find something out first raises ``Unfinished``, and the request is kept and asked anew.
The session does one step of one of them, in turn, between two other requests; so none of these
waits for more than a step. Nothing more is needed for the order of things: the kernel holds the
locks of the inodes that a request changes until it is answered (fuse_file_fallocate(),
fuse_do_setattr(), vfs_rmdir() in Linux 6.18), so what comes in between concerns others, but for
reads, and pages of mappings that are written back, which may come at any time.

INTERRUPT: the kernel sends it once, for the first signal of the caller, whether that ends the
caller or not, and goes on to wait (request_wait_answer()). An answer would be wrong for one that
lives: a part of the work is done, and stat(2) or unlink(2) never say EINTR. So from then on the
caller is looked at, and only one that is being killed is let go, which nobody reads the answer of.
The work ends where it is, as after a crash. The caller is known by its number in the PID namespace
of whoever mounted (fuse_get_req() in Linux 6.18), which may not be ours. Where that is not found
here it is served to the end, since the same number may be somebody else's.

Above: ``session``. Below: ``vfs.steps``, ``linux.process``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Iterator
from typing import Final, TypeAlias, final

from serdab.errors import FsError
from serdab.linux.process import is_being_killed, number_here
from serdab.vfs.steps import Steps

Reply: TypeAlias = "bytes | memoryview | None"
Answer: TypeAlias = Callable[[object], Reply]


class Parked(Exception):
    """Not answered yet: ``steps`` are left to do, and their result makes the reply.

    ``waits_for``: a descriptor that is readable when the next step makes sense; None: now.
    """

    def __init__(self, steps: Steps[object], answer: Answer, waits_for: int | None = None) -> None:
        super().__init__("a request in steps")
        self.steps = steps
        self.answer = answer
        self.waits_for = waits_for


@final
class Request:
    """One that is parked, of a thread ``pid``; ``answer`` makes the reply when it is done."""

    __slots__ = ("_steps", "answer", "is_interrupted", "pid", "unique")

    def __init__(self, unique: int, pid: int, steps: Iterator[int | None], answer: Answer) -> None:
        self._steps: Final = steps
        self.unique: Final = unique
        self.pid = pid
        self.answer: Final = answer
        self.is_interrupted = False

    def interrupt(self, namespace: int) -> None:
        """The caller got a signal. Its number is one of a PID namespace; -1: of ours."""
        if not self.is_interrupted:
            self.is_interrupted = True
            if namespace >= 0:
                self.pid = number_here(self.pid, namespace)

    def step(self) -> int | None:
        """Do one step; return the descriptor that the next one waits for, if any.

        Raises:
            StopIteration: that was the last; its value is for ``answer``.
            FsError: EINTR, nobody waits any more; or what the step raised.
        """
        if self.is_interrupted and is_being_killed(self.pid):
            self.close()
            raise FsError(errno.EINTR)
        return next(self._steps)

    def close(self) -> None:
        """Give it up where it is."""
        if isinstance(self._steps, Generator):
            self._steps.close()
