# SPDX-License-Identifier: Apache-2.0
"""The API to embed, used by a script of its own as an embedder would."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.harness.command import describe
from tests.sandbox.conftest import Box

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


@pytest.fixture
def run_script(hosted: Box) -> object:
    """Return ``run_script(text)``: run Python with ``pal`` and the instance's path at hand."""

    def run(text: str) -> list[str]:
        script = "import os, signal, sys, threading\nfrom serdab import pal, errors\n"
        script += f"PATH = {str(hosted.path)!r}\n" + textwrap.dedent(text)
        prefix = hosted.command.prefix[: hosted.command.prefix.index("-m")]
        result = subprocess.run(
            [*prefix, "-c", script],
            env=hosted.command.env,
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert result.returncode == 0, describe(result)
        return result.stdout.decode().splitlines()

    return run


def test_one_boot_runs_many_programs(run_script: object) -> None:
    lines = run_script(  # type: ignore[operator]
        """
        with pal.init(PATH) as instance:
            for number in range(3):
                status = instance.exec(["/bin/sh", "-c", f"exit {number}"])
                print(status.code, status.signal, status.shell)
            print(instance.exec(["/bin/sh", "-c", "kill -15 $$"]))
        """
    )
    assert lines == ["0 None 0", "1 None 1", "2 None 2", "ExitStatus(code=None, signal=15)"]


def test_programs_run_side_by_side_and_are_waited_for_by_threads(run_script: object) -> None:
    lines = run_script(  # type: ignore[operator]
        """
        with pal.init(PATH) as instance:
            r, w = os.pipe()
            reader = instance.create_process(["/bin/cat"], stdin=r)
            os.close(r)
            out = {}
            def work(number):
                out[number] = instance.exec(["/bin/sh", "-c", f"sleep 0.1; exit {number}"]).code
            threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
            [t.start() for t in threads]
            [t.join() for t in threads]
            print(sorted(out.items()) == [(n, n) for n in range(8)])
            os.write(w, b"through\\n")
            os.close(w)
            print(reader.wait().code)
        """
    )
    assert sorted(lines) == ["0", "True", "through"]


def test_programs_of_one_instance_see_each_other(run_script: object) -> None:
    lines = run_script(  # type: ignore[operator]
        """
        with pal.init(PATH) as instance:
            sleeper = instance.create_process(["/bin/sleep", "1000"])
            instance.exec(["/bin/sh", "-c",
                "until cat /proc/[0-9]*/comm | /bin/busybox grep -x sleep; do :; done"])
            sleeper.kill(signal.SIGKILL)
            print(sleeper.wait().signal)
        """
    )
    assert lines == ["sleep", "9"]


def test_errors_are_values_with_their_kind(run_script: object) -> None:
    lines = run_script(  # type: ignore[operator]
        """
        with pal.init(PATH) as instance:
            for path in ("/bin/none", "/etc/x", "bin/sh", "/bin"):
                try:
                    instance.exec([path])
                except errors.Error as exc:
                    print(exc.kind, exc.exit_code)
            print(instance.exec(["/bin/true"]).code)
        """
    )
    assert lines == ["not-found 127", "not-allowed 126", "usage 2", "not-allowed 126", "0"]


def test_destroy_asks_before_it_kills(run_script: object) -> None:
    lines = run_script(  # type: ignore[operator]
        """
        instance = pal.init(PATH)
        r, w = os.pipe()
        polite = instance.create_process(["/bin/sh", "-c",
            "trap 'echo asked; exit 0' TERM; echo on; while :; do sleep 0.05; done"], stdout=w)
        os.read(r, 10)
        instance.destroy()
        print(os.read(r, 10).decode().strip())
        """
    )
    assert lines == ["asked"]


def test_what_was_measured_is_told(run_script: object) -> None:
    lines = run_script(  # type: ignore[operator]
        """
        with pal.init(PATH) as instance:
            print(*sorted({item.stage for item in instance.measured}))
        print(pal.get_version())
        """
    )
    assert lines[0] == "config initfs rootfs signed"


def test_the_environment_and_directory_may_be_given(run_script: object) -> None:
    lines = run_script(  # type: ignore[operator]
        """
        with pal.init(PATH) as instance:
            instance.exec(["/bin/sh", "-c", "echo $EXAMPLE $SECRET; pwd"],
                          env={"EXAMPLE": "1", "SECRET": "2"}, cwd="/tmp")
        """
    )
    assert lines == ["1", "/tmp"]


def test_our_processes_show_their_memory_to_nobody(run_script: object) -> None:
    if sys.platform != "linux":
        return
    lines = run_script(  # type: ignore[operator]
        """
        def owners(pid):
            try:
                owner = os.stat(f"/proc/{pid}/status").st_uid
                # Afterwards: who has ended has no memory any more, and neither one nor the other.
                command = open(f"/proc/{pid}/cmdline", "rb").read()
                found = {owner} if b"python" in command else set()
                for task in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{task}/children") as file:
                        for child in map(int, file.read().split()):
                            found |= owners(child)
            except (FileNotFoundError, ProcessLookupError):
                return set()  # it ended meanwhile, as those of the init stage do
            return found
        with pal.init(PATH) as instance:
            children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
            print(set().union(*(owners(int(child)) for child in children)))
        """
    )
    assert lines == ["{0}"]


def test_after_the_end_everything_is_refused_and_nothing_hangs(run_script: object) -> None:
    lines = run_script(  # type: ignore[operator]
        """
        instance = pal.init(PATH)
        sleeper = instance.create_process(["/bin/sleep", "1000"])
        ends = []
        thread = threading.Thread(target=lambda: ends.append(sleeper.wait()))
        thread.start()
        instance.destroy()
        thread.join()
        instance.destroy()
        print(ends[0].signal, sleeper.wait().signal)
        sleeper.kill()
        try:
            instance.exec(["/bin/true"])
        except errors.Error as exc:
            print(exc.stage, exc.message)
        """
    )
    assert lines == ["15 15", "down the instance is no more"]
