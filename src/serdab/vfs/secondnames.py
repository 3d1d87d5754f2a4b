# SPDX-License-Identifier: Apache-2.0
"""Second names that the host has for what is hidden, wherever the first one lies.

A *bind mount* of something hidden, of what is in it, or of a directory around it, is known by where
it lies in its file system (``linux.whereabouts``). A *hard link* of a hidden file is known by
device and inode number: so all that is hidden is listed, and the list renewed where a directory
changed.

Above: ``hiding``. Below: ``config.names``, ``linux.whereabouts``.

Security:
    1. Hidden are the paths given, and in the instance at ``home`` its own names, of which the
       source trees are not listed: a file of these that has a second name is one file
       (docs/config.md).
    2. Whoever cannot be told from what is hidden is refused: see ``whereabouts.untold``.
    3. The storage decides how much lies in ``build`` and ``run``: the list is bounded.
"""

from __future__ import annotations

import operator
import os
import stat
import time
from collections.abc import Iterable, Iterator
from typing import Final, final

from serdab.config.names import DIRECTORIES, FILES, SHOWN_ON_REQUEST, fold, is_reserved
from serdab.errors import Error
from serdab.linux.files import CONFINED, openat2
from serdab.linux.identity import Identity, identity_of
from serdab.linux.whereabouts import NOTHING, MountTable, Where, untold
from serdab.structs import mutable

_MAX_LISTED: Final = 1 << 17
#: A directory that changed so short a time before it was listed may change again within the same
#: tick of the clock that stamps it, or of another machine's.
_RACY_NS: Final = 2_000_000_000
_LISTABLE: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_UNLISTED: Final = frozenset(name.encode() for name in SHOWN_ON_REQUEST)


@final
@mutable
class _Listed:
    """A file, or a directory when it was listed: its stamp, what was found there and in it, and
    the directories of that.
    """

    stamp: tuple[int, ...]
    is_settled: bool
    found: frozenset[Identity]
    directories: tuple[bytes, ...]


@final
class _Tree:
    """What lies at a path: a file, or a directory with all below. Links are not followed.

    ``is_home``: of the top only the names that an instance keeps for itself.
    """

    def __init__(self, path: bytes, *, is_home: bool = False) -> None:
        self._path = path
        self._is_home = is_home
        self._known: dict[bytes, _Listed] = {}
        self._found: frozenset[Identity] = frozenset()

    def identities(self) -> frozenset[Identity]:
        """Return those of all that is there now; directories that did not change are not listed.

        The same object as before if nothing did.
        """
        seen: dict[bytes, _Listed] = {}
        pending = [b""]
        count = 0
        while pending:
            relative = pending.pop()
            listed = self._look(relative)
            if listed is None:
                continue
            seen[relative] = listed
            count += len(listed.found)
            if count > _MAX_LISTED:
                raise Error(
                    "it cannot be told what must not be shown to programs",
                    subject=os.fsdecode(self._path),
                    expected=f"at most {_MAX_LISTED} files",
                    found="more",
                )
            pending += (os.path.join(relative, name) for name in listed.directories)
        is_same = len(seen) == len(self._known) and all(
            self._known.get(relative) is listed for relative, listed in seen.items()
        )
        if not is_same:
            self._found = frozenset().union(*(listed.found for listed in seen.values()))
            self._known = seen
        return self._found

    def _look(self, relative: bytes) -> _Listed | None:
        """Return what is at a path now; None if nothing is."""
        path = os.path.join(self._path, relative) if relative else self._path
        known = self._known.get(relative)
        try:
            status = os.stat(path, follow_symlinks=False)
            if known is not None and known.is_settled and known.stamp == _stamp(status):
                return known
            is_listed = not (self._is_home and relative in _UNLISTED)
            if stat.S_ISDIR(status.st_mode) and is_listed:
                return self._list(relative)
        except OSError as exc:
            if exc.errno in NOTHING:
                return None  # it went, or is a link
            raise untold(path, exc) from exc
        return _Listed(_stamp(status), True, frozenset((identity_of(status),)), ())

    def _list(self, relative: bytes) -> _Listed:
        top = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = openat2(top, relative or b".", _LISTABLE, CONFINED)
        finally:
            os.close(top)
        try:
            now = time.time_ns()
            status = os.fstat(fd)
            is_top_of_home = self._is_home and not relative
            found = set() if is_top_of_home else {identity_of(status)}
            directories = []
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    if is_top_of_home and not is_reserved(fold(name)):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(name)
                    else:
                        # Not what the entry says: on an overlayfs it is another number.
                        of_file = os.stat(name, dir_fd=fd, follow_symlinks=False)
                        found.add(identity_of(of_file))
            is_settled = max(status.st_mtime_ns, status.st_ctime_ns) + _RACY_NS < now
            return _Listed(_stamp(status), is_settled, frozenset(found), tuple(directories))
        finally:
            os.close(fd)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return *identity_of(status), status.st_mtime_ns, status.st_ctime_ns


@final
class SecondNames:
    """What is hidden of the host for one root; it owns a descriptor.

    ``private`` are absolute paths, ``home`` that of the instance. What contains the root itself is
    not hidden: whoever opened the root decided about that (``libos.hostdirs``).
    """

    def __init__(self, root_fd: int, private: Iterable[bytes], home: bytes | None) -> None:
        self._table = MountTable()
        try:
            root = self._table.of(root_fd)
            paths = tuple(private)
            own = () if home is None else (os.path.join(home, name) for name in _own_names())
            self._own = frozenset(where for path in own for where in self._outside(path, root))
            self._private = frozenset(
                where for path in paths for where in self._outside(path, root)
            )
            self._home = frozenset() if home is None else self._table.named(home)
            self._trees = [_Tree(path) for path in paths]
            self._found: list[frozenset[Identity]] | None = None
            self._all: frozenset[Identity] = frozenset()
            if home is not None:
                self._trees.append(_Tree(home, is_home=True))
        except BaseException:
            self._table.close()
            raise

    def _outside(self, path: bytes, root: Where) -> frozenset[Where]:
        return frozenset(where for where in self._table.named(path) if not root.is_below(where))

    def is_hidden(self, fd: int) -> bool:
        """Return whether what a descriptor stands for lies where it is hidden."""
        where = self._table.of(fd)
        return any(where.is_below(other) for other in (*self._private, *self._own))

    def paths(self, fd: int) -> Iterator[bytes]:
        """Yield the host's paths of what a descriptor stands for."""
        return self._table.names(self._table.of(fd))

    def below(self, fd: int) -> tuple[list[bytes], bytes | None]:
        """Return the relative paths that are hidden in a directory, and the instance's (``.``: it
        is the directory itself; None: it does not lie there).
        """
        here = self._table.of(fd)
        hidden = [
            where.below(here)
            for where in self._private
            if where.is_below(here) and not any(where.is_below(own) for own in self._own)
        ]
        home = next((each for each in self._home if each.is_below(here)), None)
        return hidden, None if home is None else home.below(here) or b"."

    def identities(self) -> frozenset[Identity]:
        """Return device and inode number of all that is hidden at this moment.

        The same object as before if nothing changed.

        Raises:
            Error: that cannot be told.
        """
        found = [tree.identities() for tree in self._trees]
        if self._found is None or not all(map(operator.is_, found, self._found)):
            self._all, self._found = frozenset().union(*found), found
        return self._all

    def close(self) -> None:
        """Close it; harmless afterwards."""
        self._table.close()


def _own_names() -> Iterator[bytes]:
    return (name.encode() for name in (*FILES, *DIRECTORIES))
