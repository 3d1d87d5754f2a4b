# SPDX-License-Identifier: Apache-2.0
"""What of a host directory tree no program may see: decided at each lookup, by name and identity.

Two kinds. *Paths* below the root (keys, state, our own code) are hidden wherever they are named.
*Reserved names* (``config.names``) are hidden in every directory that is an instance: the one that
runs is known by its place, any other by the configuration or descriptor that lies in it at that
moment. A mount over what is there today could not do it: the host replaces a name by a rename, and
what was covered went with the old file.

Above: ``hostnodes``, ``hostfs``. Below: ``secondnames``, ``config.names``, ``linux``.

Security:
    1. Names are folded before they are compared, on every host (``config.names``).
    2. A second name for what is hidden (a hard link, a bind mount, a fold that we do not know) is
       found by device and inode number, or by where it lies in its file system; see ``is_alias``
       and ``across`` for where that is asked.
    3. A file or directory that the host moves to a hidden place while a program has it open is
       asked where it lies before each change (``is_hidden_now``).
    4. What cannot be told is refused: only where nothing is, nothing is hidden.
    5. Not covered: another name on the host for a file *inside* ``image`` or ``initfs``, or inside
       what is hidden of another instance.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Final, final

from serdab.config.names import (
    DIRECTORIES,
    FILES,
    SHOWN_EMPTY,
    fold,
    is_reserved,
)
from serdab.linux.files import CONFINED, openat2
from serdab.linux.identity import Identity, identity_of
from serdab.linux.outside import is_instance
from serdab.linux.whereabouts import NOTHING, is_below, untold
from serdab.structs import frozen
from serdab.vfs.secondnames import SecondNames

_DELETED: Final = b" (deleted)"  # how proc_pid_fd(5) shows what has lost that name
_MAX_FINE: Final = 1024
_FILES: Final = tuple(name.encode() for name in FILES)
_DIRECTORIES: Final = tuple(name.encode() for name in DIRECTORIES)
_RESERVED: Final = _FILES + _DIRECTORIES


class Hidden(Exception):
    """What was entered is hidden; whoever asked for it hears that nothing is there."""


class Kind(Enum):
    """What becomes of a name. KEPT: shown, but it stays, since something below is hidden."""

    SHOWN = 0
    KEPT = 1
    EMPTY = 2
    ABSENT = 3


class Place:
    """A directory on the way to a hidden path, or to the instance; ``below`` by folded name."""

    __slots__ = ("below", "is_instance", "is_whole", "name")

    def __init__(self, name: bytes = b"") -> None:
        self.name = name
        self.below: dict[bytes, Place] = {}
        self.is_whole = False
        self.is_instance = False


def _parts(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    if any(part in (b"", b".", b"..") for part in parts):
        raise ValueError(f"not a plain relative path: {path!r}")
    return parts


def plan(hidden: Iterable[bytes], instance: bytes | None = None) -> Place:
    """Return the tree of hidden relative paths; ``instance`` is one too, or ``.`` for the root.

    Raises:
        ValueError: a path is absolute, empty, or goes up.
    """
    root = Place()
    for path in sorted(hidden):
        at = root
        for part in _parts(path):
            if at.is_whole:
                break
            at = at.below.setdefault(fold(part), Place(part))
        at.is_whole = True
        at.below.clear()
    if instance is not None:
        at = root
        for part in [] if instance == b"." else _parts(instance):
            at = at.below.setdefault(fold(part), Place(part))
        at.is_instance = True
    return root


def merge(one: Place | None, other: Place | None) -> Place | None:
    """Return the place that hides what one of two hides."""
    if one is None or other is None:
        return one or other
    both = Place(one.name)
    both.is_whole = one.is_whole or other.is_whole
    both.is_instance = one.is_instance or other.is_instance
    if not both.is_whole:
        for folded in one.below.keys() | other.below.keys():
            below = merge(one.below.get(folded), other.below.get(folded))
            if below is not None:
                both.below[folded] = below
    return both


@final
@frozen
class Elsewhere:
    """What is hidden wherever its second names lie: absolute paths, and that of the instance."""

    private: tuple[bytes, ...] = ()
    home: bytes | None = None


NOWHERE: Final = Elsewhere()


class Hiding:
    """The rule for one root. ``root_fd`` stays its owner's."""

    def __init__(
        self,
        root_fd: int,
        hidden: Iterable[bytes],
        instance: bytes | None,
        elsewhere: Elsewhere = NOWHERE,
    ) -> None:
        """``hidden`` and ``instance`` are paths relative to the root."""
        self._root_fd = root_fd
        self._opened_at = os.readlink(b"/proc/self/fd/%d" % root_fd)
        self._second = SecondNames(root_fd, elsewhere.private, elsewhere.home)
        try:
            here, home = self._second.below(root_fd)
            self._hidden = tuple(dict.fromkeys((*hidden, *here)))
            self._instance = home if instance is None else instance
            self.root = plan(self._hidden, self._instance)
        except BaseException:
            self._second.close()
            raise
        self.has_secrets = bool(self._hidden)
        self._fine: set[bytes] = set()
        #: what :meth:`identities` found, and the union of it
        self._parts: tuple[frozenset[Identity], ...] = (frozenset(), frozenset())
        self._known: frozenset[Identity] = frozenset()

    def close(self) -> None:
        """Close what it owns."""
        self._second.close()

    def below(self, place: Place | None, name: bytes) -> Place | None:
        """Return the place of a name below a place."""
        return place.below.get(fold(name)) if place is not None else None

    def kind(self, place: Place | None, fd: int, name: bytes) -> Kind:
        """Return what becomes of a name in the directory of a descriptor."""
        folded = fold(name)
        known = place.below.get(folded) if place is not None else None
        if known is not None and known.is_whole:
            return Kind.ABSENT
        if not is_reserved(folded) or not (
            (place is not None and place.is_instance) or is_instance(fd)
        ):
            return Kind.SHOWN if known is None else Kind.KEPT
        return Kind.EMPTY if name in SHOWN_EMPTY else Kind.ABSENT

    def is_alias(
        self, place: Place | None, fd: int, status: os.stat_result, *, crossed: bool
    ) -> bool:
        """Return whether what was found by a name that is shown is hidden by another name.

        ``crossed``: a mount of the host lies between directory and file. Without one a directory
        has no second name but in its own directory, by a fold that is not ours, and a file none if
        its link count is one.
        """
        has_links = crossed or (stat.S_ISREG(status.st_mode) and status.st_nlink > 1)
        if has_links and identity_of(status) in self.identities():
            return True
        names = [known.name for known in place.below.values()] if place is not None else []
        if (place is not None and place.is_instance) or (has_links and is_instance(fd)):
            names += _DIRECTORIES if stat.S_ISDIR(status.st_mode) else _FILES
        return _is_among(status, _found(fd, b"", names))

    def across(self, fd: int) -> Place | None:
        """Return what is hidden below a mount of the host that was entered.

        Raises:
            Hidden: all of it is.
        """
        if self._second.is_hidden(fd) or any(map(self._is_reserved, self._second.paths(fd))):
            raise Hidden
        hidden, instance = self._second.below(fd)
        return plan(hidden, instance) if hidden or instance is not None else None

    def _is_reserved(self, path: bytes) -> bool:
        """Return whether an absolute path leads into what an instance keeps for itself."""
        part = self._reserved_part(path)
        return part is not None and not is_below(self._opened_at, part)

    def is_hidden_now(self, fd: int, status: os.stat_result) -> bool:
        """Return whether the host has moved what a descriptor means to where it is hidden."""
        path = os.readlink(b"/proc/self/fd/%d" % fd)
        if path not in self._fine and (self._second.is_hidden(fd) or self._is_hidden_path(path)):
            return True
        # Its name tells, unless it may have another one by now (link(2), and the old one removed).
        if not stat.S_ISREG(status.st_mode) or status.st_nlink == 0:
            return False
        if status.st_nlink == 1 and not path.endswith(_DELETED):
            return False
        return identity_of(status) in self.identities()

    def _is_hidden_path(self, path: bytes) -> bool:
        """Return whether an absolute path leads below the root through a name that is hidden."""
        root = os.readlink(b"/proc/self/fd/%d" % self._root_fd)
        if root != self._opened_at and self._reserved_part(root) is not None:
            return True  # the host moved it there
        above = root.rstrip(b"/") + b"/"
        if not path.startswith(above):
            return False  # the root itself, or outside: as with a bind mount, that is not ours
        place: Place | None = self.root
        has_reserved = False
        parts = path[len(above) :].split(b"/")
        for number, part in enumerate(parts):
            folded = fold(part)
            known = place.below.get(folded) if place is not None else None
            if known is not None and known.is_whole:
                return True
            if is_reserved(folded):
                has_reserved = True
                if place is not None and place.is_instance:
                    return True
                if self._is_instance(b"/".join(parts[:number])):
                    return True
            place = known
        if not has_reserved:
            # Then it is for good: every write asks.
            if len(self._fine) >= _MAX_FINE:
                self._fine.clear()
            self._fine.add(path)
        return False

    def _reserved_part(self, path: bytes) -> bytes | None:
        """Return the first part of an absolute path that an instance keeps for itself."""
        parts = path.split(b"/")
        for number, part in enumerate(parts):
            if is_reserved(fold(part)) and self._is_instance(b"/".join(parts[:number]) or b"/"):
                return b"/".join(parts[: number + 1])
        return None

    def _is_instance(self, path: bytes) -> bool:
        try:
            if path.startswith(b"/"):
                fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            else:
                fd = openat2(self._root_fd, path or b".", os.O_PATH | os.O_DIRECTORY, CONFINED)
        except OSError as exc:
            if exc.errno in NOTHING:
                return False
            raise untold(path, exc) from exc
        try:
            return is_instance(fd)
        finally:
            os.close(fd)

    def identities(self) -> frozenset[Identity]:
        """Return device and inode number of what is hidden at a known path, at this moment."""
        here = [*_found(self._root_fd, b"", self._hidden)]
        if self._instance is not None:
            here += _found(self._root_fd, self._instance, _RESERVED)
        parts = (self._second.identities(), frozenset(map(identity_of, here)))
        if parts[0] is not self._parts[0] or parts[1] != self._parts[1]:
            self._parts, self._known = parts, parts[0] | parts[1]
        return self._known


def _is_among(status: os.stat_result, others: Iterable[os.stat_result]) -> bool:
    return any(os.path.samestat(status, other) for other in others)


def _join(directory: bytes, name: bytes) -> bytes:
    return name if directory in (b"", b".") else directory + b"/" + name


def _found(fd: int, directory: bytes, names: Iterable[bytes]) -> Iterator[os.stat_result]:
    for name in names:
        path = _join(directory, name)
        try:
            yield os.stat(path, dir_fd=fd, follow_symlinks=False)
        except OSError as exc:
            if exc.errno not in NOTHING:
                raise untold(path, exc) from exc
