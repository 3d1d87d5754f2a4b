# SPDX-License-Identifier: Apache-2.0
"""Checks of single values that both configuration files have in common."""

from __future__ import annotations

import posixpath

from serdab.config.strict import Section


def check_absolute(section: Section, name: str, value: str, hint: str) -> str:
    """Require an absolute path without ``..``; return its shortest form.

    One rule for each field that names a path inside: other spellings of a path are that path, and
    only ``..`` is refused, which means another place once there are links.
    """
    if not value.startswith("/") or ".." in value.split("/"):
        raise section.refuse(name, "an absolute path without ..", repr(value), hint)
    return "/" + posixpath.normpath(value).lstrip("/")


def check_absolutes(
    section: Section, name: str, values: tuple[str, ...], hint: str
) -> tuple[str, ...]:
    """Require a list of paths as ``check_absolute`` does each."""
    return tuple(
        check_absolute(section, f"{name}[{index}]", value, hint)
        for index, value in enumerate(values)
    )


def check_entry_points(section: Section, name: str, values: tuple[str, ...]) -> tuple[str, ...]:
    """Require prefixes of paths inside; return their shortest form."""
    hint = 'a prefix of the programs that may be started, as in "/bin"'
    return check_absolutes(section, name, values, hint)


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
    """Require the absolute path of a mount point; return its shortest form."""
    return check_absolute(section, name, value, 'as in "/host"')
