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
from serdab.linux.dirfd import DirFd


def require_free(directory: DirFd, *names: str) -> None:
    """Refuse a name where something is.

    Raises:
        UsageError: something is there, if only a dangling link.
    """
    for name in names:
        if directory.exists(name):
            raise UsageError(
                "something is there already",
                subject=directory.name(name),
                expected="a path where nothing is",
                found="a file" if directory.is_file(name) else "something",
                hint="remove it first, or name another",
            )


class PendingFile:
    """A file that gets its name only when it is whole, and never another's.

    It has none before that (O_TMPFILE, open(2)), so that a kill leaves nothing, but on file systems
    that cannot do that.
    """

    def __init__(self, directory: DirFd, name: str, stack: ExitStack) -> None:
        self._directory = directory
        self._name = name
        self._source = ""
        try:
            fd = directory.open("", os.O_RDWR | os.O_TMPFILE, mode=0o644)
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                raise
            self._source = f"{name}.new-{os.getpid()}"
            fd = directory.open(self._source, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=0o644)
            stack.callback(directory.remove, self._source)
        self.file: BinaryIO = stack.enter_context(os.fdopen(fd, "w+b"))

    def publish(self) -> None:
        """Give it its name; durable when the directory is synced.

        Raises:
            UsageError: the name was taken in the meantime.
        """
        self.file.flush()
        os.fsync(self.file.fileno())
        # Of the file that was written, whatever bears the name that it had: linkat(2) with
        # AT_SYMLINK_FOLLOW, which Python does where a descriptor for a directory is given.
        written = f"/proc/self/fd/{self.file.fileno()}"
        try:
            os.link(
                written, self._name, src_dir_fd=self._directory.fd, dst_dir_fd=self._directory.fd
            )
        except FileExistsError:
            require_free(self._directory, self._name)
            raise
