# SPDX-License-Identifier: Apache-2.0
"""What a caller's shell may bring along: an odd umask, low limits, no directory to write to."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness.command import Command, describe
from tests.harness.instances import BuiltInstance, MakeInstance
from tests.harness.user import OrdinaryUser

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


def after(words: str, command: Command) -> Command:
    """Return the command as a shell runs it that did ``words`` before."""
    return Command(command.env, ("sh", "-c", f'{words}; exec "$@"', "sh", *command.prefix))


def run(
    command: Command, instance: BuiltInstance, *argv: str
) -> subprocess.CompletedProcess[bytes]:
    return command.run("-C", instance.path, "run", *argv)


def test_a_umask_that_denies_the_owner_leaves_a_volume_that_opens(
    make_instance: MakeInstance, as_user: OrdinaryUser
) -> None:
    instance = make_instance(user=as_user, encrypted=False)
    odd = after("umask 0777", as_user.command)
    program = ("/bin/busybox", "sh", "-c", "umask; echo kept >> /root/x; chmod 600 /root/x")
    assert run(as_user.command, instance, "/bin/true").returncode == 0  # makes cache and state
    for _ in range(2):
        result = run(odd, instance, *program)
        assert result.returncode == 0, describe(result)
        assert result.stdout == b"0777\n"
        assert result.stderr == b""
    result = run(as_user.command, instance, "/bin/cat", "/root/x")
    assert result.stdout == b"kept\nkept\n", describe(result)


def test_a_limit_that_is_met_is_said_and_is_no_defect(
    make_instance: MakeInstance, as_user: OrdinaryUser
) -> None:
    instance = make_instance(user=as_user, encrypted=False)
    result = run(after("ulimit -n 16", as_user.command), instance, "/bin/true")
    assert result.returncode == 125, describe(result)
    assert b"a limit was met" in result.stderr, describe(result)
    assert b"hint: `ulimit -a`" in result.stderr
    assert b"Traceback" not in result.stderr
    assert b"report" not in result.stderr
    assert run(as_user.command, instance, "/bin/true").returncode == 0


WRITES = "i=0; while [ $i -lt 20 ]; do cp /bin/busybox /root/$i || exit 9; i=$((i+1)); done; sync"
"""More in all than the limit below allows in one file; each file is within it."""


def test_a_limit_of_files_is_the_programs_and_not_the_servers(make_instance: MakeInstance) -> None:
    """The limit is 2 or 4 MiB: sh(1) counts in blocks of 512 or 1024 bytes."""
    instance = make_instance(encrypted=False)
    limited = after("ulimit -S -f 4096", instance.command)
    result = run(limited, instance, "/bin/sh", "-c", f"{WRITES}; ulimit -f")
    assert result.returncode == 0, describe(result)
    assert result.stdout.strip() in (b"4096", b"8192"), describe(result)
    program = ("/bin/sh", "-c", "cat /bin/busybox /root/0 /root/1 /root/2 /root/3 > /root/x")
    result = run(after("ulimit -S -f 4096", instance.command), instance, *program)
    assert result.returncode != 0, describe(result)
    # The volume is as it was: what was met is the program's limit.
    assert run(instance.command, instance, "/bin/sh", "-c", "echo x > /root/y").returncode == 0


def test_a_soft_limit_of_files_is_lifted_for_an_ordinary_users_servers_too(
    make_instance: MakeInstance, as_user: OrdinaryUser
) -> None:
    instance = make_instance(user=as_user, encrypted=False)
    limited = after("ulimit -S -f 4096", as_user.command)
    result = run(limited, instance, "/bin/sh", "-c", WRITES)
    assert result.returncode == 0, describe(result)


@pytest.mark.parametrize(
    ("words", "name"),
    [("ulimit -f 4096", b"RLIMIT_FSIZE"), ("ulimit -t 3000", b"RLIMIT_CPU")],
    ids=["file size", "cpu time"],
)
def test_a_limit_that_cannot_be_lifted_is_refused_by_its_name(
    make_instance: MakeInstance, as_user: OrdinaryUser, words: str, name: bytes
) -> None:
    instance = make_instance(user=as_user, encrypted=False)
    result = run(after(words, as_user.command), instance, "/bin/true")
    assert result.returncode == 125, describe(result)
    assert name in result.stderr, describe(result)
    assert run(as_user.command, instance, "/bin/true").returncode == 0


def test_a_cache_that_cannot_be_made_names_its_own_variable(
    make_instance: MakeInstance, tmp_path: Path
) -> None:
    instance = make_instance(encrypted=False)
    (tmp_path / "file").touch()
    env = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    result = instance.command.run("-C", instance.path, "run", "/bin/true", env=env)
    assert result.returncode == 125, describe(result)
    assert b"XDG_CACHE_HOME" in result.stderr, describe(result)


def test_a_current_directory_that_is_gone_is_said(serdab: Command, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    command = after(f"mkdir {gone}; cd {gone}; rmdir {gone}", serdab)
    for words, code in ((("build",), 2), (("run", "/bin/true"), 125), (("status",), 2)):
        result = command.run(*words)
        assert result.returncode == code, describe(result)
        assert b"the current directory is not there any more" in result.stderr


def test_what_a_build_may_not_read_is_named(
    make_instance: MakeInstance, as_user: OrdinaryUser
) -> None:
    instance = make_instance(user=as_user, encrypted=False)
    for path in (instance.path / "image" / "closed", instance.path / "image" / "secret"):
        if path.name == "closed":
            path.mkdir()
        else:
            path.write_text("secret")
        if os.geteuid() == 0:
            os.chown(path, as_user.uid, as_user.gid)
        path.chmod(0)
        result = as_user.command.run("-C", instance.path, "build")
        assert result.returncode == 2, describe(result)
        assert f"the tree holds what cannot be read: {path}".encode() in result.stderr
        if path.is_dir():
            shutil.rmtree(path)
    assert run(as_user.command, instance, "/bin/true").returncode == 0


class TestByteCode:
    @pytest.mark.root
    def test_a_full_disk_leaves_no_half_of_a_module(
        self, make_instance: MakeInstance, tmp_path: Path
    ) -> None:
        instance = make_instance(encrypted=False)
        cache = tmp_path / "cache"
        cache.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", cache], check=True)
        try:
            for size in ("600k", "100m"):
                subprocess.run(["mount", "-o", f"remount,size={size}", cache], check=True)
                result = instance.command.run(
                    "-C", instance.path, "run", "/bin/true", env={"XDG_CACHE_HOME": str(cache)}
                )
                assert result.returncode == 0, describe(result)
                assert result.stderr == b""
        finally:
            subprocess.run(["umount", cache], check=True)

    @pytest.mark.parametrize("module", ["kernel", "nursery", "utf_8"])
    def test_a_module_that_was_cut_short_costs_one_start(
        self, make_instance: MakeInstance, module: str
    ) -> None:
        instance = make_instance(encrypted=False)
        assert run(instance.command, instance, "/bin/true").returncode == 0
        cache = Path(instance.command.env["XDG_CACHE_HOME"])
        (file,) = cache.rglob(f"{module}.*.pyc")
        cut = file.read_bytes()[:400]
        file.unlink()  # other caches have links to it
        file.write_bytes(cut)
        result = run(instance.command, instance, "/bin/true")
        assert result.returncode == 125, describe(result)
        result = run(instance.command, instance, "/bin/true")
        assert result.returncode == 0, describe(result)


@pytest.mark.root
def test_a_full_disk_is_said_and_leaves_nothing_in_the_way(serdab: Command, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", tmp_path], check=True)
    try:
        made = tmp_path / "instance"
        refused = serdab.run("new", made)
        assert refused.returncode == 6, describe(refused)
        assert b"error: new: the host has no room" in refused.stderr
        assert not made.exists()
        subprocess.run(["mount", "-o", "remount,size=64m", tmp_path], check=True)
        assert serdab.run("new", made).returncode == 0
        (made / "image/filling").write_bytes(os.urandom(40 << 20))
        refused = serdab.run("-C", made, "build")
        assert refused.returncode == 6, describe(refused)
        assert b"error: build: the host has no room" in refused.stderr
        (made / "image/filling").unlink()
        assert serdab.run("-C", made, "build").returncode == 0
    finally:
        subprocess.run(["umount", tmp_path], check=True)
