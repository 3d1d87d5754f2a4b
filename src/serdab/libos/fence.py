# SPDX-License-Identifier: Apache-2.0
"""Opens a host directory that a program named, if it lies where the measured configuration allows.

Above: ``storage``, ``layers`` (in fs servers). Below: ``hostdirs``.

Security:
    The directory is opened first, with all links followed, and then asked where it lies. What was
    checked is the descriptor, and the descriptor is what is used: a path that is renamed, or turned
    into a link, between check and use leads nowhere else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from serdab.errors import NotAllowedError, UsageError
from serdab.libos import hostdirs


@dataclass(frozen=True, slots=True)
class Place:
    """An open directory: its descriptor, the real path it had, what is hidden in it.

    ``hidden`` and ``instance`` as in ``hostdirs.Shown``.
    """

    fd: int
    path: str
    hidden: tuple[str, ...]
    instance: str


@dataclass(frozen=True, slots=True)
class Fence:
    """Where directories may lie: below ``roots``, and nowhere in what is never shown.

    All are real paths; relative paths of a program start at ``instance``.
    """

    instance: str
    roots: tuple[str, ...]
    private: tuple[str, ...]

    def enter(self, path: str) -> Place:
        """Open a directory; the descriptor is the caller's.

        Raises:
            UsageError: there is no such directory.
            NotAllowedError: it lies elsewhere.
        """
        if "\0" in path:
            raise UsageError("no such host directory", subject=path.replace("\0", "?"))
        try:
            # O_PATH: whatever lies there, opening it has no effect.
            fd = os.open(os.path.join(self.instance, path), os.O_PATH | os.O_CLOEXEC)
        except OSError as exc:
            raise UsageError(
                "no such host directory",
                subject=path,
                expected="a directory below the instance, or an absolute path",
                found=os.strerror(exc.errno or 0),
            ) from None
        try:
            return self._check(fd, path)
        finally:
            os.close(fd)

    def _check(self, fd: int, path: str) -> Place:
        real = os.readlink(f"/proc/self/fd/{fd}")
        if not any(hostdirs.is_below(real, root) for root in self.roots):
            raise NotAllowedError(
                "this host directory is not among those that programs may mount",
                subject=path,
                expected="a directory below " + " or ".join(self.roots),
                found=real,
                hint="serdab.host_directories in Occlum.json lists them",
            )
        try:
            shown = hostdirs.show(real, instance=self.instance, private=self.private)
        except UsageError as exc:
            raise NotAllowedError(
                exc.message, subject=path, expected=exc.expected, found=real, hint=exc.hint
            ) from None
        try:
            opened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise UsageError(
                "no such host directory",
                subject=path,
                expected="a directory",
                found=os.strerror(exc.errno or 0),
            ) from None
        return Place(opened, real, shown.hidden, shown.instance)
