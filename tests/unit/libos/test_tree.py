# SPDX-License-Identifier: Apache-2.0
"""The mount plan as a value: well-formed steps, and nothing without its attributes."""

from __future__ import annotations

import struct

from serdab.libos.tree import (
    NODEV,
    NOSUID,
    RDONLY,
    HostDirectory,
    Memory,
    Plan,
    TextFile,
    Tree,
    plan,
)
from serdab.structs import replace

STEP = struct.Struct("<BBBBIQHHI")
NEW, CLONE, FUSE, ATTACH, PIVOT = 2, 3, 1, 4, 9
FULL = Tree(
    1,
    host_directories=(HostDirectory("/host", 2), HostDirectory("/data", 3, read_only=True)),
    memory=(Memory("/scratch", 1 << 20),),
    files=(TextFile("/etc/hosts", 0),),
    terminal="/dev/pts/1",
    hostname="box",
)


def steps(made: Plan) -> list[tuple[int, int, str, str]]:
    """Return (operation, attributes, first string, second string) of each step."""
    out = []
    at = 0
    while at < len(made.raw):
        op, _, _, _, _, attr, a, b, total = STEP.unpack_from(made.raw, at)
        text = made.raw[at + STEP.size : at + STEP.size + a + b]
        out.append((op, attr, text[:a].rstrip(b"\0").decode(), text[a:].rstrip(b"\0").decode()))
        assert total % 8 == 0
        assert total >= STEP.size + a + b
        at += total
    assert at == len(made.raw)
    return out


def test_every_step_has_words() -> None:
    made = plan(FULL)
    assert len(steps(made)) == len(made.words)


def test_every_mount_that_is_made_is_nosuid() -> None:
    for op, attr, a, b in steps(plan(FULL)):
        if op in (NEW, CLONE, FUSE):
            assert attr & NOSUID, (a, b)


def test_only_devices_may_act_as_devices() -> None:
    for op, attr, a, _ in steps(plan(FULL)):
        if op in (NEW, CLONE, FUSE) and not attr & NODEV:
            assert a.startswith("/dev/") or a in ("tmpfs", "devpts"), a


def test_the_switch_comes_last() -> None:
    operations = [op for op, *_ in steps(plan(FULL))]
    assert operations.index(PIVOT) == len(operations) - 1
    assert operations.count(PIVOT) == 1


def test_no_directory_of_the_host_is_mounted_as_it_is() -> None:
    taken = [a for op, _, a, _ in steps(plan(FULL)) if op == CLONE]
    assert {
        path for path in taken if not path.startswith("/dev/") and path.startswith("/")
    } == set()


def test_a_source_tree_is_mounted_read_only() -> None:
    made = [attr & RDONLY for op, attr, _, _ in steps(plan(FULL)) if op == FUSE]
    assert made == [0, 0, RDONLY]


def test_with_one_id_the_terminals_have_no_group() -> None:
    def options(tree: Tree) -> str:
        return next(b for op, _, a, b in steps(plan(tree)) if op == NEW and a == "devpts")

    assert "gid=5" in options(FULL)
    assert "gid=" not in options(replace(FULL, has_id_range=False))


def test_a_plan_is_a_function_of_its_tree() -> None:
    assert plan(FULL) == plan(replace(FULL))
