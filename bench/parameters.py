# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.parameters``: what chunk size, hash and compression cost and bring.

Two sweeps on a tmpfs, each served through the kernel as an instance is: chunk sizes of the writable
volume, and chunk size, hash and compression of the read-only image. Rounds go through all variants
in turn; the tables show medians. From these the defaults of the format were chosen
(docs/adr/, "chunk size, hash and compression").
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import sysconfig
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench import workloads
from bench.contenders import Serdab
from bench.mount_serdab import create
from bench.run import RESULTS, describe_machine, measure, memory_directory, pack_standard_library
from bench.workloads import BYTES, MIB, OPS, Scale, Workload
from serdab.crypto.hashes import HashAlgorithm
from serdab.sefs.imagebuild import ImageOptions

KIB: Final = 1024
Table = dict[str, dict[str, list[float]]]

VOLUME_WORK: Final = (
    Workload("write + fsync, MB/s", BYTES, cold=False, run=workloads.write_big),
    Workload("read, cold, MB/s", BYTES, cold=True, run=workloads.read_big),
    Workload("random 4 KiB read, cold, /s", OPS, cold=True, run=workloads.read_random),
    Workload("create small, /s", OPS, cold=False, run=workloads.create_small),
    Workload("read small, cold, /s", OPS, cold=True, run=workloads.read_small),
    Workload("remove small, /s", OPS, cold=False, run=workloads.remove_small),
)
IMAGE_WORK: Final = (
    Workload("read, cold, MB/s", BYTES, cold=True, run=workloads.read_big),
    Workload("random 4 KiB read, cold, /s", OPS, cold=True, run=workloads.read_random),
    Workload("ls -lR, cold, /s", OPS, cold=True, run=workloads.list_tree),
    Workload("grep -r, cold, /s", OPS, cold=True, run=workloads.grep_tree),
)


class Variant(Serdab):
    """Serdab with other parameters than an instance has."""

    def create_with(
        self,
        *,
        source: Path | None = None,
        image: ImageOptions | None = None,
        chunk_bytes: int | None = None,
    ) -> None:
        create(self.cipher, source=source, image=image, chunk_bytes=chunk_bytes)


def sweep_volume(base: Path, scale: Scale, rounds: int) -> Table:
    """Return the rates of the writable volume by chunk size."""
    table: Table = {}
    for _ in range(rounds):
        for size_kib in (16, 32, 64, 128, 256):
            with ExitStack() as stack:
                one = Variant(base, f"volume-{size_kib}-{time.monotonic_ns()}")
                stack.callback(one.abandon)
                one.create_with(chunk_bytes=size_kib * KIB)
                one.mount()
                note(table, f"{size_kib} KiB", VOLUME_WORK, one, scale)
                one.unmount()
                note_value(table, f"{size_kib} KiB", "stored, MB", stored_bytes(one.cipher) / 1e6)
            wipe(one)
    return table


def sweep_image(base: Path, scale: Scale, source: Path, rounds: int) -> Table:
    """Return what each combination of chunk size, hash and compression costs and brings."""
    table: Table = {}
    plans = [
        (size_kib, algorithm, level)
        for size_kib in (16, 32, 64, 128, 256)
        for algorithm in (HashAlgorithm.SHA256, HashAlgorithm.BLAKE3)
        for level in (0, 3)
    ]
    plans += [(128, HashAlgorithm.BLAKE3, 1), (128, HashAlgorithm.BLAKE3, 9)]
    for _ in range(rounds):
        for size_kib, algorithm, level in plans:
            name = f"{size_kib} KiB, {algorithm.name}, zstd {level}"
            with ExitStack() as stack:
                one = Variant(base, f"image-{time.monotonic_ns()}")
                stack.callback(one.abandon)
                started_s = time.perf_counter()
                options = ImageOptions(chunk_size=size_kib * KIB, hash=algorithm, zstd_level=level)
                one.create_with(source=source, image=options)
                note_value(table, name, "build, s", time.perf_counter() - started_s)
                note_value(table, name, "stored, MB", stored_bytes(one.cipher) / 1e6)
                one.mount()
                note(table, name, IMAGE_WORK, one, scale)
                one.unmount()
            wipe(one)
    return table


def note(table: Table, name: str, work: Sequence[Workload], one: Serdab, scale: Scale) -> None:
    for workload in work:
        note_value(table, name, workload.name, measure(workload, one, scale))


def note_value(table: Table, name: str, column: str, value: float) -> None:
    table.setdefault(name, {}).setdefault(column, []).append(value)


def stored_bytes(cipher: Path) -> int:
    return sum(path.stat().st_size for path in cipher.rglob("*") if path.is_file())


def wipe(one: Serdab) -> None:
    """Give the memory back."""
    for path in sorted(one.cipher.parent.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def render(table: Table) -> str:
    """Return the markdown table of medians."""
    columns = list(next(iter(table.values())))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, values in table.items():
        medians = [statistics.median(values[column]) for column in columns]
        cells = " | ".join(f"{one:,.2f}" if one < 20 else f"{one:,.0f}" for one in medians)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def write_source(top: Path, scale: Scale) -> None:
    """Write what the images hold: the standard library, and one big file, half of it text."""
    workloads.untar(top, scale)
    noise = random.Random(1).randbytes(MIB)
    library = b"".join(path.read_bytes() for path in sorted((top / "tree").glob("*.py")))
    with open(top / "big", "wb") as file:
        for number in range(scale.big_file_bytes // MIB):
            start = number * 65536 % (len(library) - MIB)
            body = noise if number % 2 else library[start : start + MIB]
            file.write(number.to_bytes(8, "little") + distinct(body, number)[8:])


def distinct(body: bytes, number: int) -> bytes:
    """Return a block in which every page differs from all others, so that none is stored once."""
    pages = bytearray(body)
    for offset in range(0, len(pages), 4096):
        pages[offset + 8 : offset + 16] = (number << 20 | offset).to_bytes(8, "big")
    return bytes(pages)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.parameters", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=256, help="size of the big file")
    parser.add_argument("--only", choices=("volume", "image"))
    options = parser.parse_args(argv)
    tables: dict[str, Table] = {}
    with memory_directory() as base:
        archive, entries = pack_standard_library(base, limit=None)
        scale = Scale(options.megabytes * MIB, 20_000, 5_000, 1024, archive, entries)
        if options.only != "image":
            tables["volume"] = sweep_volume(base, scale, options.rounds)
        if options.only != "volume":
            source = base / "source"
            source.mkdir()
            write_source(source, scale)
            tables["image"] = sweep_image(base, scale, source, options.rounds)
    for name, table in tables.items():
        print(f"\n{name}\n\n{render(table)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    output = RESULTS / f"parameters-{time.strftime('%Y%m%d-%H%M%S')}.json"
    record = {
        "machine": describe_machine(),
        "stdlib": sysconfig.get_path("stdlib"),
        "tables": tables,
    }
    output.write_text(json.dumps(record, indent=1) + "\n")
    print(f"figures: {output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
