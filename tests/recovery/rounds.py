# SPDX-License-Identifier: Apache-2.0
"""One instance that is started, killed and started again: ``Ward``.

What the program inside acknowledged, it wrote into a pipe before it did anything else. So after a
kill the pipe, read to its end, holds every promise that was given, and no more.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.harness.command import describe
from tests.recovery.processes import (
    PATIENCE_S,
    Family,
    Process,
    control_groups,
    descendants,
    find_family,
    find_marked,
    wait_until,
)
from tests.sandbox.conftest import Box

_MARK: Final = "SERDAB_TEST_ROUND"


def read_to_end(fd: int, *, patience_s: float = PATIENCE_S) -> bytes:
    """Read a pipe until all who could write into it are gone."""
    deadline = time.monotonic() + patience_s
    chunks = [b""]
    while True:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"somebody holds a pipe after {patience_s:.0f} s: {b''.join(chunks)!r}"
        chunk = os.read(fd, 65536)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


class Run:
    """A ``serdab run`` under way, its standard output read line by line."""

    def __init__(self, box: Box, argv: tuple[str, ...], mark: str, *, stdin: int) -> None:
        self.mark = mark
        self.argv = argv
        self._instance = box.path
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [*box.command.prefix, "-C", str(box.path), "run", *argv],
            env=box.command.env | {_MARK: mark},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        self._rest = b""
        self.lines: list[str] = []
        self.family: Family | None = None

    def next_line(self, *, patience_s: float = PATIENCE_S) -> str | None:
        """Return the next line; None at the end of the output."""
        out = self.process.stdout
        assert out is not None
        deadline = time.monotonic() + patience_s
        while b"\n" not in self._rest:
            ready, _, _ = select.select([out], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{self.argv}: silent for {patience_s:.0f} s after {self.lines[-3:]}"
            chunk = os.read(out.fileno(), 65536)
            if not chunk:
                assert not self._rest, f"{self.argv}: half a line: {self._rest!r}"
                return None
            self._rest += chunk
        raw, _, self._rest = self._rest.partition(b"\n")
        self.lines.append(raw.decode())
        return self.lines[-1]

    def expect(self, word: str) -> int:
        """Return the number in the next line, which begins with ``word``."""
        line = self.next_line()
        if line is None or not line.startswith(f"{word} "):
            raise AssertionError(f"expected {word!r}, found {line!r}\n{self.finish()}")
        return int(line.split()[1])

    def ask(self, command: str, *, patience_s: float = PATIENCE_S) -> list[str]:
        """Send a line to its standard input; return the words of the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        line = self.next_line(patience_s=patience_s)
        if line is None:
            raise AssertionError(f"no answer to {command!r}\n{self.finish()}")
        return line.split()

    def find_family(self) -> Family:
        """Note who belongs to it; the program inside must have spoken."""
        self.family = find_family(self.process.pid, self._instance)
        return self.family

    def finish(self, *, patience_s: float = PATIENCE_S) -> str:
        """Read to the end of the output, which is the end of whoever held it; return errors."""
        deadline = time.monotonic() + patience_s
        while self.next_line(patience_s=patience_s) is not None:
            assert time.monotonic() < deadline, f"{self.argv} goes on: {self.lines[-1]}"
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        # The launcher has the same standard error: its end of file is the end of them all.
        errors = read_to_end(self.process.stderr.fileno(), patience_s=patience_s)
        self.process.stdout.close()
        self.process.stderr.close()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(patience_s)
        return errors.decode(errors="replace")

    def last_number(self, word: str) -> int | None:
        """Return the number in the last line that begins with ``word``."""
        found = [line for line in self.lines if line.startswith(f"{word} ")]
        return int(found[-1].split()[1]) if found else None


@dataclass
class Ward:
    """An instance under test, with what it promised so far."""

    box: Box
    connections: Path
    random: random.Random
    program: tuple[str, ...] = ("/bin/probe",)
    has_own_mount: bool = False
    acknowledged: int = 0
    _runs: list[Run] = field(default_factory=list)
    _kernels: set[int] = field(default_factory=set)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for run in self._runs:
            for process in (*descendants(run.process.pid), *find_marked(_MARK, run.mark)):
                process.kill()
            run.process.kill()
            for stream in (run.process.stdin, run.process.stdout, run.process.stderr):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
            run.process.wait(PATIENCE_S)

    def start(self, *argv: str, stdin: int = subprocess.DEVNULL) -> Run:
        """Start a program inside."""
        run = Run(self.box, argv, os.urandom(8).hex(), stdin=stdin)
        self._runs.append(run)
        return run

    def start_recorder(self, mode: str = "run") -> Run:
        """Start the recorder; it has verified the past and must have all that was promised."""
        run = self.start(*self.program, mode, "/data")
        self.expect_all(run)
        return run

    def expect_all(self, run: Run) -> None:
        """Let a recorder that was started find everything that was promised."""
        have = run.expect("have")
        assert have >= self.acknowledged, f"acknowledged {self.acknowledged}, found {have}"

    def settle(self, run: Run) -> str:
        """Read a run that was killed to its end, and take note of what it promised."""
        errors = run.finish()
        last = run.last_number("ack")
        if last is not None:
            assert last >= self.acknowledged
            self.acknowledged = last
        problems = [line for line in run.lines if line.startswith(("torn", "hole", "damaged"))]
        assert not problems, f"{problems}\n{errors}"
        assert "please report" not in errors, errors
        assert "Traceback" not in errors, errors
        return errors

    def check_gone(self, run: Run) -> None:
        """Wait until nothing of a run is left but, perhaps, empty control groups."""
        if run.family is not None:
            self._kernels.add(run.family.kernel.pid)
            run.family.check_gone(self.connections)
        left: list[Process] = []

        def none_left() -> bool:
            left[:] = find_marked(_MARK, run.mark)
            return not left

        wait_until(none_left, f"the end of {run.argv}: {[p.shown() for p in left]}")
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            mounts = [line for line in table if str(self.box.path) in line]
        assert len(mounts) == self.has_own_mount, f"mounts left behind: {mounts}"
        self._runs.remove(run)

    def check_whole(self) -> None:
        """Let an undisturbed run verify everything, and leave nothing behind."""
        result = self.box.run(*self.program, "verify", "/data")
        assert result.returncode == 0, describe(result)
        have = int(result.stdout.split()[1])
        assert have >= self.acknowledged, f"acknowledged {self.acknowledged}, found {have}"
        assert not control_groups(self._kernels), "control groups are left behind"
