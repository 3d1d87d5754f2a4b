# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.calls``: what intercepted system calls cost, beside a bare listener in C.

Prints medians and their ratios, and fails if a ratio is above its bound. calls.c says what each
figure is. Both sides run on the same processors, once with caller and listener on two and once on
one; a refused call is held to its bound on both. Rounds of both sides alternate. It needs gcc.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
SERDAB = [sys.executable, "-m", "serdab"]
REFUSED = ("null_target", "bad_flags", "root", "bad_type", "policy", "too_late")
#: A refused call, against the listener in C on the same processors.
MOST_TIMES_BARE = 5.0
#: getppid(2) inside, against a process under the smallest filter there is.
MOST_TIMES_FILTERED = 1.10
MOST_MOUNT_US = 50_000.0

Figures = dict[str, float]


def read(output: str) -> Figures:
    return {name: float(value) for name, value in map(str.split, output.splitlines())}


class Bench:
    """A built instance in a directory of its own, and the program that measures."""

    def __init__(self, base: Path, rounds: int) -> None:
        self._rounds = str(rounds)
        runtime = base / "run"
        runtime.mkdir(mode=0o700)
        self._env = {**os.environ, "HOME": str(base), "XDG_RUNTIME_DIR": str(runtime)}
        for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
            self._env.pop(name, None)
        self._program = base / "calls"
        flags = ["-D_GNU_SOURCE", "-static", "-O2", "-Wall"]
        compile_it = ["gcc", *flags, "-o", str(self._program), str(HERE / "calls.c")]
        subprocess.run(compile_it, check=True)
        self._inst = base / "inst"
        self._serdab("new", str(self._inst))
        shutil.copy(self._program, self._inst / "image/bin/calls")
        config = self._inst / "Occlum.json"
        settings = json.loads(config.read_text())
        settings["serdab"] = {"runtime_mounts": {"types": ["unionfs"]}}
        config.write_text(json.dumps(settings))
        for path in (self._inst / "image/mnt", self._inst / "l", self._inst / "u"):
            path.mkdir()
        self._serdab("-C", str(self._inst), "build")

    def _serdab(self, *words: str) -> str:
        # Every refusal is a line for the operator: thousands of them here.
        done = subprocess.run(
            [*SERDAB, "-q", *words], env=self._env, check=True, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return done.stdout

    def bare(self, caller: int, listener: int) -> Figures:
        words = ["bare", self._rounds, str(caller), str(listener)]
        done = subprocess.run(
            [str(self._program), *words], check=True, text=True, stdout=subprocess.PIPE
        )
        return read(done.stdout)

    def inside(self, caller: int, listener: int) -> Figures:
        """Run it inside: all of ours is on one processor, the program moves itself."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {listener})
        try:
            words = ("inside", self._rounds, str(caller))
            return read(self._serdab("-C", str(self._inst), "run", "/bin/calls", *words))
        finally:
            os.sched_setaffinity(0, before)

    def usable_us(self) -> float:
        """Return how long it takes from a mount(2) of a union to a file made in it; unpinned."""
        out = self._serdab("-C", str(self._inst), "run", "/bin/calls", "mounts", "20")
        return read(out)["unionfs_usable"]


def measure(bench: Bench, caller: int, listener: int, *, times: int) -> tuple[Figures, Figures]:
    """Return the medians of several runs, of the bare listener and inside."""
    outside: dict[str, list[float]] = defaultdict(list)
    inside: dict[str, list[float]] = defaultdict(list)
    for _ in range(times):
        for into, found in (
            (outside, bench.bare(caller, listener)),
            (inside, bench.inside(caller, listener)),
        ):
            for name, value in found.items():
                into[name].append(value)
    return (
        {name: statistics.median(values) for name, values in outside.items()},
        {name: statistics.median(values) for name, values in inside.items()},
    )


def show(title: str, outside: Figures, inside: Figures) -> None:
    print(title)
    print(f"  bare listener in C          {outside['bare']:8.2f} us")
    for name in REFUSED:
        ratio = inside[name] / outside["bare"]
        print(f"  refused: {name:<18} {inside[name]:8.2f} us  {ratio:5.2f} times bare")
    for name, value in (
        ("outside", outside["getppid"]),
        ("any filter", outside["getppid_filter"]),
        ("inside", inside["getppid"]),
    ):
        ratio = value / outside["getppid"]
        print(f"  getppid, {name:<18} {value:8.1f} ns  {ratio:5.2f} times outside")


def missed(where: str, outside: Figures, inside: Figures) -> list[str]:
    """Return the bounds that did not hold."""
    out = []
    for name in REFUSED:
        ratio = inside[name] / outside["bare"]
        if ratio > MOST_TIMES_BARE:
            out.append(
                f"{where}: refused {name}: {ratio:.2f} times bare, at most {MOST_TIMES_BARE}"
            )
    ratio = inside["getppid"] / outside["getppid_filter"]
    if ratio > MOST_TIMES_FILTERED:
        out.append(f"{where}: getppid: {ratio:.2f} times filtered, at most {MOST_TIMES_FILTERED}")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.calls", description="cost of intercepted calls")
    parser.add_argument("--short", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    rounds, times = (1000, 3) if options.short else (3000, 7)
    processors = sorted(os.sched_getaffinity(0))
    base = Path(tempfile.mkdtemp(prefix="serdab-calls-"))
    wrong: list[str] = []
    try:
        bench = Bench(base, rounds)
        places = {"on one processor": (processors[0], processors[0])}
        if len(processors) > 1:
            places["on two processors"] = (processors[0], processors[1])
        for where, (caller, listener) in places.items():
            outside, inside = measure(bench, caller, listener, times=times)
            show(f"caller and listener {where}", outside, inside)
            wrong += missed(where, outside, inside)
        usable_us = statistics.median(bench.usable_us() for _ in range(times))
        print(f"unionfs mounted and usable    {usable_us:8.1f} us")
        if usable_us > MOST_MOUNT_US:
            wrong.append(f"unionfs: {usable_us:.0f} us, at most {MOST_MOUNT_US:.0f}")
    finally:
        shutil.rmtree(base)
    for line in wrong:
        print(f"bound missed: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
