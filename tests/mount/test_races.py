# SPDX-License-Identifier: Apache-2.0
"""Callers that make it hard: signals, other threads, sudden death. No wrong mount, none left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.cprogram import CompileC
from tests.harness.instances import BuiltInstance, MakeInstance
from tests.mount.conftest import HERE, KEY, Mounter

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

UPPERS = 20


@pytest.fixture
def racing(make_instance: MakeInstance, compile_c: CompileC) -> BuiltInstance:
    flags = ("-static", "-D_GNU_SOURCE", "-pthread")
    racer = compile_c((HERE / "racer.c").read_text(), flags=flags)

    def fill(image: Path) -> None:
        (image / "mnt").mkdir()

    instance = make_instance(encrypted=False, programs={"/bin/racer": racer}, fill=fill)
    (instance.path / "d").mkdir()
    (instance.path / "d/marker").write_text("here")
    return instance


@pytest.mark.parametrize(
    ("mode", "rounds"),
    [("storm", 100), ("options", 40), ("target", 60), ("killed", 60), ("threads", 20)],
)
def test_a_hostile_caller_gets_no_wrong_mount(
    racing: BuiltInstance, mode: str, rounds: int
) -> None:
    done = racing.run("/bin/racer", mode, str(rounds))
    assert done.returncode == 0, done.stderr.decode()
    found = done.stdout.decode().split()
    assert found[:4] == ["wrong", "0", "left", "0"], done.stdout.decode() + done.stderr.decode()
    if mode == "storm":
        assert found[4:] == ["rang", "1"]


def test_two_hundred_mounts_at_once(racing: BuiltInstance) -> None:
    done = racing.run("/bin/racer", "many", "200")
    assert done.stdout.decode().split() == ["wrong", "0", "left", "200"]


@pytest.mark.parametrize("mounter", ["root"], indirect=True)
def test_many_uppers_stand_over_one_lower_at_the_same_time(mounter: Mounter) -> None:
    for name in ("l", *(f"u{number}" for number in range(UPPERS))):
        mounter.folder(name)
    mounter.calls("mount", "x", "/mnt", "sefs", "0", f"dir=l,key={KEY}", "write", "/mnt/f", "low")
    script = "\n".join(
        f"mkdir -p /tmp/{n} && mount -t unionfs -o lowerdir=l,upperdir=u{n},key={KEY} none "
        f"/tmp/{n} && cat /tmp/{n}/f && echo {n} > /tmp/{n}/own &"
        for n in range(UPPERS)
    )
    done = mounter.instance.run("/bin/sh", "-c", f"{script}\nwait; cat /tmp/*/own")
    assert done.returncode == 0, done.stderr.decode()
    out = done.stdout.decode()
    assert out.count("low") == UPPERS, done.stderr.decode()
    own = {int(word) for word in out.replace("low", " ").split()}
    assert own == set(range(UPPERS))
