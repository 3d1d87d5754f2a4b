# SPDX-License-Identifier: Apache-2.0
"""Where a key may be found: its spellings, the processes of a run, and what can be read of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.harness.cprogram import CompileC
from tests.recovery.processes import wait_until

HERE: Final = Path(__file__).parent
_FILES: Final = ("environ", "cmdline", "comm", "maps", "status", "auxv", "mountinfo", "limits")
_MOST: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Secret:
    """A key that must not be seen; ``where`` lists the spellings in which bytes hold it."""

    name: str
    raw: bytes

    def where(self, content: bytes) -> list[str]:
        spellings = {
            "raw": self.raw,
            "hex": self.raw.hex().encode(),
            "HEX": self.raw.hex().upper().encode(),
            "dashed": self.raw.hex("-").encode(),
            "DASHED": self.raw.hex("-").upper().encode(),
        }
        return [f"{self.name}, {name}" for name, item in spellings.items() if item in content]

    @classmethod
    def of_file(cls, name: str, path: Path) -> Secret:
        return cls(name, bytes.fromhex(path.read_text().strip().replace("-", "")))


def tree(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: list[str] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            children += Path(f"/proc/{pid}/task/{task}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []  # it ended meanwhile
    return [pid, *(below for child in children for below in tree(int(child)))]


def settled_tree(pid: int, instance: Path) -> list[int]:
    """Return a process and all below it, once those of the boot are gone that do not stay.

    The server of the init FS ends after the program inside has started, some time or other. One
    that stays has something else of the instance open.
    """
    top = str(instance.resolve())

    def is_leaving(member: int) -> bool:
        fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in "ZX":
            return True
        if Path(f"/proc/{member}/comm").read_text() != "serdab-fs\n":
            return False
        folder = f"/proc/{member}/fd"
        try:
            links = [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]
        except PermissionError:
            return False  # only root may look
        below = [link for link in links if link.startswith(top)]
        return not below or any(link.startswith(f"{top}/build/initfs/") for link in below)

    found: list[int] = []

    def has_settled() -> bool:
        found[:] = tree(pid)
        try:
            # The list of children misses some where one ends while it is read (proc(5)).
            return not any(map(is_leaving, found)) and found == tree(pid)
        except (FileNotFoundError, ProcessLookupError):
            return False  # it ended meanwhile, or closed something

    wait_until(has_settled, "the end of the init FS")
    return found


def role(pid: int) -> str:
    """Return what a process of ours is, by its command line and name; else it is a program."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    own = {"serdab-fs": "fs", "serdab-nursery": "nursery"}
    forked = own.get(Path(f"/proc/{pid}/comm").read_text().strip())
    for mark, name in (
        (b"serdab.libos.main", forked or "kernel"),
        (b"serdab.libos.nursery", forked or "nursery"),
        (b"serdab-launcher", "launcher"),
        (b"serdab.service", "service"),
        (b"\0serdab\0", "command"),
    ):
        if mark in command:
            return name
    return "program"


def shown(pid: int) -> Iterator[tuple[str, bytes]]:
    """Yield what /proc shows of a process, and every file that it has open."""
    for name in _FILES:
        yield name, Path(f"/proc/{pid}/{name}").read_bytes()
    for number in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{number}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue  # a socket, or closed meanwhile
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")  # its own may be closed meanwhile
            is_namespace = target.endswith("]") and ":[" in target  # regular, but not read
            if stat.S_ISREG(os.fstat(fd).st_mode) and not is_namespace:
                yield f"open file {target}", os.pread(fd, _MOST, 0)
        finally:
            os.close(fd)


def memory(pid: int) -> Iterator[bytes]:
    """Yield the readable memory of a process; root may."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, permissions, *rest = line.split()
            if "r" not in permissions or rest[-1].startswith("[v"):
                continue
            start, end = (int(word, 16) for word in span.split("-"))
            file.seek(start)
            try:
                yield file.read(end - start)
            except OSError:
                continue  # a mapping beyond the end of its file


def files_below(*tops: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield every regular file below directories, with its content."""
    for top in tops:
        for path in sorted(top.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield path, path.read_bytes()


@pytest.fixture(scope="session")
def dump_program(compile_c: CompileC) -> Path:
    return compile_c((HERE / "dump.c").read_text())
