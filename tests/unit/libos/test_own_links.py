# SPDX-License-Identifier: Apache-2.0
"""Which targets begin with a magic link of the caller's own, and what is left of them."""

from __future__ import annotations

import pytest

from serdab.libos.callerplace import own_link


@pytest.mark.parametrize(
    ("path", "link", "rest"),
    [
        (b"/proc/self/cwd", "cwd", b"."),
        (b"/proc/self/root/a/b", "root", b"a/b"),
        (b"//proc/./thread-self//fd/12/x", "fd/12", b"x"),
        (b"/proc/self/cwd/../x", "cwd", b"../x"),
    ],
)
def test_the_callers_own_links_are_taken(path: bytes, link: str, rest: bytes) -> None:
    assert own_link(path, 77) == (f"/proc/77/{link}", rest)


@pytest.mark.parametrize(
    "path",
    [
        b"proc/self/cwd",
        b"/proc/self",
        b"/proc/self/fd",
        b"/proc/self/fd/x",
        b"/proc/self/fd/1\xb2",
        b"/proc/self/fd/../cwd",
        b"/proc/self/exe",
        b"/proc/self/../1/cwd",
        b"/proc/1/cwd",
        b"/a/proc/self/cwd",
    ],
)
def test_nothing_else_is(path: bytes) -> None:
    assert own_link(path, 77) is None
