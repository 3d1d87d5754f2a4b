# SPDX-License-Identifier: Apache-2.0
"""One lower layer, generated once, is the root of many instances at the same time (363)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.sampling import WHOLE
from tests.sandbox.conftest import Place

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

BOOTS = 20 if WHOLE else 6
INIT = Path(__file__).parent / "init.c"
#: The first attempt asks for another lower layer than there is.
SCRIPT = "upper=upper lower=../box/lower mac={wrong} config mac={right} config"
SAID = "config EIO\nconfig ok\n"
GENERATE = """
set -e
busybox mount -t sefs -o dir=lower,key={key} none /tmp
cd /tmp
busybox mkdir bin dev etc host lib lib64 opt proc root sys tmp sbin
busybox cp /bin/busybox bin/
for name in sh cat; do busybox ln -s busybox bin/$name; done
echo generated once > etc/note
cd /
busybox umount /tmp
"""


@pytest.mark.sampled
def test_one_lower_is_booted_with_many_uppers_at_the_same_time(
    place: Place, probe_program: Path, compile_c: Callable[..., Path]
) -> None:
    box = place.build(probe_program)
    key = box.path.parent / "many.key"
    place.command.ok("gen-image-key", key)
    box.command.ok("-C", box.path, "build", "--image-key", key)
    lower = box.path / "lower"
    lower.mkdir()
    if place.owner:
        shutil.chown(lower, *place.owner)
    made = box.command.run(
        *("-C", box.path, "run", "--image-key", key, "/bin/sh"),
        stdin=GENERATE.format(key=key.read_text().strip()).encode(),
    )
    assert made.returncode == 0, made.stderr.decode()

    shutil.copy(compile_c(INIT.read_text()), box.path / "initfs/bin/init")
    checked = json.loads(box.command.ok("--json", "fsck", "--image-key", key, lower))
    right = checked[str(lower)]["root-mac"]
    (box.path / "initfs/etc/script").write_text(SCRIPT.format(right=right, wrong="00" * 32))
    (box.path / "initfs/etc/script").chmod(0o644)
    (box.path / "upper").mkdir()
    if place.owner:
        shutil.chown(box.path / "upper", *place.owner)
    box.command.ok("-C", box.path, "reset", "--yes")
    box.command.ok("-C", box.path, "build", "--image-key", key)
    instances = [box.path.parent / f"boot{number}" for number in range(BOOTS)]
    for path in instances:
        subprocess.run(["cp", "-a", box.path, path], check=True)

    def boot(act: str) -> list[str]:
        """Run ``act`` in all of them at once."""
        running = [
            box.command.popen(
                *("-C", path, "run", "--image-key", key),
                *("/bin/sh", "-c", act.format(number)),
            )
            for number, path in enumerate(instances)
        ]
        out = []
        for process in running:
            said, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
            out.append(said.decode())
        return out

    said = boot("cat /etc/note; echo upper {} > /root/own")
    assert said == [SAID + "generated once\n"] * BOOTS
    said = boot("cat /root/own; : {}")
    assert said == [f"{SAID}upper {number}\n" for number in range(BOOTS)]
