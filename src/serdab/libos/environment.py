# SPDX-License-Identifier: Apache-2.0
"""The environment a program starts with, and which programs may be started. Pure.

Above: ``programs``, ``boot``. Precedence, high to low: what the caller may set (``untrusted``),
what init gave to MountRootFS, the defaults of the measured configuration.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence

from serdab.errors import NotAllowedError, UsageError

#: While init runs, this is the list of entry points.
INIT_ENTRY_POINTS = ("/bin",)


def name_of(item: bytes) -> bytes:
    """Return the name of ``NAME=value``; the whole item where there is no ``=``."""
    return item.partition(b"=")[0]


def merge_trusted(default: Sequence[bytes], given: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the trusted list after MountRootFS: ``given`` first, then what it does not name."""
    named = {name_of(item) for item in given}
    return (*given, *(item for item in default if name_of(item) not in named))


def combine(
    trusted: Sequence[bytes], untrusted_names: Iterable[bytes], caller: Sequence[bytes]
) -> tuple[bytes, ...]:
    """Return the environment of a program that is started from outside.

    Of the caller's only the listed names are kept, and they win over the trusted ones. Duplicates
    stay, each list keeps its order.
    """
    allowed = frozenset(untrusted_names)
    accepted = [item for item in caller if name_of(item) in allowed]
    overridden = {name_of(item) for item in accepted}
    kept = [item for item in trusted if name_of(item) not in overridden]
    return (*kept, *accepted)


def check_entry_point(path: str, entry_points: Sequence[str]) -> None:
    """Check a program that is started from outside; inside, exec is not restricted.

    The path is compared component by component, symbolic links are not resolved.

    Raises:
        UsageError: it is not absolute, or has a ``..`` component.
        NotAllowedError: it lies under no entry point.
    """
    if not path.startswith("/"):
        raise UsageError(
            "the program must be named by its absolute path inside the image",
            stage="app",
            subject=path,
            expected="a path such as /bin/sh",
            found=path or "nothing",
            hint="nothing is looked up in PATH",
        )
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UsageError(
            "a program's path must not contain '..'",
            stage="app",
            subject=path,
            expected="a path without '..'",
            found=path,
            hint="name it by its plain path inside the image",
        )
    if "\0" in path:
        raise UsageError("a program's path must not contain NUL", stage="app", subject=repr(path))
    for entry in entry_points:
        prefix = [part for part in posixpath.normpath(entry).split("/") if part]
        if parts[: len(prefix)] == prefix:
            return
    raise NotAllowedError(
        "not an entry point",
        stage="app",
        subject=path,
        expected="a path under " + " or ".join(entry_points),
        found=path,
        hint="entry_points in Occlum.json lists them; `serdab build` measures the list",
    )
