# SPDX-License-Identifier: Apache-2.0
"""``make apps``: real programs, each in an encrypted instance, at work that checks itself.

Beside it each does the same work in a plain copy of the same tree (chroot(2), in namespaces that
unshare(1) makes), in turns, and a table says what both took. With ``--work`` it is only done
inside. Status 1: something that this machine has did not work.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from demos.apps.gallery import APPS, WORK, App, has_other_users, plain_command
from demos.apps.measure import PeakMemory
from demos.apps.sealed import Done, Failure, Sealed, run, sealed_instance

HEAD: Final = (
    "| program | plain, s | inside, s | of that boot | times | memory, plain | inside |\n"
    "|---|---|---|---|---|---|---|"
)


@dataclass(slots=True)
class Taken:
    """Seconds and memory of the rounds of one kind."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def take(self, command: Callable[[], Done]) -> None:
        """Run once more."""
        with PeakMemory() as memory:
            self.seconds.append(command().elapsed_s)
        self.peak_bytes = max(self.peak_bytes, memory.peak_bytes)

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def mebibytes(self) -> str:
        return f"{self.peak_bytes / (1 << 20):.0f} MiB"


def compare(instance: Sealed, rounds: int) -> str:
    """Return the cells of a row. Raises Failure where the work was not done."""
    tree = instance.base / "plain"
    run(["cp", "-a", instance.image, tree])
    plain, inside, boot = Taken(), Taken(), Taken()
    for _ in range(rounds):
        plain.take(lambda: run(plain_command(tree)))
        inside.take(lambda: instance.inside(*WORK))
        boot.take(lambda: instance.inside("/bin/true"))
    return (
        f"{plain.median_s:.1f} | {inside.median_s:.1f} | {boot.median_s:.1f} | "
        f"{(inside.median_s - boot.median_s) / plain.median_s:.1f} | "
        f"{plain.mebibytes} | {inside.mebibytes}"
    )


def try_app(app: App, *, rounds: int) -> tuple[str, bool]:
    """Return the row of an app, and whether it did what it should."""
    with ExitStack() as stack:
        made = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sm-")))
        try:
            variables = app.find(made)
            if variables is None:
                return f"| {app.name} | not on this machine: {app.packages} |", True
            instance = stack.enter_context(sealed_instance())
            app.fill(instance, variables)
            if app.needs_users and not has_other_users(instance):
                return f"| {app.name} | there is user 0 only, which it refuses to be |", True
            if rounds:
                return f"| {app.name} | {compare(instance, rounds)} |", True
            return f"| {app.name} | works |\n{instance.inside(*WORK).output}", True
        except Failure as failure:
            return f"| {app.name} | FAILED |\n{failure}", False


def main() -> int:
    parser = argparse.ArgumentParser(prog="make apps", description="see docs/apps.md")
    parser.add_argument("apps", nargs="*", metavar="APP", help=", ".join(APPS))
    parser.add_argument("--work", action="store_true", help="only inside, without the table")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if unknown := set(options.apps) - APPS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    good = True
    if not options.work:
        print(HEAD)
    for name in options.apps or APPS:
        row, works = try_app(APPS[name], rounds=0 if options.work else options.rounds)
        print(row, flush=True)
        good &= works
    print("All of it worked" if good else "Not all of it worked", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
