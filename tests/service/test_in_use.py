# SPDX-License-Identifier: Apache-2.0
"""While a service has the instance, whoever wants it alone is refused, and hears who has it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from pathlib import Path

import pytest

from tests.harness.command import describe
from tests.harness.instances import MakeInstance
from tests.harness.user import OrdinaryUser

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


def test_who_wants_the_instance_alone_hears_of_its_service(make_instance: MakeInstance) -> None:
    made = make_instance()
    assert made.key is not None
    serdab, key = made.command, ("--image-key", str(made.key))
    point = made.path.parent / "point"
    point.mkdir()
    serdab.ok("gen-image-key", made.path.parent / "new.key")
    change = ("--new-image-key", str(made.path.parent / "new.key"))
    serdab.ok("-C", made.path, "start", *key)
    try:
        serdab.ok("-C", made.path, "exec", "/bin/sh", "-c", "echo a > /root/a")
        for words, code in (
            (("run", *key, "/bin/true"), 125),
            (("start", *key), 5),
            (("mount", *key, str(point)), 5),
            (("fsck", *key), 5),
            (("rebind", *key), 5),
            (("rekey", *key, *change), 5),
            (("reset", "--yes"), 5),
        ):
            result = serdab.run("-C", made.path, *words)
            assert result.returncode == code, describe(result)
            assert b"service, process " in result.stderr or b"as a service" in result.stderr
            assert b"running since" in result.stderr, describe(result)
    finally:
        serdab.run("-C", made.path, "stop", "-t", "0")


def test_a_service_that_does_not_answer_is_named(make_instance: MakeInstance) -> None:
    made = make_instance(encrypted=False)
    serdab = made.command
    serdab.ok("-C", made.path, "start")
    try:
        service = json.loads(serdab.ok("-C", made.path, "--json", "status"))["pid"]
        os.kill(service, signal.SIGSTOP)
        try:
            result = serdab.run("-C", made.path, "status")
            asked = serdab.popen("-C", made.path, "exec", "/bin/true")
            assert asked.stderr is not None
            waiting = asked.stderr.readline()
        finally:
            os.kill(service, signal.SIGCONT)
        assert result.returncode == 5, describe(result)
        assert f"process {service}, silent".encode() in result.stderr
        # Long before the end it is said what is waited for; and an answer is still taken.
        said = f"waiting for its service, process {service}, to answer\n".encode()
        assert said in result.stderr, describe(result)
        assert waiting.endswith(said)
        _, rest = asked.communicate(timeout=60)
        assert (asked.returncode, rest) == (0, b"")
    finally:
        serdab.run("-C", made.path, "stop", "-t", "0")


def test_a_reset_says_whom_it_waits_for(make_instance: MakeInstance) -> None:
    made = make_instance(encrypted=False)
    assert made.run("/bin/true").returncode == 0
    # As an fs server does that still writes: locked, and by nobody who uses it.
    closing = os.open(made.path / "run", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(closing, fcntl.LOCK_EX)
        reset = made.command.popen("-C", made.path, "reset", "--yes")
        assert reset.stderr is not None
        assert b"waiting for the last run" in reset.stderr.readline()
    finally:
        os.close(closing)
    _, rest = reset.communicate(timeout=60)
    assert (reset.returncode, rest) == (0, b"")


def test_a_log_that_cannot_be_written_is_said(
    make_instance: MakeInstance, as_user: OrdinaryUser
) -> None:
    made = make_instance(user=as_user)
    logs = Path(as_user.env["XDG_STATE_HOME"]) / "serdab/service"
    as_user.run("mkdir", "-p", "-m", "500", logs)
    result = made.command.run("-C", made.path, "start", "--image-key", str(made.key))
    assert result.returncode == 6, describe(result)
    assert b"the log cannot be written" in result.stderr
    assert b"Traceback" not in result.stderr
