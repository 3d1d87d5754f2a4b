# SPDX-License-Identifier: Apache-2.0
"""While an instance runs, its keys are found nowhere but in the memory of those who need them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from serdab.instance.layout import Instance
from serdab.instance.measurements import read_measurements
from serdab.libos.volumekey import volume_key
from serdab.trust import platform
from tests.harness.command import describe
from tests.harness.instances import BuiltInstance, MakeInstance
from tests.harness.user import OrdinaryUser
from tests.keys.conftest import Secret, files_below, memory, role, settled_tree, shown
from tests.recovery.processes import wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

MARK: Final = b"a-word-that-must-be-found"
# Mounts under the named key, says so, waits for a line, and shows all that it can read.
SCRIPT: Final = (
    "mount -t sefs -o dir=vol,key=@vault none /mnt && echo on && read go; exec /bin/dump"
)


def prepare(
    make_instance: MakeInstance,
    dump: Path,
    vault: Path,
    *,
    encrypted: bool,
    user: OrdinaryUser | None = None,
) -> BuiltInstance:
    """Return an instance with /bin/dump and the key ``vault`` for mounts at run time."""

    def fill(image: Path) -> None:
        (image / "mnt").mkdir()
        (image / "bin/mount").symlink_to("busybox")

    instance = make_instance(
        encrypted=encrypted, programs={"/bin/dump": dump}, fill=fill, user=user
    )
    instance.command.ok("gen-image-key", vault)
    (instance.path / "vol").mkdir()
    path = instance.path / "Occlum.json"
    config = json.loads(path.read_text())
    keys = [{"name": "vault", "source": str(vault)}, {"name": "auto", "source": "automatic"}]
    config["serdab"] = {"runtime_mounts": {"keys": keys}}
    path.write_text(json.dumps(config))
    (instance.path / "passed").write_text("passed through the host directory")
    if user:
        user.own(instance.path)
    key = ("--image-key", instance.key) if instance.key else ()
    instance.command.ok("-C", instance.path, "build", *key)
    return instance


@contextmanager
def running(
    instance: BuiltInstance, *options: str | Path, stdin: bytes = b""
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the script; its process is ready when this is entered, and ended afterwards."""
    process = subprocess.Popen(
        [*instance.command.prefix, "--log-level", "debug", "-C", instance.path, "run", *options,
         "/bin/sh", "-c", SCRIPT],
        env={**instance.command.env, "EXAMPLE": MARK.decode()},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(stdin)
        process.stdin.flush()
        line = process.stdout.readline()
        if line != b"on\n":
            raise AssertionError(process.communicate(timeout=60))
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def automatic_key(instance: BuiltInstance, monkeypatch: pytest.MonkeyPatch) -> Secret:
    """Return the key that the writable layer has without an image key."""
    monkeypatch.setenv("XDG_STATE_HOME", instance.command.env["XDG_STATE_HOME"])
    measured = read_measurements(Instance(str(instance.path)))
    found = volume_key(
        measured.config,
        None,
        platform=platform.current(),
        mrsigner=measured.mrsigner,
        mrenclave=measured.descriptor.mrenclave(),
    )
    return Secret("automatic key", found.key)


def look_outside(pid: int, instance: Path, secrets: list[Secret]) -> list[str]:
    """Return where a key shows in /proc or the open files of anything on this machine."""
    found = []
    ours: dict[int, str] = {}
    marked = 0
    for process in settled_tree(pid, instance):
        try:
            what = role(process)
            pieces = list(shown(process))
            if what in ("nursery", "launcher", "program"):
                pieces.append(("memory", b"\0".join(memory(process))))
        except (FileNotFoundError, ProcessLookupError):
            continue  # what attached the mount has ended meanwhile
        ours[process] = what
        for name, content in pieces:
            marked += MARK in content
            found += [f"{what}: {name}: {s}" for one in secrets for s in one.where(content)]
    assert marked, "the search finds nothing at all"
    assert set(ours.values()) == {"command", "kernel", "nursery", "fs", "launcher", "program"}
    servers = [b"\0".join(memory(process)) for process, what in ours.items() if what == "fs"]
    for one in secrets:
        # The server of one file system; it may have forgotten the key it derived its own from.
        assert sum(bool(one.where(held)) for held in servers) <= 1, one.name
    for other in filter(str.isdecimal, os.listdir("/proc")):
        for name in ("cmdline", "environ"):
            try:
                content = Path(f"/proc/{other}/{name}").read_bytes()
            except OSError:
                continue  # it ended meanwhile
            found += [f"{other}: {name}: {s}" for one in secrets for s in one.where(content)]
    return found


@pytest.mark.root
@pytest.mark.parametrize("kind", ["file", "stdin", "automatic"])
def test_a_key_is_seen_nowhere(
    kind: str,
    make_instance: MakeInstance,
    dump_program: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vault = tmp_path / "vault.key"  # one in a directory that programs see is refused
    instance = prepare(make_instance, dump_program, vault, encrypted=kind != "automatic")
    secrets = [Secret.of_file("vault", vault)]
    options: tuple[str | Path, ...] = ()
    stdin = b""
    if instance.key is None:
        secrets.append(automatic_key(instance, monkeypatch))
    else:
        secrets.append(Secret.of_file("image key", instance.key))
        options = ("--image-key", "-" if kind == "stdin" else instance.key)
        stdin = instance.key.read_bytes() if kind == "stdin" else b""
    with running(instance, *options, stdin=stdin) as process:
        assert look_outside(process.pid, instance.path, secrets) == []
        seen, said = process.communicate(b"go\n", timeout=60)
        assert process.returncode == 0, said
    assert MARK in seen
    assert (instance.path / "image/bin/busybox").read_bytes()[:4096] in seen
    assert [spelling for one in secrets for spelling in one.where(seen)] == []
    assert [spelling for one in secrets for spelling in one.where(said)] == []
    allowed = {vault, instance.key}
    places = [
        instance.path,
        *(Path(instance.command.env[f"XDG_{name}"]) for name in _DIRECTORIES),
    ]
    found = [
        (path, spelling)
        for path, content in files_below(*places)
        if path not in allowed
        for one in secrets
        for spelling in one.where(content)
    ]
    assert found == []


_DIRECTORIES: Final = ("STATE_HOME", "CACHE_HOME", "CONFIG_HOME", "RUNTIME_DIR")


def test_a_program_of_an_ordinary_user_sees_no_key(
    make_instance: MakeInstance, dump_program: Path, as_user: OrdinaryUser
) -> None:
    vault = as_user.home / "vault.key"
    instance = prepare(make_instance, dump_program, vault, encrypted=True, user=as_user)
    assert instance.key is not None
    secrets = [Secret.of_file("vault", vault), Secret.of_file("image key", instance.key)]
    with running(instance, "--image-key", instance.key) as process:
        seen, said = process.communicate(b"go\n", timeout=60)
        assert process.returncode == 0, said
    assert MARK in seen
    assert b"passed through the host directory" in seen, "the host directory is not shown at all"
    assert [spelling for one in secrets for spelling in one.where(seen + said)] == []


@pytest.mark.root
def test_a_program_attaches_to_nothing_but_its_like(
    make_instance: MakeInstance, dump_program: Path, tmp_path: Path
) -> None:
    instance = prepare(make_instance, dump_program, tmp_path / "vault.key", encrypted=False)
    result = instance.run("/bin/sh", "-c", "sleep 100 & echo $!; exec /bin/dump >/dev/null")
    assert result.returncode == 0, describe(result)
    sibling = result.stdout.decode().strip()
    attached = [line for line in result.stderr.decode().splitlines() if "attached" in line]
    assert attached == [f"attached to {sibling}"]


# What another process of the same user tries on a process of ours; prints what it was allowed.
INTRUDER: Final = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
for pid in map(int, sys.argv[1:]):
    got = []
    if libc.ptrace(16, pid, None, None) == 0:
        got.append("attach")
        os.waitpid(pid, 0x40000000)
        libc.ptrace(17, pid, None, None)
    if libc.ptrace(0x4206, pid, None, None) == 0:
        got.append("seize")
        libc.ptrace(17, pid, None, None)
    for name in ("mem", "environ", "maps", "auxv", "fd/0", "map_files"):
        try:
            path = f"/proc/{pid}/{name}"
            os.listdir(path) if name == "map_files" else os.close(os.open(path, os.O_RDONLY))
            got.append(name)
        except OSError:
            pass
    try:
        pidfd = os.pidfd_open(pid)
        if libc.syscall(438, pidfd, 0, 0) >= 0:
            got.append("pidfd_getfd")
        os.close(pidfd)
    except OSError:
        pass
    print(pid, *got)
"""


def assert_closed(user: OrdinaryUser, ours: list[int]) -> None:
    """Require that another process of the user gets at nothing of these."""
    control = subprocess.Popen(
        [*user.prefix, "sleep", "1000"], env=user.env, stdin=subprocess.DEVNULL
    )
    try:
        # Until then it is root's: setpriv(1), which becomes the user.
        cmdline = Path(f"/proc/{control.pid}/cmdline")
        wait_until(lambda: cmdline.read_bytes().startswith(b"sleep\0"), "the control")
        result = user.run(user.python, "-c", INTRUDER, str(control.pid), *map(str, ours))
    finally:
        control.kill()
        control.wait()
    assert result.returncode == 0, describe(result)
    allowed = {
        int(line.split()[0]): line.split()[1:] for line in result.stdout.decode().splitlines()
    }
    # Where nobody may trace anybody (Yama) this shows little; the owner, below, shows it all.
    if not Path("/proc/sys/kernel/yama/ptrace_scope").exists():
        assert "mem" in allowed[control.pid]
    del allowed[control.pid]
    assert {pid: words for pid, words in allowed.items() if words} == {}
    assert set(allowed) == set(ours)
    for pid in ours:
        assert os.stat(f"/proc/{pid}/environ").st_uid == 0


def test_the_supervisor_is_closed_to_its_own_user(
    make_instance: MakeInstance, as_user: OrdinaryUser
) -> None:
    instance = make_instance(user=as_user)
    assert instance.key is not None
    process = subprocess.Popen(
        [*instance.command.prefix, "-C", instance.path, "run", "--image-key", instance.key,
         "/bin/sh", "-c", "echo on; sleep 1000"],
        env=instance.command.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        ours = [p for p in settled_tree(process.pid, instance.path) if role(p) != "program"]
        roles = sorted({role(pid) for pid in ours})
        assert roles == ["command", "fs", "kernel", "launcher", "nursery"]
        assert_closed(as_user, ours)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_a_service_is_closed_and_shows_no_key(
    make_instance: MakeInstance, as_user: OrdinaryUser
) -> None:
    instance = make_instance(user=as_user)
    assert instance.key is not None
    secret = Secret.of_file("image key", instance.key)
    command, path = instance.command, instance.path
    started = command.run("--json", "-C", path, "start", "--image-key", instance.key)
    assert started.returncode == 0, describe(started)
    try:
        ours = settled_tree(json.loads(started.stdout)["pid"], path)
        assert {role(pid) for pid in ours} == {"service", "fs", "kernel", "launcher", "nursery"}
        assert_closed(as_user, ours)
        if os.geteuid() == 0:
            shows = [
                (role(pid), name, secret.where(content))
                for pid in ours
                for name, content in shown(pid)
            ]
            assert [item for item in shows if item[2]] == []
        done = command.run("-C", path, "exec", "/bin/sh", "-c", "env; cat /etc/image_key; true")
        assert done.returncode == 0, describe(done)
        assert secret.where(done.stdout + done.stderr + started.stdout + started.stderr) == []
        places = [as_user.home, Path(command.env["XDG_RUNTIME_DIR"])]
        kept = [
            where for where, content in files_below(*places)
            if where != instance.key and secret.where(content)
        ]  # fmt: skip
        assert kept == []
    finally:
        stopped = command.run("-C", path, "stop")
    assert stopped.returncode == 0, describe(stopped)


def cores(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.glob("*core*")}


@pytest.mark.root
def test_no_process_of_ours_leaves_a_core_file(make_instance: MakeInstance, tmp_path: Path) -> None:
    instance = make_instance()
    assert instance.key is not None
    folders = (tmp_path, instance.path, Path("/"))  # ours work in /, a relative pattern's place
    before = cores(*folders)
    options: tuple[str | Path, ...] = ("-C", instance.path, "run", "--image-key", instance.key)
    process = subprocess.Popen(
        ["/bin/sh", "-c", 'ulimit -c unlimited; exec "$@"', "sh",
         *instance.command.prefix, *options,
         "/bin/sh", "-c", "echo on; sleep 1000"],
        cwd=tmp_path, env=instance.command.env,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        family = settled_tree(process.pid, instance.path)
        victims = [pid for pid in family if role(pid) in ("fs", "kernel", "nursery")]
        assert len(victims) >= 3
        # Stopped first, so that none ends because another did before it has its own signal.
        for number in (signal.SIGSTOP, signal.SIGABRT, signal.SIGCONT):
            for pid in (process.pid, *victims):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGABRT
    assert cores(*folders) == before
