# SPDX-License-Identifier: Apache-2.0
"""The same random operations on two file systems: ``python -m tests.posix.fuzz OURS THEIRS``.

In both a directory ``t`` is made, with what ``populate`` makes in it. After each operation both
must have answered alike, result or errno; at the end both trees must be alike. The first difference
ends it with status 1, the seed and the operation. Run by root, 15 % are another user's.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.posix.operations import populate, steps
from tests.posix.subject import Step, Subject

TOP: Final = "t"
Remount = Callable[[], None]


class Difference(AssertionError):
    """The two did not answer alike."""


def compare(
    ours: Path,
    theirs: Path,
    *,
    seed: int,
    count: int,
    on_disk: bool = False,
    lazy: bool = False,
    remount: Remount | None = None,
) -> None:
    """Apply ``count`` steps to both; ``remount`` takes ours down and up again, at the end.

    Raises Difference, with what is needed to see it again.
    """
    first, second = (Subject(root, timed=on_disk) for root in (ours, theirs))
    history: list[Step] = []
    try:
        if (had := first.tree()) != (expected := second.tree()):
            raise Difference(f"seed {seed}, at the start: {first_difference(had, expected)}")
        flags = os.statvfs(ours).f_flag | os.statvfs(theirs).f_flag
        executable = not flags & os.ST_NOEXEC
        chance = random.Random(seed)
        for step in steps(chance, count, on_disk=on_disk, lazy=lazy, executable=executable):
            history.append(step)
            answer, wanted = first.apply(step), second.apply(step)
            if answer != wanted:
                raise Difference(
                    f"seed {seed}, step {len(history)}: {short(step)}\n"
                    f"    ours:   {short(answer)}\n    theirs: {short(wanted)}"
                )
        first.close()
        second.close()
        for again in (False, True) if remount else (False,):
            if again and remount:
                remount()
            if (had := first.tree()) != (expected := second.tree()):
                when = "after a remount" if again else "at the end"
                raise Difference(f"seed {seed}, {when}: {first_difference(had, expected)}")
    finally:
        first.close()
        second.close()


def short(value: object) -> str:
    """Return a value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:150]} … {text[-150:]}"


def first_difference(ours: dict[str, object], theirs: dict[str, object]) -> str:
    """Return the first name that two trees do not have alike."""
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            had, wanted = short(ours.get(name)), short(theirs.get(name))
            return f"{name}\n    ours:   {had}\n    theirs: {wanted}"
    return "none"


def begin(folder: Path) -> Path:
    """Make the tree anew that both begin with."""
    top = folder / TOP
    if top.exists():
        shutil.rmtree(top)
    top.mkdir()
    populate(top)
    return top


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("ours", type=Path)
    parser.add_argument("theirs", type=Path)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seconds", type=float, default=10, help="how long rounds are begun")
    parser.add_argument("--on-disk", action="store_true", help="theirs is ext4, not tmpfs")
    parser.add_argument("--lazy", action="store_true", help="mappings without msync(2) too")
    parser.add_argument("--as-is", action="store_true", help="the first round finds its tree")
    options = parser.parse_args()
    os.umask(0o022)
    deadline = time.monotonic() + options.seconds
    seed, rounds = options.seed, 0
    while rounds == 0 or time.monotonic() < deadline:
        theirs = begin(options.theirs)
        ours = options.ours / TOP if options.as_is and not rounds else begin(options.ours)
        try:
            compare(
                ours, theirs, seed=seed, count=options.steps, on_disk=options.on_disk,
                lazy=options.lazy,
            )  # fmt: skip
        except Difference as difference:
            print(f"not alike: {difference}")
            return 1
        rounds, seed = rounds + 1, seed + 1
    print(f"alike: {rounds} rounds of {options.steps} operations, seeds from {options.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
