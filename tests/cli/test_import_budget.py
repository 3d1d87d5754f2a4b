# SPDX-License-Identifier: Apache-2.0
"""What is imported on the way of every program that starts is paid for at each start.

A module that comes back here costs milliseconds of a processor at every boot (docs/performance.md);
it is to be imported where it is used, not where that is on the way.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serdab.libos.interpreter import import_path
from tests.harness.command import Command, describe
from tests.harness.instances import BuiltInstance, MakeInstance

#: Off the way of each command that starts a program.
COSTLY = (
    "argparse", "ast", "asyncio", "cryptography", "dataclasses", "datetime", "decimal", "dis",
    "gettext", "inspect", "locale", "logging", "msgspec", "pathlib", "platform", "random",
    "shutil", "socket", "string", "subprocess", "tempfile", "textwrap", "typing",
)  # fmt: skip
#: `exec` verifies nothing and reads no configuration.
COSTLY_FOR_EXEC = (*COSTLY, "hashlib", "hmac", "json", "re", "threading", "traceback")
#: Of the kernel process, its nursery and servers. Dependencies bring others.
COSTLY_INSIDE = (
    "argparse", "asyncio", "dataclasses", "gettext", "locale", "pathlib", "random", "shutil",
    "socket", "subprocess", "tempfile",
)  # fmt: skip


def imported(stderr: bytes) -> set[str]:
    """Return what an interpreter says that it has imported (PYTHONPROFILEIMPORTTIME)."""
    found = re.findall(rb"^import time: +\d+ \| +\d+ \| +(\S+)$", stderr, re.MULTILINE)
    return {name.decode() for name in found}


def command_imports(command: Command, *arguments: str | Path) -> set[str]:
    """Return what a command imports, whatever becomes of it. Not by ``-m``, which imports, too."""
    script = "from serdab.cli.door import main; main()"
    environment = {**command.env, "PYTHONPROFILEIMPORTTIME": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    modules = imported(result.stderr)
    assert "serdab.cli.main" in modules, describe(result)
    return modules


@pytest.mark.fuse
@pytest.mark.userns
def test_the_command_run_and_exec(make_instance: MakeInstance) -> None:
    instance: BuiltInstance = make_instance(encrypted=True)
    assert instance.key is not None
    start = ("-C", instance.path)
    modules = command_imports(
        instance.command, *start, "run", "--image-key", instance.key, "/bin/true"
    )
    assert "serdab.pal.foreground" in modules
    assert not modules & set(COSTLY)
    # Nobody answers, which `exec` knows after all of its imports.
    modules = command_imports(instance.command, *start, "exec", "/bin/true")
    assert "serdab.service.client" in modules
    assert not modules & set(COSTLY_FOR_EXEC)


def test_the_kernel_process_and_the_fs_servers() -> None:
    """All that they import, in an interpreter as theirs."""
    code = (
        f"import sys; sys.path += {import_path()!r}; import serdab.libos.main as main;"
        "main._import_all(); print(*sys.modules)"
    )
    environment = {"PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]}
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], env=environment,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    modules = set(result.stdout.decode().split())
    assert {"serdab.libos.kernel", "serdab.sefs.volume"} <= modules, describe(result)
    assert not modules & set(COSTLY_INSIDE)
