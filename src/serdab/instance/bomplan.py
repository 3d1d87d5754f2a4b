# SPDX-License-Identifier: Apache-2.0
"""The plan of a BOM: what will stand at which path of the tree. Reads the sources, writes nothing.

Above: ``bom``. Below: ``bomfile``.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from serdab.errors import UsageError
from serdab.instance.bomfile import Bom, Copy, FileItem, Target

Say = Callable[[str], None]


@dataclass(slots=True)
class PlannedFile:
    """One file to be copied. ``tree`` is the copied directory it came with, or empty."""

    source: str
    digest: str = ""
    autodep: bool = True
    tree: str = ""


@dataclass(slots=True)
class Plan:
    """What will be done, by path inside the tree."""

    directories: dict[str, int | None] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    files: dict[str, PlannedFile] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=dict)
    cached: dict[tuple[str, int], str] = field(default_factory=dict)
    musl_paths: dict[str, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def inside(*parts: str) -> str:
    """Return the path inside the tree that parts name; `..` cannot leave it."""
    return "/" + posixpath.normpath("/" + "/".join(parts)).lstrip("/")


def plan_bom(plan: Plan, bom: Bom, root: str, say: Say) -> None:
    for target in bom.targets:
        plan.directories.setdefault(inside(target.path), None)
        for name in target.directories:
            plan.directories.setdefault(inside(target.path, name), None)
    for target in bom.targets:
        for source, name in target.links:
            plan.links[inside(target.path, name)] = source
    for target in bom.targets:
        for copy in target.copies:
            base = os.path.join(os.path.dirname(root), copy.origin)
            for name in _whole(copy):
                _plan_directory(plan, bom, target, base, name, say)
    for target in bom.targets:
        for copy in target.copies:
            base = os.path.join(os.path.dirname(root), copy.origin)
            for item in copy.files:
                _plan_file(plan, bom, target, base, item)


def _whole(copy: Copy) -> tuple[str, ...]:
    """Return the directories to copy; the contents of the origin when nothing is named."""
    return copy.dirs if copy.dirs or copy.files else ("./",)


def _plan_file(plan: Plan, bom: Bom, target: Target, base: str, item: FileItem) -> None:
    source = os.path.join(base, item.name)
    if not os.path.isfile(source):
        raise _no_source(bom, source, "a file", item.name)
    name = item.rename or posixpath.basename(item.name)
    plan.files[inside(target.path, name)] = PlannedFile(
        os.path.normpath(source), item.digest, item.autodep
    )


def _plan_directory(plan: Plan, bom: Bom, target: Target, base: str, name: str, say: Say) -> None:
    source = os.path.join(base, name)
    if not os.path.isdir(source):
        raise _no_source(bom, source, "a directory", name)
    # A trailing slash copies what is in the directory, not the directory itself.
    into = target.path if name.endswith("/") else f"{target.path}/{posixpath.basename(name)}"
    tree = os.path.normpath(source)
    plan.directories[inside(into)] = stat.S_IMODE(os.stat(tree).st_mode)
    _plan_tree(plan, bom, tree, "", inside(into), say)


def _plan_tree(plan: Plan, bom: Bom, tree: str, relative: str, into: str, say: Say) -> None:
    with os.scandir(os.path.join(tree, relative)) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    for entry in entries:
        path = f"{relative}/{entry.name}" if relative else entry.name
        mode = entry.stat(follow_symlinks=False).st_mode
        if bom.excludes.match(path, is_directory=stat.S_ISDIR(mode)):
            continue
        target = inside(into, path)
        if stat.S_ISLNK(mode):
            link = os.readlink(entry.path)
            if _stays_inside(path, link) or not os.path.exists(entry.path):
                if not os.path.lexists(os.path.join(tree, os.path.dirname(path), link)):
                    say(f"warning: {entry.path} points nowhere; it is copied as a link")
                plan.links[target] = link
                plan.files.pop(target, None)
                continue
            # A link that leaves the copied directory: what it points to comes along instead.
            mode = os.stat(entry.path).st_mode
            if stat.S_ISDIR(mode):
                inner = os.path.realpath(entry.path)
                if f"{os.path.realpath(tree)}/".startswith(f"{inner}/"):
                    say(f"warning: {entry.path} points to a parent of itself; left out")
                    continue
                plan.directories[target] = stat.S_IMODE(mode)
                _plan_tree(plan, bom, inner, "", target, say)
                continue
        if stat.S_ISDIR(mode):
            plan.directories[target] = stat.S_IMODE(mode)
            _plan_tree(plan, bom, tree, path, into, say)
        elif stat.S_ISREG(mode):
            plan.files[target] = PlannedFile(entry.path, tree=tree)
            plan.links.pop(target, None)
        else:
            say(f"warning: {entry.path} is neither file, directory nor link; left out")


def _stays_inside(path: str, link: str) -> bool:
    """Return whether a link at ``path`` points below the copied directory."""
    if link.startswith("/"):
        return False
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return target != ".." and not target.startswith("../")


def _no_source(bom: Bom, source: str, expected: str, name: str) -> UsageError:
    return UsageError(
        "something that the BOM names is missing",
        stage="copy-bom",
        subject=source,
        expected=expected,
        found="something else" if os.path.exists(source) else "nothing",
        hint=f"named as {name} in {bom.path}",
    )
