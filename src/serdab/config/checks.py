# SPDX-License-Identifier: Apache-2.0
"""Checks of single values that both configuration files have in common."""

from __future__ import annotations

import posixpath

from serdab.config.strict import Section


def is_plain_absolute(path: str) -> bool:
    """Return whether ``path`` is absolute and spelled in its shortest form."""
    return path.startswith("/") and path == "/" + posixpath.normpath(path).lstrip("/")


def check_entry_points(section: Section, name: str, values: tuple[str, ...]) -> tuple[str, ...]:
    """Require absolute paths without ``..``; return them without trailing slashes."""
    out = []
    for index, value in enumerate(values):
        if not value.startswith("/") or ".." in value.split("/"):
            raise section.refuse(
                f"{name}[{index}]",
                "an absolute path without ..",
                repr(value),
                'a prefix of the programs that may be started, as in "/bin"',
            )
        out.append("/" + posixpath.normpath(value).lstrip("/"))
    return tuple(out)


def check_environment(section: Section, name: str, values: tuple[str, ...]) -> tuple[str, ...]:
    """Require ``NAME=value`` items."""
    for index, value in enumerate(values):
        if "=" not in value or value.startswith("="):
            raise section.refuse(f"{name}[{index}]", "NAME=value", repr(value))
    return values


def check_names(section: Section, name: str, values: tuple[str, ...]) -> tuple[str, ...]:
    """Require names of environment variables."""
    for index, value in enumerate(values):
        if not value or "=" in value:
            raise section.refuse(
                f"{name}[{index}]",
                "the name of a variable",
                repr(value),
                "the caller gives the value; trusted values go to env.default",
            )
    return values


def check_target(section: Section, name: str, value: str) -> str:
    """Require the absolute path of a mount point."""
    if not is_plain_absolute(value):
        raise section.refuse(
            name, "an absolute path in its shortest form", repr(value), 'as in "/host"'
        )
    return value
