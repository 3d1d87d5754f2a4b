# SPDX-License-Identifier: Apache-2.0
"""``make posix``: suites of others, and our own fuzz, on everything that we serve.

Each suite runs on the kernel's file system, on ``serdab mount``, on a union that its server alone
mounts, and inside an instance (there beside the tmpfs in it). What fails on ours and not on the
kernel's is a difference; one that ``known.md`` does not list ends this with status 1. Suites are
programs of others and no part of Serdab: they are taken from where ``--suites`` says, built as
their own READMEs say, or from PATH.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Protocol

from demos.apps.sealed import Failure, Sealed, sealed_instance
from tests.posix.outcome import KNOWN, Known, Outcome, differences, load_known
from tests.posix.places import HostPlace, InsidePlace, MountedUnion, fill_for_suites, is_on_ext4

PLACES: Final = ("mount", "union", "inside")
#: What tells a suite, and what to give for it.
SUITES: Final = {
    "pjdfstest": "its checkout, with the program built (it needs openssl)",
    "fsx": "the program, as xfstests has it in ltp/",
    "fsstress": "the program, as LTP or xfstests has it",
    "ltp": "where LTP was installed (the directory with testcases/bin)",
}
_DEPTH: Final = 3
_SHOWN: Final = 5


class Place(Protocol):
    def drive(self, suite: str, where: Path) -> str:
        """Return what drive.sh says of a suite."""


def find_suite(name: str, folder: Path | None) -> Path | None:
    """Return where a suite lies."""
    candidates = [folder] if folder else []
    for depth in range(1, _DEPTH + 1):
        candidates += sorted(folder.glob("/".join(["*"] * depth))) if folder else []
    for path in candidates:
        match name:
            case "pjdfstest":
                is_it = os.access(path / "pjdfstest", os.X_OK) and (path / "tests").is_dir()
            case "ltp":
                is_it = (path / "testcases/bin").is_dir()
            case _:
                is_it = path.name == name and path.is_file() and os.access(path, os.X_OK)
        if is_it:
            return path.resolve()
    program = shutil.which(name) if name in ("fsx", "fsstress") else None
    return Path(program).resolve() if program else None


def report(suite: str, place: str, ours: Outcome, theirs: Outcome, known: list[Known]) -> bool:
    """Print what differs; return whether all of it is known."""
    found = differences(ours, theirs)
    unknown = {
        name: why
        for name, why in found.items()
        if not any(line.fits(suite, place, name) for line in known)
    }
    print(
        f"{suite} {place}: {ours}; the kernel's own: {theirs}; "
        f"{len(found)} different, {len(unknown)} of them unknown",
        flush=True,
    )
    for name, why in sorted(unknown.items()):
        print(f"    {name}: {why[:300]}")
    on_both = sorted(ours.failed.keys() & theirs.failed.keys())
    for name in on_both[:_SHOWN]:
        print(f"    on the kernel's own too: {name}: {theirs.failed[name][:100]}")
    if not ours.passed:
        print(f"    {suite} {place}: nothing passed: it did not run")
    return not unknown and bool(ours.passed)


@contextmanager
def place_of(name: str, base: Path, suites: list[Path]) -> Iterator[tuple[Place, Place]]:
    """Yield one of ours and the kernel's that it is compared with."""
    kernel = base / f"kernel-{name}"
    kernel.mkdir()
    with ExitStack() as stack:
        if name == "union":
            folder = base / "served"
            folder.mkdir()
            union = MountedUnion(folder, lambda source: (source / "below").mkdir())
            stack.callback(union.close)
            yield HostPlace(union.path / "below"), HostPlace(kernel)
            return
        instance = stack.enter_context(sealed_instance())
        fill_for_suites(instance, suites if name == "inside" else [])
        if name == "inside":
            yield InsidePlace(instance, "/root"), InsidePlace(instance, "/dev/shm")
        else:
            mounted = stack.enter_context(instance.mounted("--allow-other"))
            yield HostPlace(mounted), HostPlace(kernel)
        instance.fsck()


def fuzz(name: str, base: Path, seconds: int) -> bool:
    """Run our own fuzz in a place; return whether all was alike."""
    here = [sys.executable, "-m", "tests.posix.fuzz"]
    limits = ["--seconds", str(seconds)]
    with ExitStack() as stack:
        theirs = base / "theirs"
        theirs.mkdir(exist_ok=True)
        beside = [theirs, "--on-disk"] if is_on_ext4(theirs) else [theirs]
        if name == "union":
            folder = base / "fuzzed"
            folder.mkdir()
            union = MountedUnion(folder, lambda _: None)
            stack.callback(union.close)
            status = subprocess.run([*here, union.path, *beside, *limits], check=False).returncode
            return status == 0
        instance = stack.enter_context(sealed_instance())
        fill_for_suites(instance, [])
        if name == "mount":
            mounted = stack.enter_context(instance.mounted("--allow-other"))
            status = subprocess.run([*here, mounted, *beside, *limits], check=False).returncode
            return status == 0
        return fuzz_inside(instance, limits)


def fuzz_inside(instance: Sealed, limits: list[str]) -> bool:
    script = 'mkdir -p /root/f /dev/shm/f && cd /posix && exec python3 -m tests.posix.fuzz "$@"'
    try:
        done = instance.inside("/bin/sh", "-c", script, "sh", "/root/f", "/dev/shm/f", *limits)
    except Failure as failure:
        print(failure)
        return False
    print(done.output, end="")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="make posix", description="see docs/testing.md")
    parser.add_argument("--suites", type=Path, help="a directory with the suites of others")
    parser.add_argument("--place", choices=PLACES, action="append", help="not all of them")
    parser.add_argument("--suite", choices=(*SUITES, "fuzz"), action="append")
    parser.add_argument("--seconds", type=int, default=120, help="of fuzz in each place")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("suites of file systems become other users: run it as root")
    os.umask(0o022)
    known = load_known(KNOWN.read_text())
    wanted = options.suite or [*SUITES, "fuzz"]
    found = {name: find_suite(name, options.suites) for name in SUITES if name in wanted}
    for name, where in found.items():
        print(f"{name}: {where or f'not here; give it with SUITES=DIR: {SUITES[name]}'}")
    there = {name: where for name, where in found.items() if where}
    good = True
    for place in options.place or PLACES:
        started_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="sp-") as folder:
            base = Path(folder)
            base.chmod(0o755)
            if "fuzz" in wanted:
                print(f"fuzz {place}: ", end="", flush=True)
                good &= fuzz(place, base, options.seconds)
            if there:
                with place_of(place, base, list(there.values())) as (ours, theirs):
                    for suite, where in there.items():
                        good &= report(
                            suite, place, Outcome.parse(ours.drive(suite, where)),
                            Outcome.parse(theirs.drive(suite, where)), known,
                        )  # fmt: skip
        print(f"{place}: {time.monotonic() - started_s:.0f} s", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
