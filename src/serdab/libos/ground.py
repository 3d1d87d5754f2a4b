# SPDX-License-Identifier: Apache-2.0
"""Opens host directories for a boot, from the instance's descriptor: the one door of ``libos``.

A relative path lies below the instance, and no link on it is followed. An absolute one, and one
with ``..``, is walked component by component; a link is followed only where nobody but root or the
caller writes, and in no *closed* directory: an instance, or one that programs are shown.

Above: ``boot``, ``fence``, ``layers``, ``hostdirs``. Below: ``linux.dirfd``, ``linux.outside``. It
travels to fs servers: the descriptor beside the record.

Security: a directory is told from others by device and inode of what was opened, never by its
path. What ``keep`` is given stays open, so that no other directory gets its number meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Collection, Iterable
from types import TracebackType
from typing import Final, Self, final

from serdab.errors import Error, FormatError, UsageError
from serdab.linux.dirfd import DirFd, components, word_for
from serdab.linux.identity import Identity, identity
from serdab.linux.outside import Walk
from serdab.linux.whereabouts import MountTable, leads_nowhere

_HERE: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LISTABLE: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_IDENTITY: Final = struct.Struct("<QQ")


class LedElsewhere(UsageError):
    """There is a link that is not to be followed, or the way changes at this moment."""


@final
class Way:
    """The directories on the way to one, itself the last: it owns their descriptors.

    A way from the instance begins there, any other at the root.
    """

    __slots__ = ("_fds",)

    def __init__(self, fds: list[int]) -> None:
        self._fds = fds

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors (O_PATH), from the first to the last."""
        return tuple(self._fds)

    def passes(self, which: Collection[Identity]) -> bool:
        """Return whether one of these directories lies on the way, or at its end."""
        return any(identity(fd) in which for fd in self._fds)

    def real(self) -> str:
        """Return the path that the kernel has for the last one: for messages and as a name."""
        return os.readlink(f"/proc/self/fd/{self._fds[-1]}")

    def open(self, label: str) -> DirFd:
        """Return the last one, open for listing.

        Raises:
            UsageError: it may not be read.
        """
        try:
            return DirFd(os.open(f"/proc/self/fd/{self._fds[-1]}", _LISTABLE), label)
        except OSError as exc:
            raise _missing(label, exc) from exc

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@final
class Ground:
    """The instance's directory, which it owns, and the identities of closed directories."""

    __slots__ = ("_kept", "closed", "instance")

    def __init__(self, instance: DirFd, closed: Iterable[Identity] = ()) -> None:
        self.instance = instance
        self.closed = {identity(instance.fd), *closed}
        self._kept: list[int] = []

    @classmethod
    def at(cls, path: str) -> Ground:
        """Return the ground of an instance that the user named.

        Raises:
            OSError: as open(2).
        """
        return cls(DirFd.at(path))

    def name(self, path: str) -> str:
        """Return what messages call a path."""
        return self.instance.name(path)

    def real(self, path: str) -> str:
        """Return the path by which a record knows what may not be there yet.

        Raises:
            UsageError: as :meth:`make`.
        """
        way, missing = self._nearest(path)
        with way:
            return os.path.join(way.real(), missing).rstrip("/")

    def spelled(self, path: str) -> str:
        """Return where a path lies by its words alone, for what is judged by name."""
        return os.path.normpath(os.path.join(self.instance.real(), path))

    # Ways ----------------------------------------------------------------------------------

    def way(self, path: str) -> Way:
        """Open all directories on the way.

        Raises:
            UsageError: there is no such directory.
            LedElsewhere: there is a link, or the way to it leads through one.
        """
        if "\0" in path or not path:
            raise _missing(path.replace("\0", "?"), OSError(errno.ENOENT, ""))
        if path.startswith("/") or ".." in path.split("/"):
            return self._walk(path)
        return self._below(path)

    def _below(self, path: str) -> Way:
        fds = [os.open(".", _HERE, dir_fd=self.instance.fd)]
        try:
            for name in components(path):
                fds.append(os.open(name, _HERE, dir_fd=fds[-1]))
            return Way(fds)
        except OSError as exc:
            Way(fds).close()
            if exc.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise _missing(self.name(path), exc) from exc
            raise _in_the_way(self.instance, path) from exc

    def _walk(self, path: str) -> Way:
        try:
            way = Way(Walk(self.closed).way(path, base=self.instance))
        except UsageError as exc:
            cause = exc.__cause__
            if isinstance(cause, OSError) and cause.errno != errno.ELOOP:
                raise _missing(self.name(path), cause) from cause
            raise _elsewhere(exc) from exc
        mode = os.fstat(way.fds[-1]).st_mode
        if not stat.S_ISDIR(mode):
            way.close()
            raise UsageError(
                "not a directory",
                subject=self.name(path),
                expected="a directory",
                found=word_for(mode),
            )
        return way

    def directory(self, path: str) -> DirFd:
        """Open a directory; raises as :meth:`way`."""
        with self.way(path) as way:
            return way.open(self.name(path))

    def make(self, path: str, *, mode: int) -> DirFd:
        """Open a directory, made with those before it where they are missing.

        Raises:
            OSError: as mkdir(2).
            UsageError: something else is there, or on the way to it.
        """
        way, missing = self._nearest(path)
        with way, way.open(way.real()) as base:
            try:
                made = base.make(missing or ".", mode=mode)
            except OSError as exc:
                if exc.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise _in_the_way(base, missing) from exc
                raise
        made.path = self.name(path)
        return made

    def _nearest(self, path: str) -> tuple[Way, str]:
        """Return the way to what is there already, and the rest of the path."""
        there, missing = path, ""
        while True:
            try:
                return self.way(there or "."), missing
            except UsageError as exc:
                cause = exc.__cause__
                is_missing = isinstance(cause, OSError) and cause.errno == errno.ENOENT
                head, _, tail = there.rstrip("/").rpartition("/")
                if isinstance(exc, LedElsewhere) or not is_missing or not tail:
                    raise
                there = head or ("/" if path.startswith("/") else "")
                missing = os.path.join(tail, missing) if missing else tail

    # Closed directories --------------------------------------------------------------------

    def beside(self, path: str) -> Way:
        """Return the way to what should lie outside of them, of whatever kind it is.

        Raises:
            UsageError: there is nothing, or a link that is not to be followed.
        """
        return Way(Walk(self.closed).way(path))

    def leads_inside(self, way: Way) -> bool:
        """Return whether a way leads into a closed directory, by whatever mount it does."""
        if way.passes(self.closed):
            return True
        with MountTable() as table:
            here = table.of(way.fds[-1])
            return any(
                here.is_below(shown)
                for fd in (self.instance.fd, *self._kept)
                for shown in table.shown_in(fd)
            )

    def keep(self, fd: int) -> None:
        """Close a directory from now on: no link in it is followed. The descriptor stays ours."""
        self._kept.append(os.open(".", _HERE, dir_fd=fd))
        self.closed.add(identity(fd))

    def close_off(self, paths: Iterable[str]) -> None:
        """Close the directories at these paths, as far as there are any.

        Raises:
            UsageError: that cannot be told of one.
        """
        for path in paths:
            try:
                way = self.way(path)
            except UsageError as exc:
                if not leads_nowhere(exc):
                    raise
                continue  # whoever needs it says what is wrong with it
            with way:
                self.keep(way.fds[-1])

    # Travelling ----------------------------------------------------------------------------

    def dump_closed(self) -> bytes:
        """Return the closed directories as part of a record; the descriptor goes beside it."""
        return dump_identities(self.closed)

    def close(self) -> None:
        """Close what it owns."""
        self.instance.close()
        while self._kept:
            os.close(self._kept.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@final
class Roots:
    """The directories that a field of the configuration names, each from when it is found.

    They are opened when the boot begins. One that is not there yet is looked for again by
    :meth:`look`: below the instance no link leads elsewhere then either.
    """

    __slots__ = ("_found", "_ground", "names")

    def __init__(self, names: tuple[str, ...], ground: Ground) -> None:
        self.names = names
        self._ground = ground
        self._found: dict[str, Identity] = {}
        self.look()

    def look(self) -> None:
        """Open those that were not found before; raises as :meth:`Ground.close_off`."""
        for name in self.names:
            if name in self._found:
                continue
            try:
                way = self._ground.way(name)
            except UsageError as exc:
                if not leads_nowhere(exc):
                    raise
                continue  # nothing lies below a directory that is not there
            with way:
                self._ground.keep(way.fds[-1])
                self._found[name] = identity(way.fds[-1])

    @property
    def identities(self) -> frozenset[Identity]:
        """What was found."""
        return frozenset(self._found.values())


def dump_identities(which: Iterable[Identity]) -> bytes:
    """Return identities as part of a record; an inode may need all of 64 bits."""
    return b"".join(_IDENTITY.pack(*each) for each in sorted(which))


def parse_identities(raw: bytes) -> frozenset[Identity]:
    """Return the identities in a record.

    Raises:
        FormatError: it is not what :func:`dump_identities` makes.
    """
    if len(raw) % _IDENTITY.size:
        raise FormatError("orders to an fs server: identities are malformed")
    return frozenset(_IDENTITY.iter_unpack(raw))


def _missing(subject: str, cause: OSError) -> UsageError:
    return UsageError(
        "no such host directory",
        subject=subject,
        expected="a directory below the instance, or an absolute path",
        found=os.strerror(cause.errno or 0),
    )


def _in_the_way(base: DirFd, path: str) -> UsageError:
    """Return the refusal of a way on which something was no directory a moment ago."""
    error = base.not_ours(path, "a directory")
    names = components(path)
    for length in range(1, len(names) + 1):
        status = base.status("/".join(names[:length]))
        if status is not None and stat.S_ISDIR(status.st_mode):
            continue
        if status is None or stat.S_ISLNK(status.st_mode):
            break
        return _elsewhere(error, kind=UsageError)
    return _elsewhere(error)


def _elsewhere(error: Error, *, kind: type[UsageError] = LedElsewhere) -> UsageError:
    return kind(
        error.message,
        subject=error.subject,
        expected=error.expected,
        found=error.found,
        hint=error.hint,
    )
