# SPDX-License-Identifier: Apache-2.0
"""How a mount ends: by a signal, by umount, in the middle of work; and what is there afterwards."""

from __future__ import annotations

import contextlib
import mmap
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from serdab.fuse.mounting import mount_host
from serdab.linux.mounts import MountFlag, UmountFlag, mount, mounts_at, umount
from tests.harness.command import describe
from tests.harness.instances import wait_until_unused
from tests.mount_command.mounted import Mounted, Owner, is_mounted, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.userns, pytest.mark.root]

MIB: Final = 1 << 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_everything_durable(
    common_owner: Owner, number: signal.Signals
) -> None:
    mounted = common_owner.start()
    (mounted.path / "root/file").write_bytes(b"unsynced\n")
    done = mounted.end(number)
    assert done.returncode == 0, describe(done)
    assert b"everything is durable" in done.stderr
    assert not is_mounted(mounted.path)
    assert common_owner.inside("/bin/cat", "/root/file") == "unsynced\n"


def test_umount_ends_it_with_everything_durable(owner: Owner) -> None:
    mounted = owner.start()
    mounted.shell('echo unsynced > "$M/root/file"')
    done = mounted.unmount()
    assert done.returncode == 0, describe(done)
    assert b"everything is durable" in done.stderr
    assert owner.inside("/bin/cat", "/root/file") == "unsynced\n"
    owner.fsck()


def test_the_next_command_waits_for_the_last_flush_after_umount(common_owner: Owner) -> None:
    mounted = common_owner.start()
    with (mounted.path / "root/large").open("wb") as file:
        for _ in range(24):
            file.write(os.urandom(MIB))
    umount(str(mounted.path), UmountFlag(0))
    wait_until_unused(common_owner.instance.path)
    assert common_owner.inside("/bin/busybox", "wc", "-c", "/root/large").split()[0] == str(
        24 * MIB
    )
    assert mounted.wait().returncode == 0


def test_ctrl_c_on_a_terminal_ends_it(common_owner: Owner) -> None:
    place, instance = common_owner.place(), common_owner.instance
    command = [
        *common_owner.command, "-C", str(instance.path), "mount", *common_owner.key(), str(place),
    ]  # fmt: skip
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(command[0], command, instance.command.env)
    said = b""
    try:
        while b"mounted union" not in said:
            said += os.read(terminal, 4096)
        os.write(terminal, b"\x03")
        while b"everything is durable" not in said:
            said += os.read(terminal, 4096)
    finally:
        if b"everything is durable" not in said:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, said
    assert not is_mounted(place)


def test_a_hang_up_that_was_ignored_before_stays_ignored(common_owner: Owner) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        mounted = common_owner.start()
    finally:
        signal.signal(signal.SIGHUP, before)
    mounted.process.send_signal(signal.SIGHUP)
    (mounted.path / "root/file").write_bytes(b"still served\n")
    assert mounted.process.poll() is None
    assert mounted.end().returncode == 0


def hold(mounted: Mounted) -> subprocess.Popen[bytes]:
    """Start a process that works in the mount until its standard input ends."""
    (mounted.path / "root/held").unlink(missing_ok=True)
    holder = subprocess.Popen(
        ["sh", "-c", "exec 3>>root/held; echo in; while read -r word; do echo $word >&3; done"],
        cwd=mounted.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"in\n"
    return holder


def test_who_uses_it_may_finish_and_then_it_ends(common_owner: Owner) -> None:
    mounted = common_owner.start()
    with hold(mounted) as holder:
        mounted.process.send_signal(signal.SIGINT)
        wait_until(lambda: not is_mounted(mounted.path), "detached")
        holder.communicate(b"late\n")
    done = mounted.wait()
    assert done.returncode == 0, describe(done)
    assert b"in use" in done.stderr
    assert common_owner.inside("/bin/cat", "/root/held") == "late\n"


def test_a_second_signal_waits_for_nobody(common_owner: Owner) -> None:
    mounted = common_owner.start()
    with hold(mounted) as holder:
        assert holder.stdin is not None
        holder.stdin.write(b"early\n")
        holder.stdin.flush()
        wait_until(lambda: (mounted.path / "root/held").read_bytes() == b"early\n", "written")
        mounted.process.send_signal(signal.SIGINT)
        wait_until(lambda: not is_mounted(mounted.path), "detached")

        def is_over() -> bool:
            mounted.process.send_signal(signal.SIGINT)
            return mounted.process.poll() is not None

        wait_until(is_over, "the end")
        holder.stdin.close()
    assert mounted.wait().returncode == 0
    assert common_owner.inside("/bin/cat", "/root/held") == "early\n"


@pytest.mark.soak
def test_nobody_is_waited_for_without_end(common_owner: Owner) -> None:
    mounted = common_owner.start()
    with hold(mounted) as holder:
        done = mounted.end(signal.SIGTERM)
        holder.communicate()
    assert done.returncode == 0, describe(done)
    assert b"everything is durable" in done.stderr


def test_what_was_stored_through_a_mapping_is_there(common_owner: Owner) -> None:
    mounted = common_owner.start()
    with (mounted.path / "root/mapped").open("w+b") as file:
        file.truncate(MIB)
        with mmap.mmap(file.fileno(), MIB) as mapping:
            mapping[12345:12350] = b"store"
            mounted.process.send_signal(signal.SIGINT)
            wait_until(lambda: not is_mounted(mounted.path), "detached")
    assert mounted.wait().returncode == 0
    shown = common_owner.inside(
        "/bin/sh", "-c", "busybox dd if=/root/mapped bs=1 skip=12345 count=5 2>/dev/null"
    )
    assert shown == "store"


def test_a_copy_in_another_mount_namespace_does_not_keep_it_up(common_owner: Owner) -> None:
    mounted = common_owner.start()
    keeper = subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo in; read -r word"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"in\n"
        (mounted.path / "root/file").write_bytes(b"kept\n")
        mounted.process.send_signal(signal.SIGINT)
        wait_until(lambda: not is_mounted(mounted.path), "unmounted here")

        def is_over() -> bool:
            mounted.process.send_signal(signal.SIGINT)
            return mounted.process.poll() is not None

        wait_until(is_over, "the end")
        done = mounted.wait()
        assert done.returncode == 0, describe(done)
        keeper.communicate(b"\n")
    assert common_owner.inside("/bin/cat", "/root/file") == "kept\n"


def test_a_lazy_umount_ends_it_with_its_last_user(common_owner: Owner) -> None:
    mounted = common_owner.start()
    with hold(mounted) as holder:
        umount(str(mounted.path), UmountFlag.DETACH)
        assert mounted.process.poll() is None
        holder.communicate(b"late\n")
    assert mounted.wait().returncode == 0
    assert common_owner.inside("/bin/cat", "/root/held") == "late\n"


def test_a_forced_umount_ends_it_and_takes_the_mount_away(common_owner: Owner) -> None:
    mounted = common_owner.start()
    with hold(mounted) as holder:
        subprocess.run(["umount", "-f", mounted.path], check=False, capture_output=True)
        done = mounted.wait()
        assert done.returncode == 0, describe(done)
        assert not is_mounted(mounted.path)
        holder.kill()
    common_owner.fsck()


def test_a_mount_that_cannot_be_unmounted_is_said(common_owner: Owner) -> None:
    mounted = common_owner.start()
    (mounted.path / "root/file").write_bytes(b"kept\n")
    mount("none", str(mounted.path), "tmpfs", MountFlag(0), "")
    done = mounted.end()
    umount(str(mounted.path), UmountFlag(0))
    assert done.returncode == 1, describe(done)
    assert b"could not be unmounted" in done.stderr
    assert common_owner.inside("/bin/cat", "/root/file") == "kept\n"


def test_it_is_unmounted_where_a_rename_took_it(owner: Owner) -> None:
    parent = owner.place("parent")
    point = owner.place("parent/point")
    mounted = owner.start(at=point)
    mounted.shell('echo there > "$M/root/file"')
    moved = parent.rename(parent.with_name("moved"))
    try:
        done = mounted.end()
        assert done.returncode == 0, describe(done)
        assert b"in use" not in done.stderr
        assert not is_mounted(moved / "point")
    finally:
        if is_mounted(moved / "point"):
            umount(str(moved / "point"), UmountFlag.DETACH)
    assert owner.inside("/bin/cat", "/root/file") == "there\n"


def test_the_end_of_a_mount_leaves_one_alone_that_has_its_number_by_now(
    common_owner: Owner, tmp_path: Path
) -> None:
    mounted = common_owner.start()
    (number,) = (item.device for item in mounts_at(str(mounted.path)))
    with ExitStack() as stack:
        # It hears of its end when somebody else has mounted already.
        stack.callback(mounted.process.send_signal, signal.SIGCONT)
        mounted.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, mounted.process.pid, os.WSTOPPED)
        umount(str(mounted.path), UmountFlag(0))

        def mount_another() -> int:
            """Mount what nobody serves; return its device number: the lowest that is free."""
            place = Path(tempfile.mkdtemp(dir=tmp_path))
            stack.callback(os.close, mount_host(place, fsname="serdab:another"))
            stack.callback(umount, str(place), UmountFlag.DETACH)
            others.append(place)
            return mounts_at(str(place))[-1].device

        others: list[Path] = []
        wait_until(lambda: mount_another() == number, "the number comes again")
        mounted.process.send_signal(signal.SIGCONT)
        done = mounted.wait()
        assert done.returncode == 0, describe(done)
        assert all(map(is_mounted, others))


def test_a_change_is_committed_after_a_while_without_being_asked(root_owner: Owner) -> None:
    root_owner.inside("/bin/sh", "-c", "echo first > /root/file")
    anchor = root_owner.instance.path / "run/mount/__ROOT/anchor"
    before = anchor.read_bytes()
    mounted = root_owner.start()
    # One change: of two the commit might hold the first alone.
    (mounted.path / "root/file").rename(mounted.path / "root/renamed")
    # The first commit of a session writes the anchor.
    wait_until(lambda: anchor.read_bytes() != before, "a commit")
    mounted.process.kill()
    mounted.wait()
    umount(str(mounted.path), UmountFlag.DETACH)
    assert root_owner.inside("/bin/cat", "/root/renamed") == "first\n"


@pytest.mark.parametrize("round_", range(3))
def test_a_signal_while_it_starts_leaves_nothing_mounted(common_owner: Owner, round_: int) -> None:
    place = common_owner.place()
    process = common_owner.instance.command.popen(
        "-C", common_owner.instance.path, "mount", *common_owner.key(), place
    )
    try:
        # Somewhere in the start; whichever moment, it must hold.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.13 * (round_ + 1))
        process.terminate()
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert not is_mounted(place)
    assert common_owner.instance.run("/bin/true").returncode == 0


SERVE_WITHOUT_DESCRIPTORS: Final = """
import os, resource, sys
from serdab.instance.hostmount import Wanted, serve_on_host
from serdab.vfs.memfs import MemFs
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
# What is left: the two ends of a pipe, and /dev/fuse.
for fd in taken[:3]:
    os.close(fd)
nothing = lambda *_: None
wanted = Wanted(sys.argv[1], "serdab-test")
try:
    serve_on_host(MemFs(), wanted, on_ready=nothing, on_unmounted=nothing, log=nothing)
except OSError as exc:
    print(exc.strerror, exc.filename)
"""


def test_a_mount_that_cannot_be_served_is_taken_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVE_WITHOUT_DESCRIPTORS, str(tmp_path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert done.stdout == b"Too many open files /proc/self/mountinfo\n", describe(done)
        assert not is_mounted(tmp_path)
    finally:
        while is_mounted(tmp_path):
            umount(str(tmp_path), UmountFlag.DETACH)


def interrupted_copy(owner: Owner, megabytes: int, end: str) -> None:
    """Let a copy into the mount be cut off in the middle, and look at what is there then."""
    unit = os.urandom(MIB)
    mounted = owner.start()
    mounted.shell('cat > "$M/root/synced"; sync "$M/root/synced"', stdin=unit)
    copy = subprocess.Popen(
        [*mounted.prefix, "sh", "-c", 'exec cat > "$0/root/copy"', str(mounted.path)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert copy.stdin is not None
    for _ in range(megabytes // 2):
        copy.stdin.write(unit)
    match end:
        case "umount":
            copy.kill()
            copy.communicate()
            mounted.unmount()
        case "lazy umount":
            mounted.detach()
            copy.kill()
            copy.communicate()
        case "signal":
            mounted.process.send_signal(signal.SIGINT)
            wait_until(lambda: not is_mounted(mounted.path), "detached")
            copy.kill()
            copy.communicate()
        case "two signals":
            feeder = threading.Thread(target=feed, args=(copy, unit))
            feeder.start()

            def is_over() -> bool:
                mounted.process.send_signal(signal.SIGINT)
                return mounted.process.poll() is not None

            wait_until(is_over, "the end")
            feeder.join()
            assert copy.wait() != 0, "a copy that was cut off must hear of it"
    assert copy.stderr is not None
    copy.stderr.close()
    done = mounted.wait()
    assert done.returncode == 0, describe(done)
    owner.fsck()
    mounted = owner.start("--read-only")
    mounted.shell('cmp - "$M/root/synced"', stdin=unit)
    size = int(mounted.shell('stat -c %s "$M/root/copy"'))
    assert size >= (megabytes // 2 - 1) * MIB, "what the copy was told to be written is there"
    mounted.shell(f'head -c {MIB} "$M/root/copy" | cmp - "$M/root/synced"')
    if size >= 2 * MIB:
        last = size // MIB - 1
        script = f'dd if="$M/root/copy" bs={MIB} skip={last} count=1 2>/dev/null | cmp - '
        mounted.shell(script + '"$M/root/synced"')
    assert mounted.end().returncode == 0


def feed(copy: subprocess.Popen[bytes], unit: bytes) -> None:
    """Write until nobody reads any more."""
    assert copy.stdin is not None
    try:
        while True:
            copy.stdin.write(unit)
            time.sleep(0.05)
    except BrokenPipeError:
        pass
    finally:
        with contextlib.suppress(BrokenPipeError):
            copy.stdin.close()


ENDS: Final = ("umount", "lazy umount", "signal", "two signals")


@pytest.mark.parametrize("end", ENDS)
def test_a_copy_that_is_cut_off_leaves_a_clean_volume(common_owner: Owner, end: str) -> None:
    interrupted_copy(common_owner, 24, end)


def test_a_copy_of_an_ordinary_user_that_is_cut_off(user_owner: Owner) -> None:
    interrupted_copy(user_owner, 24, "signal")


@pytest.mark.soak
@pytest.mark.parametrize("end", ENDS)
def test_a_copy_of_500_megabytes_that_is_cut_off(owner: Owner, end: str) -> None:
    interrupted_copy(owner, 500, end)
