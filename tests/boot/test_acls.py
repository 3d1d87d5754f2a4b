# SPDX-License-Identifier: Apache-2.0
"""POSIX ACLs on the root of an instance: other users inside are bound by them, and they last."""

from __future__ import annotations

import pytest

from serdab.vfs.acl import GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry, dump_acl
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
