# SPDX-License-Identifier: Apache-2.0
"""Files that the command line alone names: never from where programs of the instance write.

A key there can be read inside, a program that signs can be replaced. What the measured
configuration names is another matter: it is signed.
"""

from __future__ import annotations

import os

from serdab.cli.messages import Context
from serdab.errors import UsageError

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    import argparse
    from typing import Final

_FILES: Final = ("sign_key", "image_key", "new_image_key", "pin_file", "owners")
_PROGRAMS: Final = ("sign_tool", "pin_command")


def require_out_of_reach(args: argparse.Namespace, context: Context) -> None:
    """Refuse options that name what programs of the instance can read or replace.

    Raises:
        UsageError: one does.
    """
    given = {name: getattr(args, name, None) for name in (*_FILES, *_PROGRAMS)}
    if given["owners"] == "tree":
        given["owners"] = None  # a word, no file
    if not any(given.values()):
        return
    if not _is_instance_at(context.instance):
        return  # the verb says so, or works without one
    from serdab.instance.reach import reached_part

    for name, value in given.items():
        path = _found(value) if name in _PROGRAMS else value
        if not path or (name not in _PROGRAMS and path == "-"):
            continue
        place = reached_part(context.instance, path)
        if place is not None:
            raise UsageError(
                "programs of this instance can read and replace this file",
                subject=f"--{name.replace('_', '-')} {value}",
                expected="a file outside the host directories that programs see",
                found=place,
                hint="move it to where no hostfs line and no serdab.host_directories shows it; by "
                "default that is anywhere outside the instance directory",
            )


def _is_instance_at(path: str) -> bool:
    from serdab.linux.dirfd import DirFd
    from serdab.linux.outside import is_instance
    from serdab.linux.whereabouts import leads_nowhere

    try:
        with DirFd.at(path) as directory:
            return is_instance(directory.fd)
    except OSError as exc:
        if not leads_nowhere(exc):
            raise
        return False


def _found(program: str | None) -> str | None:
    if not program or os.path.dirname(program):
        return program
    import shutil

    return shutil.which(program)


def notice_of_bom(file: str, root: str, context: Context) -> None:
    """Say of a BOM that programs can write that it is obeyed as it is."""
    from serdab.instance.reach import reached_part

    for instance in (context.instance, os.path.dirname(os.path.realpath(root))):
        if _is_instance_at(instance):
            place = reached_part(instance, file)
            if place is not None:
                context.say(
                    f"notice: {place} lies where programs of the instance can write: what it names "
                    "is copied, whoever wrote it"
                )
            return
