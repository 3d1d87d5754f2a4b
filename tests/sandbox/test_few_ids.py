# SPDX-License-Identifier: Apache-2.0
"""Root of a user namespace, as in a container without the machine's root: euid 0 with few ids."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest

from tests.harness import namespaceroot
from tests.harness.command import Command, describe
from tests.harness.instances import BuiltInstance, MakeInstance
from tests.harness.user import OrdinaryUser

pytestmark = [pytest.mark.fuse, pytest.mark.userns, pytest.mark.root]


@dataclass(frozen=True, slots=True)
class Container:
    """An instance of root of a user namespace; ``before`` are words of a shell in it."""

    instance: BuiltInstance
    user: OrdinaryUser
    count: int
    before: str = ":"

    def command(self, *prefix: str) -> Command:
        words = self.user.command.prefix
        serdab = words[words.index("--") + 1 :] if "--" in words else words
        return Command(
            self.user.command.env,
            (
                sys.executable,
                str(namespaceroot.__file__),
                *map(str, (self.count, self.user.uid, self.user.gid)),
                "sh", "-c", f'{self.before} && exec "$@"', "sh", *prefix, *serdab,
            ),
        )  # fmt: skip

    def run(self, *words: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[bytes]:
        return self.command(*prefix).run("-C", self.instance.path, *words)


@pytest.fixture(params=[1, 65536])
def container(
    request: pytest.FixtureRequest, make_instance: MakeInstance, as_user: OrdinaryUser
) -> Container:
    instance = make_instance(user=as_user, encrypted=False)
    return Container(instance, as_user, request.param)


def test_it_runs_with_the_ids_that_are_there(container: Container) -> None:
    program = "echo kept > /root/x; cat /root/x; cat /proc/self/uid_map; chown 7 /root/x && echo 7"
    result = container.run("run", "/bin/busybox", "sh", "-c", program)
    many = container.count > 1
    assert result.returncode == (0 if many else 1), describe(result)
    expected = ["kept", "0", "0", str(container.count), *(["7"] if many else [])]
    assert result.stdout.decode().split() == expected, describe(result)


def test_it_builds(container: Container) -> None:
    result = container.run("build")
    assert result.returncode == 0, describe(result)
    nested = ("unshare", "--user", "--map-root-user")  # root of one namespace further in
    result = container.run("run", "/bin/busybox", "true", prefix=nested)
    assert result.returncode == 0, describe(result)


def test_doctor_says_which(container: Container) -> None:
    result = container.run("--json", "doctor")
    found = {one["feature"]: one for one in json.loads(result.stdout)["findings"]}
    many = container.count > 1
    assert found["id maps"]["present"] == many, describe(result)
    words = "65536 ids of this user namespace" if many else "one id only"
    assert words in found["id maps"]["detail"]


def test_the_machines_root_is_not_put_into_a_sandbox(make_instance: MakeInstance) -> None:
    instance = make_instance(encrypted=False)
    script = str(namespaceroot.__file__)
    prefix = (sys.executable, script, "65536", "0", "0", *instance.command.prefix)
    command = Command(instance.command.env, prefix)
    result = command.run("-C", instance.path, "run", "/bin/busybox", "true")
    assert result.returncode == 125, describe(result)
    assert b"machine's root" in result.stderr, describe(result)


def test_user_namespaces_that_are_forbidden_are_named(container: Container) -> None:
    forbidden = replace(container, before="echo 0 > /proc/sys/user/max_user_namespaces")
    result = forbidden.run("run", "/bin/busybox", "true")
    assert result.returncode == 125, describe(result)
    assert b"max_user_namespaces" in result.stderr, describe(result)
    assert b"Traceback" not in result.stderr
    found = json.loads(forbidden.run("--json", "doctor").stdout)["findings"]
    assert [one["present"] for one in found if one["feature"] == "user namespaces"] == [False]


def test_a_masked_proc_is_named(container: Container) -> None:
    masked = replace(container, before="mount -t tmpfs none /proc/tty")
    result = masked.run("run", "/bin/busybox", "true")
    assert result.returncode == 125, describe(result)
    assert b"/proc" in result.stderr, describe(result)
    assert b"masked" in result.stderr, describe(result)
    found = json.loads(masked.run("--json", "doctor").stdout)["findings"]
    (proc,) = [one for one in found if one["feature"] == "a new /proc"]
    assert not proc["present"]
    assert "/proc/" in proc["detail"]
