# SPDX-License-Identifier: Apache-2.0
"""The systemd unit: systemd reads it, and the commands in it work as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from serdab.errors import UsageError
from serdab.service.unit import Unit, text_of
from tests.service.conftest import Service

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


def words_of(text: str, name: str, variables: dict[str, str]) -> list[str]:
    """Return the words of a setting as systemd.syntax(7) has them."""
    (line,) = re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)
    words = shlex.split(line.replace("%%", "%"))
    for variable, value in variables.items():
        words = [word.replace(f"${{{variable}}}", value) for word in words]
    return [word.replace("$$", "$") for word in words]


def test_the_commands_in_it_start_and_stop_the_service(stopped: Service) -> None:
    text = stopped.ok("unit")
    runtime = Path(stopped.box.command.env["XDG_RUNTIME_DIR"])
    prefix = stopped.box.command.prefix
    become = prefix[: prefix.index("--") + 1] if "--" in prefix else ()
    env = {"PATH": os.environ["PATH"]} | {
        name: value for name, value in stopped.box.command.env.items() if name.startswith("SERDAB_")
    }
    (home,) = (stopped.box.command.env["HOME"],)
    env |= {"HOME": home, "XDG_RUNTIME_DIR": str(runtime)}
    for setting in re.findall(r"^Environment=(.*)$", text, re.MULTILINE):
        name, _, value = shlex.split(setting)[0].partition("=")
        env[name] = value
    if stopped.box.is_root:
        assert "NoNewPrivileges=yes" in text
        become = ("setpriv", "--no-new-privs", "--")
    address = runtime / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        address.chmod(0o666)
        manager.settimeout(60)
        try:
            process = subprocess.Popen(
                [*become, *words_of(text, "ExecStart", {})],
                env=env | {"NOTIFY_SOCKET": str(address)},
                cwd="/",
                stdin=subprocess.DEVNULL,
            )
            assert b"READY=1" in manager.recv(4096)
        finally:
            address.unlink()
    assert stopped.out("echo on") == "on"
    subprocess.run([*become, *words_of(text, "ExecStop", {})], env=env, cwd="/", check=True)
    assert process.wait(60) == 0


def test_systemd_reads_it(stopped: Service, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    for whose in ("--system", "--user"):
        unit = tmp_path / "serdab-example.service"
        unit.write_text(stopped.ok("unit", whose, "--image-key", "/etc/a key"))
        if whose == "--user":
            (tmp_path / "run").mkdir(mode=0o700)
        result = subprocess.run(
            ["systemd-analyze", whose, "--man=no", "verify", unit],
            env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run")},
            capture_output=True,
            text=True,
            check=False,
        )
        # Where the manager itself cannot be set up there is nothing to learn about the unit.
        ours = [line for line in result.stderr.splitlines() if "serdab-example" in line]
        assert not ours, result.stderr


def test_the_key_is_a_credential_and_no_argument() -> None:
    unit = Unit("/srv/app", ["/usr/bin/serdab"], "/root/app.key", False, {})
    text = text_of(unit)
    assert "LoadCredential=image-key:/root/app.key\n" in text
    words = words_of(text, "ExecStart", {"CREDENTIALS_DIRECTORY": "/run/credentials/app"})
    assert words[-2:] == ["--image-key", "/run/credentials/app/image-key"]


@pytest.mark.parametrize("path", ["/a b", "/a$b", "/a%b", '/a"b', "/a\\b", "/a'b", "/ä", "/a;b"])
def test_names_are_quoted(path: str) -> None:
    text = text_of(Unit(path, ["/usr/bin/serdab"], None, True, {}))
    words = words_of(text, "ExecStart", {})
    assert words[1:3] == ["-C", path]


@pytest.mark.parametrize("path", ["/a\nExecStart=/bin/evil", "/a\x1b[0m", "/a\udcff"])
def test_names_that_cannot_be_written_are_refused(path: str) -> None:
    with pytest.raises(UsageError):
        text_of(Unit(path, ["/usr/bin/serdab"], None, True, {}))
