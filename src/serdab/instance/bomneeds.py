# SPDX-License-Identifier: Apache-2.0
"""Adds to a plan what its programs need to start: libraries, loaders, interpreters of scripts.

Above: ``bom``. Below: ``elf``, ``bomplan``, ``ldcache``.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable
from typing import Final

from serdab.instance import ldcache
from serdab.instance.bomplan import Plan, PlannedFile, Say, inside
from serdab.instance.elf import Libraries, Library, Program, Script, read_program
from serdab.instance.intree import Files

_COMMAND_PATH: Final = (
    "/usr/local/bin",
    "/usr/bin",
    "/bin",
    "/usr/local/sbin",
    "/usr/sbin",
    "/sbin",
)


class Needs:
    """Adds libraries, loaders and interpreters of what was planned."""

    def __init__(self, plan: Plan, tree: Files, say: Say) -> None:
        self._plan = plan
        self._tree = tree
        self._say = say
        self._host = Libraries()
        self._image = Libraries(tree)
        self._sources = {item.source: path for path, item in plan.files.items()}
        self._warned: set[str] = set()
        self._homeless: dict[str, list[str]] = {}
        self._lost: dict[str, dict[str, None]] = {}
        # What a directory brings along itself: its programs load some of it by path, after which
        # the loader knows it by name (dlopen(3)). No rule of ld.so(8) finds a JVM's libjvm.so.
        self._beside = {
            (item.tree, posixpath.basename(path)) for path, item in plan.files.items() if item.tree
        }

    def add(self) -> None:
        """Extend the plan."""
        for path, item in list(self._plan.files.items()):
            if not item.autodep:
                continue
            try:
                program = read_program(item.source)
            except ValueError as exc:
                self._say(f"warning: {item.source}: {exc}")
                continue
            if isinstance(program, Script):
                self._add_script(program, path, item)
            elif program is not None:
                self._add_program(program, path, item)
        for name, users in self._lost.items():
            self._say(f"warning: {name} (wanted by {_first_of(list(users))}) was not found")
        for name, scripts in self._homeless.items():
            self._say(f"warning: {name}, which runs {_first_of(scripts)}, is not in the tree")

    def add_present(self, program: Program) -> None:
        """Extend the plan by a program's loader and those of its libraries that are there."""
        item = PlannedFile(program.path)
        self._add_loader(program, program.path, item)
        for library in self._host.closure(program)[0]:
            self._add_library(library, program, item)

    def _add_script(self, script: Script, path: str, item: PlannedFile) -> None:
        wanted = [script.interpreter]
        if script.command:
            found = next((p for p in self._on_path(script.command, self._in_image)), None)
            if found is None:
                host = next((p for p in self._on_path(script.command, os.path.isfile)), None)
                wanted.append(host or script.command)
        for name in wanted:
            if self._in_image(name):
                continue
            if item.tree:
                if os.access(item.source, os.X_OK):
                    self._homeless.setdefault(name, []).append(path)
            elif name.startswith("/") and os.path.isfile(name):
                self._say(f"{path} is run by {name}: it is copied with its libraries alone")
                self._plan.libraries[inside(name)] = name
                interpreter = read_program(name)
                if isinstance(interpreter, Program):
                    self._add_program(interpreter, name, PlannedFile(name))
            else:
                self._plan.missing.append(f"{name} (runs {path})")

    def _on_path(self, command: str, there: Callable[[str], bool]) -> Iterable[str]:
        return (
            f"{directory}/{command}"
            for directory in _COMMAND_PATH
            if there(f"{directory}/{command}")
        )

    def _add_program(self, program: Program, path: str, item: PlannedFile) -> None:
        if not program.needed and not program.interpreter:
            return
        if program.interpreter:
            self._add_loader(program, path, item)
        libraries, missing = self._host.closure(program)
        for library in libraries:
            self._add_library(library, program, item)
        for name, user in missing:
            if self._found_in_image(name, program, path):
                continue
            what = f"{name} (wanted by {user})"
            if item.tree:
                if (item.tree, name) not in self._beside:
                    self._lost.setdefault(name, {})[user] = None
            elif what not in self._plan.missing:
                self._plan.missing.append(what)

    def _found_in_image(self, name: str, program: Program, path: str) -> bool:
        """Return whether the tree itself has the library where its loader will look."""
        libraries, _ = self._image.closure(program, at=posixpath.dirname(path))
        return any(library.name == name for library in libraries)

    def _add_loader(self, program: Program, path: str, item: PlannedFile) -> None:
        loader = program.interpreter
        if inside(loader) in self._plan.files:
            return
        if os.path.isfile(loader):
            # Also over an older one: loader and libc must be of one version.
            self._plan.libraries[inside(loader)] = loader
        elif self._in_image(loader):
            return
        elif item.tree:
            self._warn(f"{loader}, the loader of {path}, was not found")
        else:
            self._plan.missing.append(f"{loader} (loads {path})")

    def _add_library(self, library: Library, program: Program, item: PlannedFile) -> None:
        source = os.path.normpath(library.path)
        listed = self._sources.get(source)
        if listed is not None and item.tree and self._plan.files[listed].tree == item.tree:
            return  # came along in the same directory, where the program expects it
        target = listed or inside(source)
        if target not in self._plan.files:
            self._plan.libraries.setdefault(target, source)
        directory = posixpath.dirname(target)
        if program.is_musl:
            if not self._host.is_default(directory, program, program.interpreter):
                self._need_musl_path(program.interpreter, directory)
        elif not self._host.is_default(directory, program, program.interpreter):
            flags = ldcache.FLAGS.get(program.machine)
            if flags is not None:
                self._plan.cached.setdefault((library.name, flags), target)

    def _need_musl_path(self, loader: str, directory: str) -> None:
        name = posixpath.basename(loader).removesuffix(".so.1")
        if name.startswith("ld-musl-"):
            paths = self._plan.musl_paths.setdefault(f"/etc/{name}.path", [])
            if directory not in paths:
                paths.append(directory)

    def _in_image(self, path: str) -> bool:
        name = inside(path)
        return name in self._plan.files or self._tree.exists(name)

    def _warn(self, line: str) -> None:
        if line not in self._warned:
            self._warned.add(line)
            self._say(f"warning: {line}")


def _first_of(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"
