# SPDX-License-Identifier: Apache-2.0
"""POSIX ACLs on the root of an instance: other users inside are bound by them, and they last."""

from __future__ import annotations

import select
import signal
import subprocess

import pytest

from serdab.vfs.acl import GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry, dump_acl
from tests.harness.command import Started
from tests.recovery.processes import find_family
from tests.sandbox.conftest import Box

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


def test_who_an_acl_names_may_read_and_nobody_else(hosted: Box) -> None:
    acl = dump_acl(
        [AclEntry(USER_OBJ, 6), AclEntry(USER, 4, 9), AclEntry(GROUP_OBJ, 0), AclEntry(MASK, 4),
         AclEntry(OTHER, 0)]
    ).hex()  # fmt: skip
    read = "for u in 9 10; do /bin/probe as $u /bin/probe read /a/f; done"
    said = hosted.out(
        "/bin/sh", "-c",
        f"umask 0; /bin/busybox mkdir /a; echo x > /a/f; chmod 600 /a/f; "
        f"/bin/probe setxattr /a/f system.posix_acl_access {acl}; stat -c %a /a/f; "
        f"/bin/probe setxattr /a system.posix_acl_default {acl}; echo x > /a/g; stat -c %a /a/g; "
        f"{read}",
    ).split("\n")  # fmt: skip
    if not hosted.is_root:
        # The only id that there is is the owner's; the kernel knows nobody else.
        assert said == ["EINVAL", "600", "EINVAL", "666", "EINVAL", "EINVAL"]
        return
    assert said == ["ok", "640", "ok", "640", "ok", "EACCES"]
    again = hosted.out("/bin/sh", "-c", f"{read}; /bin/probe as 9 /bin/probe read /a/g")
    assert again.split("\n") == ["ok", "EACCES", "ok"]


def test_a_path_that_is_known_asks_nothing_whoever_walks_it(hosted: Box) -> None:
    """The root of a FUSE mount has an ACL that is asked for each time; so ours is another inode."""
    script = "while read x; do test -d /bin && echo $x; done"
    whose = ["/bin/probe", "as", "9"] if hosted.is_root else []
    command = [*hosted.command.prefix, "-C", str(hosted.path), "run", *whose]
    with Started(
        [*command, "/bin/sh", "-c", script], env=hosted.command.env,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
    ) as process:  # fmt: skip
        assert answer(process, b"known\n") == b"known\n"
        server = find_family(process.pid, hosted.path).volume
        server.kill(signal.SIGSTOP)
        try:
            assert answer(process, b"still\n") == b"still\n"
        finally:
            server.kill(signal.SIGCONT)
            process.communicate(timeout=60)


def answer(process: subprocess.Popen[bytes], line: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    ready, _, _ = select.select([process.stdout], [], [], 60)
    assert ready, "nothing was answered"
    return process.stdout.readline()
