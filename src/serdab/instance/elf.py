# SPDX-License-Identifier: Apache-2.0
"""What a program needs before it can start, read from its file; nothing is run.

``read_program`` reads an ELF file or a ``#!`` line. :class:`Libraries` finds a program's libraries
in a tree (the host's, or an image's) where its own loader would: RPATH, RUNPATH, the loader's
cache and built-in directories for glibc (ld.so(8)); RPATH or RUNPATH and the path file for musl.

Not seen: what a program opens by name at run time (dlopen(3): plug-ins, name service modules).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from io import BufferedReader
from typing import Any, Final

from serdab.instance import ldcache
from serdab.instance.intree import Files, HostFiles, open_host_file
from serdab.structs import frozen

_TRIPLETS: Final = {
    "EM_X86_64": "x86_64-linux-gnu",
    "EM_AARCH64": "aarch64-linux-gnu",
    "EM_386": "i386-linux-gnu",
}
_PLATFORMS: Final = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64", "EM_386": "i686"}
_MUSL_DEFAULT: Final = ("/lib", "/usr/local/lib", "/usr/lib")
# musl's loader is these libraries itself (ldso/dynlink.c, "reserved").
_MUSL_OWN: Final = re.compile(r"lib(c|pthread|rt|m|dl|util|xnet)\.")
# The directories compiled into a glibc loader: strings that end in "/" one after another.
_BUILT_IN: Final = re.compile(rb"(?:/[A-Za-z0-9._/-]*lib[A-Za-z0-9._/-]*/\0){2,}")
_MAX_SHEBANG: Final = 256


@frozen
class Program:
    """What stands in an ELF file that decides how it is loaded.

    ``interpreter`` is empty for libraries and static programs.
    """

    path: str
    machine: str
    bits: int
    interpreter: str = ""
    soname: str = ""
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()

    @property
    def is_musl(self) -> bool:
        """Whether musl's loader loads it, as far as the file itself tells."""
        return os.path.basename(self.interpreter).startswith("ld-musl-") or any(
            name.startswith("libc.musl-") or name == "libc.so" for name in self.needed
        )


@frozen
class Script:
    """A file with a ``#!`` line. ``command`` is what env(1) is to look up, if it is env."""

    path: str
    interpreter: str
    command: str = ""


def read_program(path: str, file: BufferedReader | None = None) -> Program | Script | None:
    """Return what ``path`` needs; None if it is neither an ELF file nor a script.

    ``file``: it is open already, and ``path`` what it is called; it is closed.

    Raises:
        ValueError: an ELF file that makes no sense.
    """
    file = file or open_host_file(path)
    if file is None:
        return None
    with file:
        head = file.read(_MAX_SHEBANG)
        if head[:2] == b"#!":
            return _script(path, head)
        if head[:4] != b"\x7fELF":
            return None
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile

        try:
            return _program(path, ELFFile(file))
        except (ELFError, AssertionError, ValueError, KeyError, AttributeError, TypeError) as exc:
            # pyelftools lets the errors of its parts through when a file is damaged.
            raise ValueError(f"not a readable ELF file: {exc}") from exc


def _script(path: str, head: bytes) -> Script | None:
    line = head[2:].split(b"\n", 1)[0].decode("utf-8", "surrogateescape").strip()
    words = line.split()
    if not words:
        return None
    command = ""
    if os.path.basename(words[0]) == "env":
        rest = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        command = rest[0] if rest else ""
    return Script(path, words[0], command)


def _program(path: str, elf: object) -> Program:
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import InterpSegment

    assert isinstance(elf, ELFFile)  # noqa: S101 - for the type checker
    interpreter = soname = ""
    needed: list[str] = []
    paths: dict[str, tuple[str, ...]] = {}
    for segment in elf.iter_segments():
        if isinstance(segment, InterpSegment):
            interpreter = str(segment.get_interp_name())
        elif isinstance(segment, DynamicSegment):
            tags: list[Any] = list(segment.iter_tags())
            for tag in tags:
                match tag.entry.d_tag:
                    case "DT_NEEDED":
                        needed.append(str(tag.needed))
                    case "DT_SONAME":
                        soname = str(tag.soname)
                    case "DT_RPATH":
                        paths["rpath"] = _split(tag.rpath)
                    case "DT_RUNPATH":
                        paths["runpath"] = _split(tag.runpath)
    return Program(
        path,
        machine=str(elf["e_machine"]),
        bits=int(elf.elfclass),
        interpreter=interpreter,
        soname=soname,
        needed=tuple(needed),
        rpath=paths.get("rpath", ()),
        runpath=paths.get("runpath", ()),
    )


def _split(value: object) -> tuple[str, ...]:
    return tuple(part for part in str(value).split(":") if part)


@frozen
class Library:
    """A library that was found: the name asked for, where it is, and its own needs."""

    name: str
    path: str
    program: Program


class Libraries:
    """Finds libraries in a tree (None: the host's). Paths given and returned are inside it."""

    def __init__(self, files: Files | None = None) -> None:
        self._files = HostFiles() if files is None else files
        self._known: dict[str, Program | None] = {}
        self._built_in: dict[str, tuple[str, ...]] = {}
        self._cache: dict[str, list[tuple[str, int]]] | None = None

    def exists(self, path: str) -> bool:
        """Return whether something is at ``path`` in the tree."""
        return self._files.exists(path)

    def closure(
        self, program: Program, *, at: str = ""
    ) -> tuple[list[Library], list[tuple[str, str]]]:
        """Return all libraries a program loads, and (name, wanted by) of those not found.

        ``at`` is the directory that $ORIGIN stands for, when not that of the file.
        """
        musl = program.is_musl
        found: dict[str, Library] = {}
        missing: list[tuple[str, str]] = []
        origin = at or os.path.dirname(program.path)
        pending: list[tuple[Program, str, tuple[tuple[Program, str], ...]]] = [
            (program, origin, ())
        ]
        loader = program.interpreter
        while pending:
            user, place, loaders = pending.pop(0)
            for name in user.needed:
                if name in found or (musl and _MUSL_OWN.match(name)):
                    continue
                if os.path.basename(loader) == name:
                    continue  # the loader itself, as libraries of glibc ask for it
                chain = ((user, place), *loaders)
                hit = self._find(name, program, chain, loader, musl=musl)
                if hit is None:
                    if (name, user.path) not in missing:
                        missing.append((name, user.path))
                    continue
                found[name] = hit
                pending.append((hit.program, os.path.dirname(hit.path), chain))
        return list(found.values()), missing

    def is_default(self, directory: str, program: Program, loader: str) -> bool:
        """Return whether the loader looks into ``directory`` by itself."""
        if program.is_musl or os.path.basename(loader).startswith("ld-musl-"):
            return directory in _MUSL_DEFAULT
        return directory in self._defaults(program, loader)

    def _find(
        self,
        name: str,
        program: Program,
        chain: tuple[tuple[Program, str], ...],
        loader: str,
        *,
        musl: bool,
    ) -> Library | None:
        for path in self._candidates(name, program, chain, loader, musl=musl):
            other = self._load(path)
            # A loader passes over files of another class or machine; so must we.
            if other and (other.machine, other.bits) == (program.machine, program.bits):
                return Library(name, path, other)
        return None

    def _candidates(
        self,
        name: str,
        program: Program,
        chain: tuple[tuple[Program, str], ...],
        loader: str,
        *,
        musl: bool,
    ) -> Iterator[str]:
        if "/" in name:
            if name.startswith("/"):
                yield name
            return
        for user, place in chain if musl or not chain[0][0].runpath else ():
            paths = (user.runpath or user.rpath) if musl else (() if user.runpath else user.rpath)
            for directory in paths:
                yield os.path.join(_expand(directory, place, user), name)
        if not musl:
            user, place = chain[0]
            for directory in user.runpath:
                yield os.path.join(_expand(directory, place, user), name)
            flags = ldcache.FLAGS.get(program.machine)
            for path, entry_flags in self._cached(name):
                if flags is None or entry_flags == flags:
                    yield path
        for directory in self._musl_path(loader) if musl else self._defaults(program, loader):
            yield os.path.join(directory, name)

    def _load(self, path: str) -> Program | None:
        path = os.path.normpath(path)
        if path not in self._known:
            program: Program | Script | None = None
            try:
                file = self._files.open(path)
                if file is not None:
                    program = read_program(path, file)
            except (ValueError, PermissionError):
                program = None
            known = program if isinstance(program, Program) else None
            self._known[path] = known
        return self._known[path]

    def _cached(self, name: str) -> list[tuple[str, int]]:
        if self._cache is None:
            self._cache = {}
            file = self._files.open("/etc/ld.so.cache")
            if file is not None:
                with file:
                    for key, path, flags in ldcache.parse(file.read(64 << 20)):
                        self._cache.setdefault(key, []).append((path, flags))
        return self._cache.get(name, [])

    def _defaults(self, program: Program, loader: str) -> tuple[str, ...]:
        key = loader or program.machine
        if key not in self._built_in:
            self._built_in[key] = self._scan(loader) or _usual_directories(program)
        return self._built_in[key]

    def _scan(self, loader: str) -> tuple[str, ...]:
        """Return the directories compiled into a glibc loader."""
        file = self._files.open(loader) if loader else None
        if file is None:
            return ()
        with file:
            hits = _BUILT_IN.findall(file.read(16 << 20))
        for hit in hits:
            names = [part.decode("ascii").rstrip("/") for part in hit.split(b"\0") if part]
            if "/lib" in names or "/lib64" in names:
                return tuple(names)
        return ()

    def _musl_path(self, loader: str) -> tuple[str, ...]:
        name = os.path.basename(loader).removesuffix(".so.1")
        file = self._files.open(f"/etc/{name}.path") if name.startswith("ld-musl-") else None
        if file is None:
            return _MUSL_DEFAULT
        with file:
            text = file.read(1 << 16).decode("utf-8", "surrogateescape")
        return tuple(part for part in re.split(r"[:\n]", text) if part)


def _usual_directories(program: Program) -> tuple[str, ...]:
    triplet = _TRIPLETS.get(program.machine)
    multiarch = (f"/lib/{triplet}", f"/usr/lib/{triplet}") if triplet else ()
    wide = ("/lib64", "/usr/lib64") if program.bits == 64 else ()
    return (*multiarch, "/lib", "/usr/lib", *wide)


def _expand(directory: str, origin: str, program: Program) -> str:
    """Replace the tokens of ld.so(8): $ORIGIN, $LIB and $PLATFORM."""
    values = {
        "ORIGIN": origin,
        "LIB": f"lib/{_TRIPLETS.get(program.machine, '')}".rstrip("/"),
        "PLATFORM": _PLATFORMS.get(program.machine, ""),
    }
    expanded = re.sub(
        r"\$(?:\{(ORIGIN|LIB|PLATFORM)\}|(ORIGIN|LIB|PLATFORM)\b)",
        lambda match: values[match[1] or match[2]],
        directory,
    )
    return os.path.normpath(expanded)
