# SPDX-License-Identifier: Apache-2.0
"""Opens a host directory that a program named, if it lies where the measured configuration allows.

Above: ``storage``, ``layers`` (in fs servers). Below: ``ground``, ``hostdirs``.

Security:
    Each directory on the way is opened from the one before, and what was opened is asked whether it
    is one of the roots. What was checked is a descriptor, and the descriptor is what is used: a
    name that is renamed, or turned into a link, leads nowhere else at any moment.
"""

from __future__ import annotations

from collections.abc import Mapping

from serdab.errors import NotAllowedError, UsageError
from serdab.libos import hostdirs
from serdab.libos.fields import many, raw
from serdab.libos.ground import Ground, LedElsewhere, Way, dump_identities, parse_identities
from serdab.libos.messages import Value
from serdab.linux.dirfd import DirFd
from serdab.linux.identity import Identity
from serdab.structs import frozen


@frozen
class Place:
    """An open directory, the real path it has, what is hidden in it.

    ``hidden`` and ``instance`` as in ``hostdirs.Shown``.
    """

    directory: DirFd
    path: str
    hidden: tuple[str, ...]
    instance: str


@frozen
class Fence:
    """Where directories may lie: in ``roots``, and nowhere in what is never shown.

    ``names`` are what the configuration calls the roots, for messages. ``private`` are real paths.
    """

    roots: frozenset[Identity]
    names: tuple[str, ...]
    private: tuple[str, ...]

    def enter(self, ground: Ground, path: str) -> Place:
        """Open a directory; relative paths of a program start at the instance.

        Raises:
            UsageError: there is no such directory.
            NotAllowedError: it lies elsewhere.
        """
        self._refuse_hidden(ground, path)
        try:
            way = ground.way(path)
        except LedElsewhere as exc:
            raise _not_allowed(exc, exc.subject) from None
        with way:
            return self._check(ground, way, path)

    def _refuse_hidden(self, ground: Ground, path: str) -> None:
        """Refuse what is hidden by its name alone: the same, whatever is there, or nothing."""
        if "\0" in path:
            return  # names nothing, as whoever opens it says
        try:
            hostdirs.show(ground.spelled(path), instance=ground.real("."), private=self.private)
        except UsageError as exc:
            raise _not_allowed(exc, path) from None

    def _check(self, ground: Ground, way: Way, path: str) -> Place:
        real = way.real()
        if not way.passes(self.roots):
            raise NotAllowedError(
                "this host directory is not among those that programs may mount",
                subject=path,
                expected="a directory below " + " or ".join(map(ground.name, self.names)),
                found=real,
                hint="serdab.host_directories in Occlum.json lists them",
            )
        try:
            hostdirs.refuse_private(way, real, ground=ground, private=self.private)
            shown = hostdirs.show(real, instance=ground.real("."), private=self.private)
        except UsageError as exc:
            raise _not_allowed(exc, path) from None
        return Place(way.open(path), real, shown.hidden, shown.instance)

    def dump(self) -> dict[str, Value]:
        """Return the record that travels to an fs server."""
        return {
            "roots": dump_identities(self.roots),
            "names": list(self.names),
            "private": list(self.private),
        }

    @classmethod
    def parse(cls, record: Mapping[str, Value]) -> Fence:
        """Return the fence in a record.

        Raises:
            FormatError: it is not what :meth:`dump` makes.
        """
        return cls(
            parse_identities(raw(record, "roots")),
            tuple(map(str, many(record, "names"))),
            tuple(map(str, many(record, "private"))),
        )


def _not_allowed(exc: UsageError, subject: str) -> NotAllowedError:
    return NotAllowedError(
        exc.message, subject=subject, expected=exc.expected, found=exc.found, hint=exc.hint
    )
