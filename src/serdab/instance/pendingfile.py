# SPDX-License-Identifier: Apache-2.0
"""Files that appear under their name whole or not at all, and never in another's place.

Above: ``package``.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import BinaryIO

from serdab.errors import UsageError


def require_free(*paths: str) -> None:
    """Refuse a path where something is.

    Raises:
        UsageError: something is there, if only a dangling link.
    """
    for path in paths:
        if os.path.lexists(path):
            raise UsageError(
                "something is there already",
                subject=path,
                expected="a path where nothing is",
                found="a file" if os.path.isfile(path) else "something",
                hint="remove it first, or name another",
            )


class PendingFile:
    """A file that gets its name only when it is whole, and never another's.

    It has none before that (O_TMPFILE, open(2)), so that a kill leaves nothing, but on file systems
    that cannot do that.
    """

    def __init__(self, path: str, stack: ExitStack) -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            fd = os.open(os.path.dirname(path) or ".", flags | os.O_TMPFILE, 0o644)
            self._source = f"/proc/self/fd/{fd}"
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                raise
            self._source = f"{path}.new-{os.getpid()}"
            fd = os.open(self._source, flags | os.O_CREAT | os.O_EXCL, 0o644)
            stack.callback(os.unlink, self._source)
        self.file: BinaryIO = stack.enter_context(os.fdopen(fd, "w+b"))

    def publish(self) -> None:
        """Give it its name; durable when the directory is synced.

        Raises:
            UsageError: the name was taken in the meantime.
        """
        self.file.flush()
        os.fsync(self.file.fileno())
        try:
            # A descriptor for the directory makes it linkat(2) with AT_SYMLINK_FOLLOW, which the
            # link below /proc needs; for an absolute path it means nothing else.
            os.link(self._source, self._path, src_dir_fd=self.file.fileno())
        except FileExistsError:
            require_free(self._path)
            raise
