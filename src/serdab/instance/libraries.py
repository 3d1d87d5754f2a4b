# SPDX-License-Identifier: Apache-2.0
"""Finds a program's libraries in a tree (the host's, or an image's) where its own loader would.

For glibc as ld.so(8) says: names already loaded (by name, by SONAME, by inode), names with a slash,
RPATH of whoever asks and of all that led to it, RUNPATH of whoever asks, the loader's cache, its
built-in directories. For musl as its ldso/dynlink.c does. Nothing is run.

A library may be there once for each kind of processor: in ``glibc-hwcaps`` directories, or where
``$PLATFORM`` leads. Which of them a loader takes depends on the machine that the image runs on, so
all are found: the one for every processor, and the others as its variants.

Not seen: what a program opens by name at run time (dlopen(3): plug-ins, name service modules), and
what depends on who starts it: LD_LIBRARY_PATH, and entries that begin in the current directory.

Above: ``bomneeds``. Below: ``elf``, ``ldcache``, ``intree``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain as joined
from typing import Final

from serdab.instance import ldcache
from serdab.instance.elf import Program, read_program
from serdab.instance.intree import Files, HostFiles
from serdab.structs import frozen, replace

_TRIPLETS: Final = {
    "EM_X86_64": "x86_64-linux-gnu",
    "EM_AARCH64": "aarch64-linux-gnu",
    "EM_386": "i386-linux-gnu",
}
#: What $PLATFORM stands for: the kernel's AT_PLATFORM last, before it what glibc makes of it for
#: processors that can do more (its cpu_features.c).
_PLATFORMS: Final = {
    "EM_X86_64": ("haswell", "xeon_phi", "x86_64"),
    "EM_AARCH64": ("aarch64",),
    "EM_386": ("i686",),
}
_HWCAPS: Final = {"EM_X86_64": ("x86-64-v4", "x86-64-v3", "x86-64-v2")}
_MUSL_DEFAULT: Final = ("/lib", "/usr/local/lib", "/usr/lib")
# musl's loader is these libraries itself (ldso/dynlink.c, "reserved").
_MUSL_OWN: Final = re.compile(r"lib(c|pthread|rt|m|dl|util|xnet)\.")
# The directories compiled into a glibc loader: strings that end in "/" one after another.
_BUILT_IN: Final = re.compile(rb"(?:/[A-Za-z0-9._/-]*lib[A-Za-z0-9._/-]*/\0){2,}")
_TOKEN: Final = re.compile(r"\$(?:\{(ORIGIN|LIB|PLATFORM)\}|(ORIGIN|LIB|PLATFORM)(?![A-Za-z0-9_]))")
_MUSL_TOKEN: Final = re.compile(r"\$(?:ORIGIN|\{ORIGIN\})")


@frozen
class Library:
    """A library that was found: the name asked for, where it is, its own needs, who asks.

    ``is_variant``: only some processors load it.
    """

    name: str
    path: str
    program: Program
    user: str
    is_variant: bool = False


@frozen
class _Asking:
    """A file that names libraries: where $ORIGIN lies, and the one that led to it."""

    program: Program
    origin: str
    above: _Asking | None = None

    def upwards(self) -> Iterator[_Asking]:
        """Yield this one and all that led to it."""
        yield self
        if self.above is not None:
            yield from self.above.upwards()


class _Closure:
    """All that one program loads, in the order in which it is loaded."""

    def __init__(self) -> None:
        self.found: list[Library] = []
        self.missing: list[tuple[str, str]] = []
        self.names: set[str] = set()
        self.inodes: set[tuple[int, int]] = set()
        self.pending: list[_Asking] = []

    def lacks(self, name: str, user: str) -> None:
        """Note a library that is not there."""
        if (name, user) not in self.missing:
            self.missing.append((name, user))


class Libraries:
    """Finds libraries in a tree (None: the host's). Paths given and returned are inside it."""

    def __init__(self, files: Files | None = None) -> None:
        self._files = HostFiles() if files is None else files
        self._known: dict[str, tuple[Program, tuple[int, int]] | None] = {}
        self._built_in: dict[str, tuple[str, ...]] = {}
        self._cache: dict[str, list[ldcache.Entry]] | None = None

    def exists(self, path: str) -> bool:
        """Return whether something is at ``path`` in the tree."""
        return self._files.exists(path)

    def closure(
        self, program: Program, *, at: str = ""
    ) -> tuple[list[Library], list[tuple[str, str]]]:
        """Return all libraries a program loads, and (name, wanted by) of those not found.

        ``at`` is where the program lies in the tree, when not at its path.
        """
        path = at or program.path
        if program.interpreter:
            path = self._files.real(path)  # $ORIGIN is of what the kernel runs, not of its name
        first = _Asking(program, os.path.dirname(path))
        out = _Closure()
        self._take(out, program, path)
        if program.interpreter:
            out.names.add(program.interpreter)
            out.names.add(os.path.basename(program.interpreter))
            loader = self._load(program.interpreter)
            if loader is not None:
                out.names.add(loader[0].soname)
        out.pending.append(first)
        while out.pending:
            asking = out.pending.pop(0)
            self._add_needs(out, asking, first)
        self._add_audits(out, first)
        return out.found, out.missing

    def is_default(self, directory: str, program: Program, loader: str) -> bool:
        """Return whether the loader looks into ``directory`` by itself."""
        if _is_musl(program, loader):
            return directory in _MUSL_DEFAULT
        return directory in self._defaults(program, loader)

    def expand(self, name: str, origin: str, program: Program, loader: str) -> str:
        """Return the path that a name with a slash stands for, asked for from ``origin``."""
        if _is_musl(program, loader):
            return name
        return self._expanded(name, origin, program, loader)[-1]

    def _add_needs(self, out: _Closure, asking: _Asking, first: _Asking) -> None:
        program = asking.program
        musl = _is_musl(first.program, first.program.interpreter)
        needed = program.needed if musl else (*program.needed, *program.filters)
        for name in needed:
            if not self._add(out, name, asking, first):
                out.lacks(name, program.path)
        for name in () if musl else program.auxiliaries:
            self._add(out, name, asking, first)

    def _add_audits(self, out: _Closure, first: _Asking) -> None:
        """Add the audit libraries of a program, and theirs; the loader goes on without them."""
        if _is_musl(first.program, first.program.interpreter) or not first.program.audits:
            return
        missing = list(out.missing)
        # It is the loader that asks: of the program's own paths only RPATH counts.
        asking = _Asking(_without_runpath(first.program), first.origin)
        for name in first.program.audits:
            self._add(out, name, asking, first)
        while out.pending:
            self._add_needs(out, out.pending.pop(0), first)
        out.missing = missing

    def _add(self, out: _Closure, name: str, asking: _Asking, first: _Asking) -> bool:
        """Add what a name leads to; return whether that is anything."""
        loader = first.program.interpreter
        musl = _is_musl(first.program, loader)
        if name in out.names or (musl and _MUSL_OWN.match(name)):
            return True
        hits = list(self._find(name, asking, first.program, musl=musl))
        for path, is_variant in hits:
            known = self._load(path)
            if known is None or known[1] in out.inodes:
                continue
            self._take(out, known[0], path)
            out.found.append(Library(name, path, known[0], asking.program.path, is_variant))
            out.pending.append(_Asking(known[0], os.path.dirname(path), asking))
        if hits:
            out.names.add(name)
        return bool(hits)

    def _take(self, out: _Closure, program: Program, path: str) -> None:
        known = self._load(path)
        if known is not None:
            out.inodes.add(known[1])
        if program.soname and not _is_musl(program, ""):
            out.names.add(program.soname)

    def _find(
        self, name: str, asking: _Asking, program: Program, *, musl: bool
    ) -> Iterator[tuple[str, bool]]:
        """Yield the variants of a library, then the one for all processors, which ends it."""
        loader = program.interpreter
        candidates = self._musl_paths if musl else self._glibc_paths
        for path, is_variant in candidates(name, asking, loader):
            known = self._load(path)
            # glibc passes over files of another class or machine; musl takes the first that opens.
            if known and (known[0].machine, known[0].bits) == (program.machine, program.bits):
                yield path, is_variant
                if not is_variant:
                    return
            elif musl and self._files.exists(path):
                return

    def _glibc_paths(self, name: str, asking: _Asking, loader: str) -> Iterator[tuple[str, bool]]:
        expanded = self._expanded(name, asking.origin, asking.program, loader)
        for one in expanded:
            is_special = one != expanded[-1]
            if one.startswith("/"):
                yield one, is_special
            elif "/" not in one:
                for path, is_variant in self._searched(one, asking, loader):
                    yield path, is_variant or is_special

    def _searched(self, name: str, asking: _Asking, loader: str) -> Iterator[tuple[str, bool]]:
        user = asking.program
        for one in asking.upwards() if not user.runpath else ():
            if not one.program.runpath:
                yield from self._in_directories(one.program.rpath, name, one, loader)
        yield from self._in_directories(user.runpath, name, asking, loader)
        flags = ldcache.FLAGS.get(user.machine)
        defaults = self._defaults(user, loader)
        for entry in self._cached(name):
            if flags is not None and entry.flags != flags:
                continue
            if user.only_named and os.path.dirname(entry.path) in defaults:
                continue
            yield entry.path, entry.is_variant
        if not user.only_named:
            yield from self._in_directories(defaults, name, asking, loader)

    def _in_directories(
        self, directories: Iterable[str], name: str, asking: _Asking, loader: str
    ) -> Iterator[tuple[str, bool]]:
        user = asking.program
        for directory in directories:
            expanded = self._expanded(directory, asking.origin, user, loader)
            for place in expanded:
                if not place.startswith("/"):
                    continue
                for level in _HWCAPS.get(user.machine, ()):
                    yield os.path.join(place, "glibc-hwcaps", level, name), True
                yield os.path.join(place, name), place != expanded[-1]

    def _musl_paths(self, name: str, asking: _Asking, loader: str) -> Iterator[tuple[str, bool]]:
        if "/" in name:
            if name.startswith("/"):
                yield name, False
            return
        own = (_musl_rpath(one) for one in asking.upwards())
        for directory in joined(joined.from_iterable(own), self._musl_path(loader)):
            if directory.startswith("/"):
                yield os.path.join(directory, name), False

    def _load(self, path: str) -> tuple[Program, tuple[int, int]] | None:
        """Return what is at a path, and what tells it from other files: device and inode."""
        if path not in self._known:
            self._known[path] = None
            try:
                file = self._files.open(path)
                if file is not None:
                    status = os.fstat(file.fileno())
                    program = read_program(path, file)
                    if isinstance(program, Program):
                        self._known[path] = program, (status.st_dev, status.st_ino)
            except (ValueError, PermissionError):
                self._known[path] = None
        return self._known[path]

    def _cached(self, name: str) -> list[ldcache.Entry]:
        """Return what the cache has of a name, variants first."""
        if self._cache is None:
            self._cache = {}
            file = self._files.open("/etc/ld.so.cache")
            if file is not None:
                with file:
                    for entry in ldcache.entries(file.read(64 << 20)):
                        self._cache.setdefault(entry.name, []).append(entry)
        return sorted(self._cache.get(name, []), key=lambda entry: not entry.is_variant)

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
        # A loader in /opt/x/lib has its file in /opt/x/etc.
        prefix = os.path.dirname(os.path.dirname(loader)).rstrip("/")
        is_known = name.startswith("ld-musl-")
        file = self._files.open(f"{prefix}/etc/{name}.path") if is_known else None
        if file is None:
            return _MUSL_DEFAULT
        with file:
            text = file.read(1 << 16).decode("utf-8", "surrogateescape")
        return tuple(part for part in re.split(r"[:\n]", text) if part)

    def _expanded(self, text: str, origin: str, program: Program, loader: str) -> list[str]:
        """Replace the tokens of ld.so(8): $ORIGIN, $LIB and $PLATFORM; the last is for all."""
        if "$" not in text:
            return [text]
        platforms = _PLATFORMS.get(program.machine, ("",)) if "PLATFORM" in text else ("",)
        first = self._defaults(program, loader)[0].removeprefix("/usr").removeprefix("/")
        values = [{"ORIGIN": origin, "LIB": first, "PLATFORM": name} for name in platforms]
        return [_replaced(text, each) for each in values]


def _replaced(text: str, values: dict[str, str]) -> str:
    return _TOKEN.sub(lambda match: values[match[1] or match[2]], text)


def _is_musl(program: Program, loader: str) -> bool:
    return program.is_musl or os.path.basename(loader).startswith("ld-musl-")


def _without_runpath(program: Program) -> Program:
    return replace(program, runpath=(), rpath=() if program.runpath else program.rpath)


def _musl_rpath(asking: _Asking) -> tuple[str, ...]:
    """Return the directories of a file; none of them if one has a token that musl does not know."""
    paths = asking.program.runpath or asking.program.rpath
    expanded = tuple(_MUSL_TOKEN.sub(lambda _: asking.origin, path) for path in paths)
    return () if any("$" in _MUSL_TOKEN.sub("", path) for path in paths) else expanded


def _usual_directories(program: Program) -> tuple[str, ...]:
    triplet = _TRIPLETS.get(program.machine)
    multiarch = (f"/lib/{triplet}", f"/usr/lib/{triplet}") if triplet else ()
    wide = ("/lib64", "/usr/lib64") if program.bits == 64 else ()
    return (*multiarch, "/lib", "/usr/lib", *wide)
