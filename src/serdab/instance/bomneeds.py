# SPDX-License-Identifier: Apache-2.0
"""Adds to a plan what its programs need to start: libraries, loaders, interpreters of scripts.

Above: ``bom``. Below: ``elf``, ``libraries``, ``bomplan``, ``ldcache``.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from typing import Final

from serdab.instance import ldcache
from serdab.instance.bomplan import Plan, PlannedFile, Say, inside
from serdab.instance.elf import Program, read_program
from serdab.instance.intree import Files
from serdab.instance.libraries import Libraries, Library
from serdab.instance.loaders import foreign_line, foreign_machine
from serdab.instance.shebang import Script
from serdab.linux.outside import MAX_LINKS

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
        self._foreign: dict[str, list[str]] = {}
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
                if self._is_foreign(path, item):
                    continue
                program = read_program(item.source)
            except ValueError as exc:
                self._say(f"warning: {item.source}: {exc}")
                continue
            if isinstance(program, Script):
                self._add_script(program, path, item)
            elif program is not None:
                self._add_program(program, path, item)
        for machine, paths in self._foreign.items():
            self._say(foreign_line(machine, paths))
        for name, users in self._lost.items():
            self._say(f"warning: {name} (wanted by {_first_of(list(users))}) was not found")
        for name, scripts in self._homeless.items():
            self._say(f"warning: {name}, which runs {_first_of(scripts)}, is not in the tree")

    def _is_foreign(self, path: str, item: PlannedFile) -> bool:
        """Return whether it is for another machine, and note programs: they need nothing here."""
        file = item.open()
        if file is None:
            return False
        with file:
            machine = foreign_machine(file.read(64))
            is_program = os.fstat(file.fileno()).st_mode & 0o111
        if machine and is_program:
            self._foreign.setdefault(machine, []).append(path)
        return bool(machine)

    def add_present(self, program: Program) -> None:
        """Extend the plan by a program's loader and those of its libraries that are there."""
        item = PlannedFile(program.path)
        self._add_loader(program, program.path, item)
        self._add_libraries(program, program.path, item)

    def _add_script(self, script: Script, path: str, item: PlannedFile) -> None:
        wanted = [script.interpreter]
        if script.command:
            found = _on_path(script, self._in_image)
            wanted.append(found or _on_path(script, os.path.isfile) or script.command)
        for name in wanted:
            if self._in_image(name):
                continue
            if item.tree:
                if os.access(item.source, os.X_OK):
                    self._homeless.setdefault(name, []).append(path)
            elif name.startswith("/") and os.path.isfile(name):
                self._add_interpreter(name, path)
            else:
                self._plan.missing.append(f"{name} (runs {path})")

    def _add_interpreter(self, name: str, path: str) -> None:
        """Extend the plan by what runs a script: it may be a script itself, behind links."""
        self._say(f"{path} is run by {name}: it is copied with its libraries alone")
        real = self._add_links(name)
        if self._in_image(real) or inside(real) in self._plan.libraries:
            return
        self._plan.libraries[inside(real)] = real
        interpreter = read_program(real)
        if isinstance(interpreter, Program):
            self._add_program(interpreter, inside(real), PlannedFile(real))
        elif interpreter is not None:
            self._add_script(interpreter, name, PlannedFile(real))

    def _add_links(self, name: str) -> str:
        """Plan each link that leads from a name to its file; return the file's own name.

        A program behind links finds what belongs to it from where it lies itself (proc_pid_exe(5)).
        A link whose way goes through a linked directory is not planned: there the tree may have a
        directory.
        """
        for _ in range(MAX_LINKS):
            if not os.path.islink(name) or self._in_image(name):
                break
            target = os.readlink(name)
            further = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
            if not os.path.exists(further) or not os.path.samefile(further, name):
                break
            self._plan.library_links[inside(name)] = target
            name = further
        return name

    def _add_program(self, program: Program, path: str, item: PlannedFile) -> None:
        if program.interpreter:
            self._add_loader(program, path, item)
        for name, user in self._add_libraries(program, path, item):
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
        libraries, _ = self._image.closure(program, at=path)
        return any(name in (library.name, library.program.soname) for library in libraries)

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

    def _add_libraries(
        self, program: Program, path: str, item: PlannedFile
    ) -> list[tuple[str, str]]:
        """Extend the plan by a program's libraries; return (name, wanted by) of what lacks."""
        places = {program.path: path}
        libraries, missing = self._host.closure(program)
        for library in libraries:
            places[library.path] = self._add_library(library, program, places, item)
        return missing

    def _add_library(
        self, library: Library, program: Program, places: dict[str, str], item: PlannedFile
    ) -> str:
        """Extend the plan by a library; return its path in the tree."""
        source = _settled(library.path)
        listed = self._sources.get(source)
        if listed is not None and item.tree and self._plan.files[listed].tree == item.tree:
            return listed  # came along in the same directory, where the program expects it
        target = listed or inside(source)
        loader = program.interpreter
        if "/" in library.name:
            # It is asked for by its path, which no cache can bend.
            origin = posixpath.dirname(places[library.user])
            target = inside(self._host.expand(library.name, origin, library.program, loader))
        is_default = self._host.is_default(posixpath.dirname(target), program, loader)
        if target not in self._plan.files and target not in self._plan.links:
            self._plan.libraries.setdefault(target, source)
        if "/" in library.name or library.is_variant or is_default:
            return target
        if program.is_musl:
            self._need_musl_path(loader, posixpath.dirname(target))
            return target
        flags = ldcache.FLAGS.get(program.machine)
        if flags is not None:
            self._plan.cached.setdefault((library.name, flags), target)
        return target

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


def _on_path(script: Script, there: Callable[[str], bool]) -> str:
    """Return where env(1) finds the command of a script, or nothing."""
    if "/" in script.command:
        return script.command if there(script.command) else ""
    paths = (f"{place}/{script.command}" for place in script.search or _COMMAND_PATH)
    return next(filter(there, paths), "")


def _settled(path: str) -> str:
    """Return a path without ``..``: the plain one if it leads to the same file."""
    plain = os.path.normpath(path)
    if os.path.exists(plain) and os.path.samefile(plain, path):
        return plain
    place, name = os.path.split(path)
    return os.path.join(os.path.realpath(place), name)


def _first_of(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"
