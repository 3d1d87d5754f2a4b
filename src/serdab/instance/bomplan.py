# SPDX-License-Identifier: Apache-2.0
"""The plan of a BOM: what will stand at which path of the tree. Reads the sources, writes nothing.

Above: ``bom``. Below: ``bomfile``.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable
from io import BufferedReader

from serdab.errors import UsageError
from serdab.instance.bomfile import Bom, Copy, Target
from serdab.instance.intree import open_host_file, require_way
from serdab.instance.leftout import LeftOut
from serdab.instance.owners import Owner
from serdab.linux.dirfd import word_for
from serdab.structs import field, frozen, mutable

Say = Callable[[str], None]


@mutable
class PlannedFile:
    """One file to be copied. ``tree`` is the copied directory it came with, or empty."""

    source: str
    digest: str = ""
    autodep: bool = True
    tree: str = ""

    def open(self) -> BufferedReader | None:
        """Open it for reading; None if it is no regular file."""
        return open_host_file(self.source)


@frozen
class Absent:
    """A source that a BOM names and that is not there."""

    source: str
    expected: str
    found: str
    named: str

    def __str__(self) -> str:
        return f"{self.source}: {self.expected} expected, {self.found} found"


@mutable
class Plan:
    """What will be done, by path inside the tree."""

    directories: dict[str, int | None] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    files: dict[str, PlannedFile] = field(default_factory=dict)
    owners: dict[str, Owner | None] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=dict)
    library_links: dict[str, str] = field(default_factory=dict)
    cached: dict[tuple[str, int], str] = field(default_factory=dict)
    musl_paths: dict[str, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)


def inside(*parts: str) -> str:
    """Return the path inside the tree that parts name; `..` cannot leave it."""
    return "/" + posixpath.normpath("/" + "/".join(parts)).lstrip("/")


def plan_bom(plan: Plan, bom: Bom, root: str, say: Say) -> None:
    """Extend the plan by one BOM: directories, links, copied directories, then files."""
    left_out = LeftOut(bom.path, say)
    base = os.path.dirname(root)
    planners = [_Planner(plan, bom, target, base, say, left_out) for target in bom.targets]
    for planner in planners:
        planner.directories()
    for planner in planners:
        planner.links()
    for planner in planners:
        planner.copied_directories()
    for planner in planners:
        planner.files()
    left_out.end()


def require_sources(plan: Plan) -> None:
    """Check that everything is there that the BOMs name.

    Raises:
        UsageError: it names all that is not.
    """
    if not plan.absent:
        return
    first, *others = plan.absent
    raise UsageError(
        "something that the BOM names is missing",
        stage="copy-bom",
        subject="; ".join(map(str, plan.absent)) if others else first.source,
        expected="all of them" if others else first.expected,
        found=f"{len(plan.absent)} that are not" if others else first.found,
        hint="; ".join(absent.named for absent in plan.absent),
    )


class _Planner:
    """Plans one target of a BOM."""

    def __init__(
        self, plan: Plan, bom: Bom, target: Target, base: str, say: Say, left_out: LeftOut
    ) -> None:
        self._plan = plan
        self._bom = bom
        self._target = target
        self._base = base
        self._say = say
        self._left_out = left_out
        self._within: list[str] = []

    def directories(self) -> None:
        """Plan the target itself and its mkdirs."""
        target = inside(self._target.path)
        for path in (target, *(inside(target, name) for name in self._target.directories)):
            if path not in self._plan.directories:
                self._plan.directories[path] = None
                self._own(path)

    def links(self) -> None:
        """Plan createlinks."""
        for source, name in self._target.links:
            self._link(inside(self._target.path, name), source)

    def copied_directories(self) -> None:
        """Plan the directories to copy; the contents of the origin when nothing is named."""
        for copy in self._target.copies:
            for name in copy.dirs if copy.dirs or copy.files else ("./",):
                self._directory(copy, name)

    def files(self) -> None:
        """Plan the listed files."""
        for copy in self._target.copies:
            for item in copy.files:
                source = os.path.join(self._base, copy.origin, item.name)
                if not os.path.isfile(source):
                    self._lacks(source, "a file", item.name)
                    continue
                name = item.rename or posixpath.basename(item.name)
                self._file(
                    inside(self._target.path, name),
                    PlannedFile(os.path.normpath(source), item.digest, item.autodep),
                )

    def _own(self, path: str) -> None:
        # The root itself stays the inner root's, whoever owns what a target puts into it.
        self._plan.owners[path] = None if path == "/" else self._target.owner

    def _link(self, path: str, target: str) -> None:
        self._plan.links[path] = target
        self._plan.files.pop(path, None)
        self._own(path)

    def _file(self, path: str, item: PlannedFile) -> None:
        self._plan.files[path] = item
        self._plan.links.pop(path, None)
        self._own(path)

    def _copied(self, path: str, mode: int) -> None:
        self._plan.directories[path] = stat.S_IMODE(mode)
        self._own(path)

    def _directory(self, copy: Copy, name: str) -> None:
        source = os.path.join(self._base, copy.origin, name)
        if not os.path.isdir(source):
            self._lacks(source, "a directory", name)
            return
        parts = posixpath.normpath(name).split("/")
        if len(parts) > 1 and parts[0] not in ("", "..") and not name.endswith("/"):
            where = inside(self._target.path, posixpath.basename(name))
            self._say(
                f"{name} lands at {where}: the last part of its name counts, as for rsync(1); "
                f"target: {inside(self._target.path, *parts[:-1])} keeps its place"
            )
        # A trailing slash copies what is in the directory, not the directory itself.
        into = inside(self._target.path, "" if name.endswith("/") else posixpath.basename(name))
        tree = os.path.normpath(source)
        self._copied(into, os.stat(tree).st_mode)
        self._tree(tree, into)

    def _tree(self, tree: str, into: str) -> None:
        """Plan what is in the directory ``tree``, a copied one or one that a link led to."""
        real = os.path.realpath(tree)
        if any(f"{outer}/".startswith(f"{real}/") for outer in self._within):
            self._say(f"warning: a link leads from {self._within[-1]} back to {real}; left out")
            return
        self._within.append(real)
        self._entries(tree, "", into)
        self._within.pop()

    def _entries(self, tree: str, relative: str, into: str) -> None:
        directory = os.path.join(tree, relative)
        require_way(directory)
        with os.scandir(directory) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        for entry in entries:
            path = f"{relative}/{entry.name}" if relative else entry.name
            mode = entry.stat(follow_symlinks=False).st_mode
            if self._bom.excludes.match(path, is_directory=stat.S_ISDIR(mode)):
                continue
            target = inside(into, path)
            if stat.S_ISLNK(mode):
                self._found_link(tree, path, entry.path, target)
            elif stat.S_ISDIR(mode):
                self._copied(target, mode)
                self._entries(tree, path, into)
            elif stat.S_ISREG(mode):
                self._file(target, PlannedFile(entry.path, tree=tree))
            else:
                self._left_out.note(entry.path, word_for(mode))

    def _found_link(self, tree: str, path: str, host: str, target: str) -> None:
        link = os.readlink(host)
        there = os.path.exists(host)
        if _stays_inside(path, link) or not there:
            if not there and not os.path.lexists(os.path.join(os.path.dirname(host), link)):
                self._say(f"warning: {host} points nowhere; it is copied as a link")
            self._link(target, link)
        # A link that leaves the copied directory: what it points to comes along instead.
        elif os.path.isdir(host):
            self._copied(target, os.stat(host).st_mode)
            self._tree(host, target)
        else:
            self._file(target, PlannedFile(host, tree=tree))

    def _lacks(self, source: str, expected: str, name: str) -> None:
        found = "something else" if os.path.exists(source) else "nothing"
        named = f"named as {name} in {self._bom.path}"
        self._plan.absent.append(Absent(source, expected, found, named))


def _stays_inside(path: str, link: str) -> bool:
    """Return whether a link at ``path`` points below the copied directory."""
    if link.startswith("/"):
        return False
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return target != ".." and not target.startswith("../")
