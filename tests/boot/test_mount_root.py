# SPDX-License-Identifier: Apache-2.0
"""MountRootFS (363), called by an init of our own in every way the contract speaks of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sandbox.conftest import Place

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

INIT = Path(__file__).parent / "init.c"


@pytest.fixture(scope="session")
def init_program(compile_c: Callable[..., Path]) -> Path:
    return compile_c(INIT.read_text())


@pytest.fixture(scope="module")
def scripted(
    place: Place, probe_program: Path, init_program: Path
) -> Callable[..., tuple[int, list[str], bytes]]:
    """Return ``scripted(words, program, ...)``: boot with an init that does what the words say.

    The instance is built once and again with each script; returned are the exit status, the lines
    on standard output and standard error.
    """
    box = place.build(probe_program)
    shutil.copy(init_program, box.path / "initfs/bin/init")

    def run(
        words: str, *argv: str, key: Path | None = None, options: tuple[str, ...] = ()
    ) -> tuple[int, list[str], bytes]:
        (box.path / "initfs/etc").mkdir(exist_ok=True)
        script = box.path / "initfs/etc/script"
        script.write_text(words)
        script.chmod(0o644)
        if (box.path / "run").exists():
            box.command.ok("-C", box.path, "reset", "--yes")
        keyed = ("--image-key", str(key)) if key else ()
        box.command.ok("-C", box.path, "build", *keyed)
        result = box.command.run("-C", box.path, "run", *keyed, *options, *argv)
        return result.returncode, result.stdout.decode().splitlines(), result.stderr

    return run


Scripted = Callable[..., tuple[int, list[str], bytes]]


@pytest.fixture(scope="session")
def key(place: Place) -> Path:
    path = place.base / "image.key"
    if not path.exists():
        place.command.ok("gen-image-key", path)
    return path


class TestArguments:
    def test_null_mounts_what_is_configured(self, scripted: Scripted) -> None:
        assert scripted("null", "/bin/echo", "on")[:2] == (0, ["null ok", "on"])

    def test_an_empty_config_mounts_what_is_configured(self, scripted: Scripted) -> None:
        assert scripted("config", "/bin/echo", "on")[:2] == (0, ["config ok", "on"])

    def test_bad_arguments_are_refused_and_change_nothing(self, scripted: Scripted) -> None:
        words = "short long badkey badconfig badstring null"
        code, lines, _ = scripted(words, "/bin/echo", "on")
        assert lines == [
            "short EINVAL",
            "long E2BIG",
            "badkey EFAULT",
            "badconfig EFAULT",
            "badstring EFAULT",
            "null ok",
            "on",
        ]
        assert code == 0

    def test_it_works_once_and_the_second_call_changes_nothing(self, scripted: Scripted) -> None:
        code, lines, _ = scripted("null env config", "/bin/sh", "-c", "echo $OCCLUM")
        assert (code, lines) == (0, ["null ok", "config EPERM", "yes"])


class TestMembers:
    def test_init_s_environment_wins_over_the_default(self, scripted: Scripted) -> None:
        code, lines, _ = scripted("env config", "/bin/sh", "-c", "echo $OCCLUM $TEST $PATH")
        assert code == 0
        assert lines[1].startswith("NO 1234 /usr/local/sbin:")

    def test_an_entry_point_replaces_the_list(self, scripted: Scripted) -> None:
        code, lines, err = scripted("entry=/bin/echo config", "/bin/true")
        assert (code, lines) == (126, ["config ok"]), err
        assert scripted("entry=/bin/echo config", "/bin/echo", "x")[:2] == (0, ["config ok", "x"])

    def test_a_host_directory_of_init_s_choice(self, scripted: Scripted, tmp_path: Path) -> None:
        shown = Path("/usr/share/zoneinfo")
        code, lines, err = scripted(f"source={shown} target=/opt config", "/bin/ls", "/opt")
        assert code == 0, err
        assert "UTC" in lines

    def test_a_private_directory_is_not_shown(self, scripted: Scripted) -> None:
        code, lines, err = scripted("source=build config", "/bin/true")
        assert (code, lines) == (125, ["config EIO"])
        assert b"never shown" in err

    def test_an_upper_layer_of_init_s_choice(self, scripted: Scripted) -> None:
        code, lines, err = scripted("upper=run/other config", "/bin/echo", "on")
        assert (code, lines) == (0, ["config ok", "on"]), err

    def test_init_writes_secrets_into_the_new_root(self, scripted: Scripted) -> None:
        code, lines, err = scripted("null secret", "/bin/cat", "/root/secret")
        assert (code, lines) == (0, ["null ok", "secret ok", "from init"]), err


class TestInit:
    def test_an_init_that_fails_ends_the_boot(self, scripted: Scripted) -> None:
        code, lines, err = scripted("null exit=3", "/bin/echo", "never")
        assert (code, lines) == (125, ["null ok"]), err
        assert b"init" in err
        assert b"exit status 3" in err

    def test_an_init_that_mounts_nothing_ends_the_boot(self, scripted: Scripted) -> None:
        code, lines, err = scripted("exit=0", "/bin/echo", "never")
        assert (code, lines) == (125, [])
        assert b"MountRootFS" in err


class TestKeys:
    def test_the_key_reaches_init_and_opens_the_image(self, scripted: Scripted, key: Path) -> None:
        assert scripted("null", "/bin/echo", "on", key=key)[:2] == (0, ["null ok", "on"])

    def test_a_failure_before_the_switch_may_be_retried(
        self, scripted: Scripted, key: Path
    ) -> None:
        code, lines, err = scripted("nokey wrongkey null", "/bin/echo", "on", key=key)
        assert (code, lines) == (0, ["nokey EIO", "wrongkey EIO", "null ok", "on"]), err

    def test_a_wrong_key_is_named_as_such(self, scripted: Scripted, key: Path) -> None:
        code, lines, err = scripted("wrongkey", "/bin/true", key=key)
        assert (code, lines) == (125, ["wrongkey EIO"])
        assert b"[wrong-key]" in err

    def test_no_key_is_named_as_such(self, scripted: Scripted, key: Path) -> None:
        code, lines, err = scripted("nokey", "/bin/true", key=key)
        assert (code, lines) == (125, ["nokey EIO"])
        assert b"[wrong-key]" in err
        assert b"--image-key" in err

    def test_the_key_is_nowhere_in_the_processes(self, scripted: Scripted, key: Path) -> None:
        text = key.read_text().strip()
        script = "cat /etc/image_key; cat /proc/*/cmdline /proc/*/environ; echo end"
        code, lines, err = scripted("null", "/bin/sh", "-c", script, key=key)
        assert code == 0, err
        assert text not in "\n".join(lines)
