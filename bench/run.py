# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.run``: time every workload on every contender, print ratios, keep the figures.

Contenders take turns within each workload and the order rotates from round to round, so a machine
that slows down slows everybody. The table shows medians; a ratio is Serdab's rate over the better
rival's, so more than 1 is faster. Figures go to ``bench/results/`` as JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench.contenders import NAMES, RIVALS, Contender, is_installed, make_contender
from bench.workloads import BYTES, MIB, WORKLOADS, Scale, Workload

RESULTS: Final = Path(__file__).resolve().parent / "results"
Rates = dict[str, dict[str, list[float]]]


@contextmanager
def memory_directory() -> Iterator[Path]:
    """A directory on a tmpfs of its own (root), or on the shared one."""
    base = Path(tempfile.mkdtemp(prefix="serdab-bench-", dir="/dev/shm"))
    own = os.geteuid() == 0
    try:
        if own:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "bench", base], check=True)
        yield base
    finally:
        if own:
            subprocess.run(["umount", "-l", base], check=False)
        shutil.rmtree(base, ignore_errors=True)


def pack_standard_library(folder: Path, *, limit: int | None) -> tuple[Path, int]:
    """Make an archive of the running Python's standard library; return it and its entry count."""
    top = Path(sysconfig.get_path("stdlib"))
    names = sorted(
        str(path.relative_to(top))
        for path in top.rglob("*")
        if not {"site-packages", "dist-packages", "__pycache__"} & set(path.parts)
    )[:limit]
    archive = folder / "stdlib.tar"
    with tarfile.open(archive, "w") as tar:
        for name in names:
            tar.add(top / name, name, recursive=False)
    return archive, len(names)


def measure(workload: Workload, contender: Contender, scale: Scale) -> float:
    """Return the rate of one run, in MB/s or operations a second."""
    if workload.cold:
        contender.unmount()
        contender.mount()
    gc.collect()
    started_s = time.perf_counter()
    amount = workload.run(contender.mount_point, scale)
    elapsed_s = time.perf_counter() - started_s
    return amount / elapsed_s / (1e6 if workload.unit == BYTES else 1)


def run_rounds(
    contenders: Sequence[Contender], workloads: Sequence[Workload], scale: Scale, rounds: int
) -> tuple[Rates, dict[str, int]]:
    """Return the rates by workload and contender, and the servers' peak memory in KiB."""
    rates: Rates = {work.name: {one.name: [] for one in contenders} for work in workloads}
    peaks: dict[str, int] = {one.name: 0 for one in contenders}
    for number in range(rounds):
        shift = number % len(contenders)
        order = [*contenders[shift:], *contenders[:shift]]
        for one in order:
            clean(one)
        for workload in workloads:
            for one in order:
                rate = measure(workload, one, scale)
                rates[workload.name][one.name].append(rate)
                peaks[one.name] = max(peaks[one.name], one.memory_peak_kib())
            shown = ", ".join(
                f"{one.name} {rates[workload.name][one.name][-1]:,.0f}" for one in order
            )
            print(f"round {number + 1}: {workload.name}: {shown} {workload.unit}", file=sys.stderr)
    return rates, peaks


def clean(contender: Contender) -> None:
    """Empty the mounted file system: each round starts alike."""
    for entry in list(contender.mount_point.iterdir()):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def render(rates: Rates, workloads: Sequence[Workload], names: Sequence[str]) -> str:
    """Return the markdown table: medians, and the ratio to the better rival."""
    lines = [
        f"| workload | unit | {' | '.join(names)} | ratio |",
        f"|---|---|{'---:|' * len(names)}---:|",
    ]
    for work in workloads:
        medians = {name: statistics.median(rates[work.name][name]) for name in names}
        cells = " | ".join(f"{medians[name]:,.0f}" for name in names)
        ratio = ratio_to_rivals(medians)
        lines.append(f"| {work.name} | {work.unit} | {cells} | {ratio or '-'} |")
    return "\n".join(lines)


def ratio_to_rivals(medians: dict[str, float]) -> str:
    """Return Serdab's rate over the better rival's, with two decimals; empty without either."""
    rivals = [medians[name] for name in RIVALS if name in medians]
    if "serdab" not in medians or not rivals:
        return ""
    return f"{medians['serdab'] / max(rivals):.2f}"


def describe_machine() -> dict[str, object]:
    """Return what a reader of the figures wants to know of the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--short", action="store_true", help="little work, two rounds, for CI")
    parser.add_argument("--rounds", type=int, help="default 5, short 2")
    parser.add_argument("--contenders", default="serdab,gocryptfs,securefs", help="comma-joined")
    parser.add_argument("--only", default="", help="workloads whose name holds this text")
    parser.add_argument("--output", type=Path, help="the JSON file; default bench/results/…")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = parse_arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that clean-up runs
    names = options.contenders.split(",")
    unknown = [name for name in names if name not in NAMES or not is_installed(name)]
    if unknown:
        print(f"bench: not known or not installed: {', '.join(unknown)}", file=sys.stderr)
        return 2
    workloads = [work for work in WORKLOADS if options.only in work.name]
    rounds = options.rounds or (2 if options.short else 5)
    with ExitStack() as stack:
        base = stack.enter_context(memory_directory())
        archive, entries = pack_standard_library(base, limit=500 if options.short else None)
        scale = Scale(
            big_file_bytes=(128 if options.short else 1024) * MIB,
            random_reads=5_000 if options.short else 30_000,
            small_files=1_000 if options.short else 10_000,
            small_file_bytes=1024,
            archive=archive,
            archive_entries=entries,
        )
        contenders = []
        for name in names:
            one = make_contender(name, base)
            one.create()
            stack.callback(one.abandon)
            one.mount()
            contenders.append(one)
        rates, peaks = run_rounds(contenders, workloads, scale, rounds)
        versions = {one.name: one.version() for one in contenders}
        for one in contenders:
            one.unmount()
    print(render(rates, workloads, names))
    print("\npeak memory of the server, MiB: "
          + ", ".join(f"{name} {peaks[name] / 1024:,.0f}" for name in names))  # fmt: skip
    output = options.output or RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": describe_machine(),
        "versions": versions,
        "rounds": rounds,
        "short": options.short,
        "archive_entries": entries,
        "peak_memory_kib": peaks,
        "rates": rates,
    }
    output.write_text(json.dumps(record, indent=1) + "\n")
    print(f"figures: {output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
