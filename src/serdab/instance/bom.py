# SPDX-License-Identifier: Apache-2.0
"""Fills a tree from BOM files: a plan first, then the steps.

Order, as in Occlum: for each BOM its directories, links, copied directories and files; then the
libraries that programs need. The first of equal mkdirs and the last of equal links, directories and
files wins; a listed file wins over a library that was found. Nothing is ever removed from the tree
but what a new entry replaces, and files that are the same are left alone.

A listed program whose libraries are not found is an error; in copied directories it is a warning.
Libraries keep their absolute path; when one lies where its loader would not look by itself, the
loader's cache in the tree (``/etc/ld.so.cache``, or musl's path file) is extended.

Above: ``cli`` (copy-bom). Below: ``bomfile``, ``bomplan``, ``bomneeds``, ``bomsteps``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack

from serdab.errors import Error, UsageError
from serdab.instance.bomfile import load_all
from serdab.instance.bomneeds import Needs
from serdab.instance.bomplan import Plan, Say, plan_bom, require_sources
from serdab.instance.bomsteps import Steps
from serdab.instance.create import templates_dir
from serdab.instance.intree import NoFiles, Tree
from serdab.linux import dirtree
from serdab.linux.dirfd import DirFd
from serdab.linux.outside import Walk
from serdab.structs import frozen


@frozen
class Summary:
    """What was done, in numbers."""

    root: str
    files: int
    libraries: int
    directories: int
    links: int
    copied_bytes: int


def copy_bom(
    bom: str,
    root: str,
    *,
    include_dirs: Iterable[str] = (),
    dry_run: bool = False,
    say: Say,
    tell: Say | None = None,
) -> Summary:
    """Fill ``root``; ``say`` gets warnings, ``tell`` each step.

    Raises:
        UsageError: the BOM, or what it names, is missing (all is named) or malformed.
        MeasurementMismatch: a file has not the hash that the BOM declares.
        Error: listed programs lack libraries; all of them are named at once.
    """
    root = os.path.abspath(root)
    boms = load_all(bom, [*include_dirs, templates_dir()], say)
    with ExitStack() as stack:
        top = _open_root(root, stack)
        if top is not None and _has_content(top):
            say(f"warning: {root} is not empty; what the BOM does not name stays as it is")
        plan = Plan()
        for item in boms:
            plan_bom(plan, item, root, say)
        require_sources(plan)
        if top is None and not dry_run:
            top = stack.enter_context(Walk().make(root))
        tree = None if top is None else Tree(top)
        if dry_run:
            copied = Steps(None, None, "", tell)
        else:
            beside, name = Walk().parent(root)
            copied = Steps(tree, stack.enter_context(beside), name, tell)
        copied.do_listed(plan)
        Needs(plan, tree or NoFiles(), say).add()
        copied.do_libraries(plan)
        copied.do_owners(plan)
    if plan.missing:
        raise Error(
            "libraries are missing",
            stage="copy-bom",
            subject="; ".join(plan.missing),
            expected="every library of the listed programs",
            found=f"{len(plan.missing)} missing",
            hint="install them, list them in the BOM, or set autodep: false for the program",
        )
    return Summary(
        root,
        files=len(plan.files),
        libraries=len(plan.libraries),
        directories=len(plan.directories),
        links=len(plan.links),
        copied_bytes=copied.copied_bytes,
    )


def _open_root(root: str, stack: ExitStack) -> DirFd | None:
    """Open the tree; None if it is not there yet.

    Raises:
        UsageError: it is no directory, or a link where others write, as in an instance.
    """
    try:
        return stack.enter_context(Walk().directory(root))
    except UsageError as exc:
        if isinstance(exc.__cause__, FileNotFoundError):
            return None
        raise


def _has_content(top: DirFd) -> bool:
    """Return whether the tree holds anything but directories."""
    return any(
        not entry.is_dir(follow_symlinks=False)
        for _, entries in dirtree.walk(top)
        for entry in entries
    )
