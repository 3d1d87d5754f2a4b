# SPDX-License-Identifier: Apache-2.0
"""A service from its start to its end, and the programs it runs without a terminal."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.harness.command import describe
from tests.service.conftest import Service, socket_of, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


def popen(service: Service, *args: str, **more: object) -> subprocess.Popen[bytes]:
    options: dict[str, object] = {
        "env": service.box.command.env,
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        **more,
    }
    return subprocess.Popen(service.words(*args), **options)  # type: ignore[call-overload, no-any-return]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


class TestStart:
    def test_it_returns_when_the_instance_is_ready(self, stopped: Service) -> None:
        pid = stopped.start()
        assert alive(pid)
        assert stopped.out("echo hello") == "hello"
        status = stopped.status()
        assert (status["state"], status["pid"]) == ("running", pid)
        stages = {item["stage"] for item in status["measured"]}  # type: ignore[attr-defined]
        assert stages == {"signed", "config", "initfs", "rootfs"}
        stopped.ok("stop")
        assert stopped.status() == {"state": "stopped", "in_use_by": None}
        wait_until(lambda: not alive(pid), "it does not end")

    def test_it_lets_go_of_everything_of_its_caller(self, stopped: Service, tmp_path: Path) -> None:
        reader, writer = os.pipe()
        held, other = os.pipe()
        os.set_inheritable(other, True)
        result = subprocess.run(
            stopped.words("start"),
            env=stopped.box.command.env,
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=writer,
            close_fds=False,
            check=False,
        )
        os.close(writer)
        os.close(other)
        shown = b""
        while piece := os.read(reader, 4096):  # ends only when nobody holds the other end
            shown += piece
        assert result.returncode == 0, shown
        assert os.read(held, 1) == b""
        for fd in (reader, held):
            os.close(fd)

    def test_a_boot_that_is_refused_says_why_and_leaves_nothing(self, stopped: Service) -> None:
        result = stopped.run("start", "--expect-root", "00" * 32)
        assert result.returncode == 3, describe(result)
        assert b"the root FS is not the expected one" in result.stderr
        assert stopped.status() == {"state": "stopped", "in_use_by": None}
        assert stopped.box.run("/bin/true").returncode == 0

    def test_a_second_start_is_refused_and_names_the_first(self, running: Service) -> None:
        result = running.run("start")
        assert result.returncode == 5, describe(result)
        assert f"process {running.status()['pid']}".encode() in result.stderr
        assert b"serdab exec" in result.stderr

    def test_a_run_is_refused_and_hears_of_exec(self, running: Service) -> None:
        result = running.run("run", "/bin/true")
        assert result.returncode == 125, describe(result)
        assert f"its service, process {running.status()['pid']}".encode() in result.stderr
        assert b"serdab exec" in result.stderr

    def test_many_starts_at_once_make_one_service(self, stopped: Service) -> None:
        starts = [popen(stopped, "start") for _ in range(4)]
        said = [start.communicate(timeout=60)[1] for start in starts]
        assert sorted(start.returncode for start in starts) == [0, 5, 5, 5], said
        assert stopped.out("echo one") == "one"

    def test_it_keeps_running_when_its_session_ends(self, stopped: Service) -> None:
        # As a terminal that is closed: everything in the starter's session gets SIGHUP.
        command = " ".join(f"'{word}'" for word in stopped.words("start"))
        subprocess.run(
            ["setsid", "-w", "sh", "-c", f"{command}; kill -HUP 0"],
            env=stopped.box.command.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        assert stopped.out("echo still") == "still"

    def test_a_starter_that_is_killed_takes_the_boot_along(self, stopped: Service) -> None:
        for delay_s in (0.05, 0.1, 0.15, 0.2):
            start = popen(stopped, "start")
            time.sleep(delay_s)  # any moment of the boot will do
            start.kill()
            start.communicate(timeout=60)

        def is_running() -> bool:
            if stopped.status()["state"] == "running":
                return True
            result = stopped.run("start")
            # The last boot may hold the instance until it has heard that nobody wants it.
            assert result.returncode in (0, 5), describe(result)
            return result.returncode == 0

        wait_until(is_running, "neither runs nor can be started")
        assert stopped.out("echo on") == "on"


class TestExec:
    @pytest.mark.parametrize(
        ("argv", "code"),
        [
            (("/bin/sh", "-c", "exit 7"), 7),
            (("/bin/sh", "-c", "kill -9 $$"), 137),
            (("/bin/none",), 127),
            (("/etc/x",), 126),
            (("/etc",), 126),
            (("sh",), 125),
        ],
    )
    def test_its_exit_codes_are_those_of_run(
        self, running: Service, argv: tuple[str, ...], code: int
    ) -> None:
        result = running.exec(*argv)
        assert result.returncode == code, describe(result)

    def test_without_a_service_it_says_so(self, stopped: Service) -> None:
        result = stopped.box.command.run("--json", "-C", stopped.box.path, "exec", "/bin/true")
        assert result.returncode == 125
        error = json.loads(result.stderr)
        assert (error["error"], error["exit_code"]) == ("not-running", 1)
        assert "serdab start" in error["hint"]

    def test_many_run_side_by_side(self, running: Service) -> None:
        script = "read a; echo $a; exit $a"
        processes = [
            popen(running, "exec", "/bin/sh", "-c", script, stdin=subprocess.PIPE)
            for _ in range(12)
        ]
        wait_until(lambda: len(running.status()["programs"]) == 12, "not all run")  # type: ignore[arg-type]
        for number, process in enumerate(processes):
            out, _ = process.communicate(f"{number}\n".encode(), timeout=60)
            assert (out, process.returncode) == (f"{number}\n".encode(), number)
        assert running.status()["programs"] == []

    def test_streams_are_the_callers_own(self, running: Service) -> None:
        content = os.urandom(1 << 20)
        result = running.exec("/bin/sh", "-c", "cat; echo oops >&2", stdin=content)
        assert result.stdout == content
        assert result.stderr == b"oops\n"

    def test_only_listed_variables_pass_and_the_rest_is_not_even_sent(
        self, running: Service
    ) -> None:
        command = running.box.command
        result = command.run(
            "-C", running.box.path, "exec", "/bin/env",
            env={"SECRET": "s3cr3t", "STABLE": "no", "OVERRIDE": "Y", "EXAMPLE": "a=b", "TERM": ""},
        )  # fmt: skip
        assert set(result.stdout.decode().split()) == {
            "OCCLUM=yes", "PATH=/bin", "STABLE=yes", "OVERRIDE=Y", "EXAMPLE=a=b", "TERM=",
        }  # fmt: skip

    def test_without_a_terminal_a_program_leads_a_group_and_no_session(
        self, running: Service
    ) -> None:
        # The leader of a session may not call setpgid(2), which shells and make do with no error.
        script = "read -r pid _ _ _ group session _ < /proc/$$/stat; echo $((pid - group)) $session"
        assert running.out(script) == "0 1"

    def test_the_umask_is_the_callers(self, running: Service) -> None:
        words = " ".join(f"'{w}'" for w in running.words("exec", "/bin/sh", "-c", "umask"))
        result = subprocess.run(
            ["sh", "-c", f"umask 027; {words}"],
            env=running.box.command.env,
            capture_output=True,
            check=True,
        )
        assert result.stdout.strip() == b"0027"

    def test_signals_reach_the_program(self, running: Service) -> None:
        script = "trap 'echo usr1' USR1; trap 'echo term; exit 9' TERM; echo on; "
        script += "while :; do sleep 0.02; done"
        process = popen(running, "exec", "/bin/sh", "-c", script)
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == b"usr1\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == b"term\n"
        process.communicate(timeout=60)
        assert process.returncode == 9

    def test_a_program_that_signals_its_group_reaches_no_other(self, running: Service) -> None:
        other = popen(running, "exec", "/bin/sh", "-c", "echo on; exec sleep 1000")
        assert other.stdout is not None
        assert other.stdout.readline() == b"on\n"
        assert running.exec("/bin/sh", "-c", "kill -9 0").returncode == 137
        assert running.out("echo fine") == "fine"
        assert other.poll() is None
        other.terminate()
        other.communicate(timeout=60)
        assert other.returncode == 143

    def test_a_killed_client_is_a_hang_up(self, running: Service) -> None:
        process = popen(running, "exec", "/bin/sh", "-c", "echo on; exec sleep 1000")
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        process.kill()
        process.communicate(timeout=60)
        wait_until(lambda: running.status()["programs"] == [], "the program stayed")

    def test_who_does_not_care_about_the_hang_up_is_killed(self, running: Service) -> None:
        if not running.box.is_root:
            return  # it takes its five seconds, whoever asks
        script = "trap '' HUP; echo on; while :; do sleep 0.05; done"
        process = popen(running, "exec", "/bin/sh", "-c", script)
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        process.kill()
        process.communicate(timeout=60)
        wait_until(lambda: running.status()["programs"] == [], "the program stayed")

    def test_what_is_started_in_the_background_outlives_its_client(self, running: Service) -> None:
        name = f"/tmp/alive-{os.getpid()}"
        script = f"(while test ! -e {name}-end; do echo > {name}; sleep 0.02; done) < /dev/null "
        script += "> /dev/null 2>&1 &"
        assert running.exec("/bin/sh", "-c", script).returncode == 0
        running.out(f"rm -f {name}; until test -e {name}; do sleep 0.02; done; echo > {name}-end")


class TestStop:
    def test_what_programs_wrote_is_there_afterwards(self, stopped: Service) -> None:
        stopped.start()
        stopped.out("echo kept > /kept")
        stopped.ok("stop")
        assert stopped.box.out("/bin/cat", "/kept") == "kept"

    def test_programs_are_asked_first_those_of_others_too(self, stopped: Service) -> None:
        stopped.start()
        script = "trap 'echo asked; exit 0' TERM; echo on; while :; do sleep 0.02; done"
        own = popen(stopped, "exec", "/bin/sh", "-c", script)
        assert own.stdout is not None
        assert own.stdout.readline() == b"on\n"
        stray = "trap 'echo asked > /stray; exit 0' TERM; : > /ready; while :; do sleep 0.02; done"
        stopped.out(
            f"rm -f /ready; ({stray}) < /dev/null > /dev/null 2>&1 & "
            "until test -e /ready; do sleep 0.02; done"
        )
        stopped.ok("stop")
        out, _ = own.communicate(timeout=60)
        assert (out, own.returncode) == (b"asked\n", 0)
        assert stopped.box.out("/bin/cat", "/stray") == "asked"

    def test_who_does_not_end_is_killed_after_the_time(self, stopped: Service) -> None:
        stopped.start()
        script = "trap '' TERM; echo on; while :; do sleep 0.05; done"
        stubborn = popen(stopped, "exec", "/bin/sh", "-c", script)
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == b"on\n"
        begun = time.monotonic()
        stopped.ok("stop", "-t", "0.5")
        assert time.monotonic() - begun >= 0.5
        stubborn.communicate(timeout=60)
        assert stubborn.returncode == 137

    def test_a_second_stop_with_less_patience_is_obeyed(self, stopped: Service) -> None:
        stopped.start()
        script = "trap '' TERM; echo on; while :; do sleep 0.05; done"
        stubborn = popen(stopped, "exec", "/bin/sh", "-c", script)
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == b"on\n"
        first = popen(stopped, "stop", "-t", "600")
        wait_until(lambda: stopped.status()["state"] == "stopping", "not stopping")
        refused = stopped.exec("/bin/true")
        assert refused.returncode == 125
        assert b"stopping" in refused.stderr
        stopped.ok("stop", "-t", "0")
        first.communicate(timeout=60)
        assert first.returncode == 0
        stubborn.communicate(timeout=60)

    def test_the_lock_is_free_when_it_returns(self, stopped: Service) -> None:
        for _ in range(2):
            stopped.start()
            stopped.ok("stop", "-t", "0")
            assert stopped.box.run("/bin/true").returncode == 0

    def test_without_a_service_it_says_so(self, stopped: Service) -> None:
        result = stopped.run("stop")
        assert result.returncode == 1
        assert b"not running as a service" in result.stderr
        assert stopped.run("status").returncode == 1

    @pytest.mark.parametrize("time_given", ["-1", "nan", "1e9", "soon"])
    def test_a_time_that_is_none_is_refused(self, stopped: Service, time_given: str) -> None:
        assert stopped.run("stop", "-t", time_given).returncode == 2

    def test_sigterm_to_the_service_is_a_stop(self, stopped: Service) -> None:
        pid = stopped.start()
        stopped.out("echo kept > /kept2")
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not alive(pid), "it does not end")
        assert stopped.box.out("/bin/cat", "/kept2") == "kept"


class TestForeground:
    def test_a_service_manager_hears_how_it_fares(self, stopped: Service) -> None:
        runtime = Path(stopped.box.command.env["XDG_RUNTIME_DIR"])
        address = runtime / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(address))
            address.chmod(0o666)
            manager.settimeout(60)
            try:
                env = stopped.box.command.env | {"NOTIFY_SOCKET": str(address)}
                process = popen(stopped, "start", "--foreground", env=env)
                ready = manager.recv(4096).decode().split("\n")
                assert "READY=1" in ready
                pid = next(line for line in ready if line.startswith("MAINPID=")).split("=")[1]
                assert int(pid) == stopped.status()["pid"]
                assert stopped.out("echo on") == "on"
                process.terminate()
                assert "STOPPING=1" in manager.recv(4096).decode().split("\n")
                process.communicate(timeout=60)
                assert process.returncode == 0
            finally:
                address.unlink()

    def test_a_boot_that_is_refused_has_its_exit_code(self, stopped: Service) -> None:
        result = stopped.run("start", "--foreground", "--expect-root", "00" * 32)
        assert result.returncode == 3, describe(result)

    def test_a_signal_ends_a_boot_that_is_under_way(self, stopped: Service) -> None:
        for moment in range(10):
            process = popen(stopped, "start", "--foreground", start_new_session=True)
            time.sleep(moment * 0.03)  # somewhere; what is asserted holds for all of them
            process.terminate()
            _, said = process.communicate(timeout=60)
            assert process.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM), said
            assert b"error" not in said
        assert stopped.box.run("/bin/true").returncode == 0

    def test_ctrl_c_is_a_stop(self, stopped: Service) -> None:
        process = popen(stopped, "start", "--foreground", start_new_session=True)
        assert process.stderr is not None
        # Whether the last run still writes is said before.
        assert any(b"is ready" in line for line in process.stderr)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert stopped.box.run("/bin/true").returncode == 0


class TestWhereThingsAre:
    def test_nothing_is_added_to_the_instance_directory(self, stopped: Service) -> None:
        stopped.start()
        stopped.ok("stop")
        names = {path.name for path in stopped.box.path.iterdir()}
        assert names <= {"Occlum.json", "image", "initfs", "build", "run"}
        kinds = {stat.S_IFMT(path.lstat().st_mode) for path in stopped.box.path.rglob("*")}
        assert stat.S_IFSOCK not in kinds

    def test_socket_and_log_are_the_users_alone(self, running: Service) -> None:
        runtime = Path(running.box.command.env["XDG_RUNTIME_DIR"]) / "serdab" / "service"
        assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in runtime.iterdir())
        log = Path(str(running.status()["log"]))
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        assert "the instance is ready" in log.read_text()

    def test_a_stop_leaves_no_socket_and_no_lock(self, stopped: Service) -> None:
        runtime = Path(stopped.box.command.env["XDG_RUNTIME_DIR"]) / "serdab" / "service"
        before = set(runtime.iterdir()) if runtime.exists() else set()
        stopped.start()
        # Others that were killed may have left theirs, which may go at any time.
        own = set(runtime.iterdir()) - before
        assert sorted(path.suffix for path in own) == [".lock", ".sock"]
        stopped.ok("stop")
        assert not own & set(runtime.iterdir())

    def test_a_long_runtime_directory_does(self, stopped: Service) -> None:
        base = Path(stopped.box.command.env["XDG_RUNTIME_DIR"])
        deep = base / ("d" * 120)
        deep.mkdir(mode=0o700)
        if not stopped.box.is_root:
            os.chown(deep, base.stat().st_uid, base.stat().st_gid)
        env = {"XDG_RUNTIME_DIR": str(deep)}
        command = stopped.box.command
        assert command.run("-C", stopped.box.path, "start", env=env).returncode == 0
        result = command.run("-C", stopped.box.path, "exec", "/bin/echo", "deep", env=env)
        assert result.stdout == b"deep\n"
        # Somebody who looks in the wrong place hears who has the instance.
        lost = command.run("-C", stopped.box.path, "exec", "/bin/true")
        assert lost.returncode == 125
        assert b"XDG_RUNTIME_DIR" in lost.stderr
        assert command.run("-C", stopped.box.path, "stop", env=env).returncode == 0


class TestOwner:
    def test_root_is_another_user_too(self, running: Service) -> None:
        if running.box.is_root:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
            end.settimeout(60)
            end.connect(str(socket_of(running)))
            assert end.recv(4096) == b""  # not even a greeting
        wait_until(
            lambda: "refused process" in Path(str(running.status()["log"])).read_text(),
            "the refusal is not in the log",
        )

    def test_a_client_trusts_only_its_own_user(self, running: Service) -> None:
        if running.box.is_root:
            return
        command = running.box.command
        as_root = subprocess.run(
            [*command.prefix[command.prefix.index("--") + 1 :], "-C", running.box.path, "status"],
            env=command.env,
            capture_output=True,
            check=False,
        )
        assert as_root.returncode == 3, describe(as_root)
        assert b"another user's" in as_root.stderr
