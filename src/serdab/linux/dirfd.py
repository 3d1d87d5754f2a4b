# SPDX-License-Identifier: Apache-2.0
"""The one door to what lies below a directory that others write: its descriptor.

A program inside (through a host directory) and the storage rename, link and exchange names at any
moment. So a verb opens the directory once, and every later path is relative to that descriptor,
one component at a time, no link ever followed and no ``..`` taken: what openat2(2) does with
RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and RESOLVE_NO_MAGICLINKS. It is done with openat(2) and
O_NOFOLLOW, since that needs no ctypes, which every ``run`` would pay for (docs/adr/0014).

Above: ``instance``, ``libos``, ``sefs``, ``trust``. Beside it: ``outside`` (absolute paths).

Security:
    1. What was opened is looked at by fstat(2) on the descriptor, never by its name again.
    2. Files are opened with O_NONBLOCK and must be regular before they are read: a FIFO hangs
       nobody, a device is not touched beyond its open.
    3. ``path`` is for messages only.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from serdab.errors import Error, UsageError

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final, Self, final
else:

    def final(decorated):  # noqa: ANN001, ANN201 - typing's, which does nothing at run time
        return decorated


_FOLLOW_NOTHING: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_WAY: Final = os.O_PATH | os.O_DIRECTORY | _FOLLOW_NOTHING
_LISTABLE: Final = os.O_RDONLY | os.O_DIRECTORY | _FOLLOW_NOTHING
#: What openat(2) says of a link, or of something else, where a directory or file should be.
_OTHER_KIND: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR})


def components(relative: str) -> list[str]:
    """Return the names in a relative path.

    Raises:
        UsageError: it is absolute, or it leads upwards.
    """
    names = [name for name in relative.split("/") if name not in ("", ".")]
    if relative.startswith("/") or ".." in names or "\0" in relative:
        raise UsageError(
            "not a path below the directory",
            subject=relative.replace("\0", "?"),
            expected="a relative path without ..",
            found="an absolute one" if relative.startswith("/") else "one that leads elsewhere",
        )
    return names


def word_for(mode: int) -> str:
    """Return what to call a file of this ``st_mode``."""
    words = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return words.get(stat.S_IFMT(mode), "something else")


@final
class DirFd:
    """An open directory; it owns its descriptor, and ``path`` is what messages call it."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    def __repr__(self) -> str:
        return f"DirFd({self.path!r})"

    @classmethod
    def at(cls, path: str) -> DirFd:
        """Open a directory that the user named; links on the way to it are the user's, once.

        Raises:
            OSError: as open(2).
        """
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), path)

    def name(self, relative: str) -> str:
        """Return what messages call something below."""
        return os.path.join(self.path, relative) if relative else self.path

    def real(self, relative: str = "") -> str:
        """Return the path by which records know what lies below, whether it is there or not.

        It is the kernel's, and of this moment. No link counts below, so the rest is as it is.

        Raises:
            UsageError: the path leads elsewhere.
        """
        here = os.readlink(f"/proc/self/fd/{self.fd}")
        return os.path.join(here, *components(relative))

    # Descriptors ---------------------------------------------------------------------------

    @contextmanager
    def _parent(self, relative: str, *, make_mode: int | None = None) -> Iterator[tuple[int, str]]:
        """Open all but the last component; yield the descriptor and the last name."""
        names = components(relative)
        if not names:
            yield self.fd, "."
            return
        fd = self.fd
        try:
            for name in names[:-1]:
                below = _step(fd, name, make_mode)
                if fd != self.fd:
                    os.close(fd)
                fd = below
            yield fd, names[-1]
        finally:
            if fd != self.fd:
                os.close(fd)

    def open(self, relative: str, flags: int, *, mode: int = 0o600) -> int:
        """openat(2) below here; neither the last component nor one before it may be a link.

        With O_PATH a link itself can be opened.

        Raises:
            OSError: ELOOP or ENOTDIR where something else than expected stands in the way.
            UsageError: the path leads elsewhere.
        """
        with self._parent(relative) as (fd, name):
            return os.open(name, flags | _FOLLOW_NOTHING, mode, dir_fd=fd)

    def directory(self, relative: str) -> DirFd:
        """Open a directory below here.

        Raises:
            OSError: there is none, or it cannot be opened.
            UsageError: something else stands there, or on the way to it.
        """
        try:
            return DirFd(self.open(relative, _LISTABLE), self.name(relative))
        except OSError as exc:
            if exc.errno in _OTHER_KIND:
                raise self.not_ours(relative, "a directory") from exc
            raise

    def make(self, relative: str, *, mode: int = 0o755) -> DirFd:
        """Make a directory, and those before it, where they are missing; return it open.

        Raises:
            OSError: one cannot be made.
            UsageError: something else stands there, or on the way to it.
        """
        try:
            return self._make(relative, mode)
        except OSError as exc:
            if exc.errno in _OTHER_KIND:
                raise self.not_ours(relative, "a directory") from exc
            raise

    def _make(self, relative: str, mode: int) -> DirFd:
        with self._parent(relative, make_mode=mode) as (fd, name):
            try:
                os.mkdir(name, mode, dir_fd=fd)
            except FileExistsError:
                pass
            return DirFd(os.open(name, _LISTABLE, dir_fd=fd), self.name(relative))

    # Looking -------------------------------------------------------------------------------

    def status(self, relative: str = "") -> os.stat_result | None:
        """Return the status of what is there, a link's own; None if nothing is.

        A way that leads through a link or a file is a way to nothing.
        """
        try:
            with self._parent(relative) as (fd, name):
                return os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise

    def exists(self, relative: str) -> bool:
        """Return whether anything is there."""
        return self.status(relative) is not None

    def is_directory(self, relative: str) -> bool:
        """Return whether a directory is there, and not a link to one."""
        found = self.status(relative)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def is_file(self, relative: str) -> bool:
        """Return whether a regular file is there, and not a link to one."""
        found = self.status(relative)
        return found is not None and stat.S_ISREG(found.st_mode)

    def is_plain(self, relative: str) -> bool:
        """Return whether what stands on the way there, and there itself, is no link.

        Nothing at all is plain; a file on the way is not.
        """
        names = components(relative)
        for length in range(1, len(names) + 1):
            status = self.status("/".join(names[:length]))
            if status is None:
                return True
            if stat.S_ISLNK(status.st_mode):
                return False
            if length < len(names) and not stat.S_ISDIR(status.st_mode):
                return False
        return True

    def require_plain(self, relative: str, expected: str) -> None:
        """Refuse a link there, or a link or a file on the way to it; nothing at all passes.

        What is done afterwards still follows no link: this is for the message.

        Raises:
            UsageError: names what is in the way.
        """
        if not self.is_plain(relative):
            raise self.not_ours(relative, expected)

    def names(self, relative: str = "") -> list[str]:
        """Return the sorted names in a directory; none where there is no directory."""
        try:
            with DirFd(self.open(relative, _LISTABLE), relative) as directory:
                return sorted(os.listdir(directory.fd))
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return []
            raise

    # Files ---------------------------------------------------------------------------------

    def open_file(self, relative: str) -> int:
        """Open a regular file for reading.

        Raises:
            OSError: as :meth:`open`; ELOOP and ENOTDIR are told as UsageError.
            UsageError: something else stands there, or on the way to it.
        """
        try:
            fd = self.open(relative, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as exc:
            if exc.errno in _OTHER_KIND:
                raise self.not_ours(relative, "a file") from exc
            raise
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise self.not_ours(relative, "a file", found=word_for(mode))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def read(self, relative: str, limit: int) -> bytes:
        """Return the bytes of a regular file, at most ``limit``.

        Raises:
            OSError: as :meth:`open_file`.
            UsageError: as :meth:`open_file`, or it is larger.
        """
        with open(self.open_file(relative), "rb", buffering=0) as file:
            parts, left = [], limit + 1
            while left and (part := file.read(left)):
                parts.append(part)
                left -= len(part)
        if not left:
            raise UsageError(
                "the file is too large",
                subject=self.name(relative),
                expected=f"at most {limit} bytes",
                found="more",
            )
        return b"".join(parts)

    def write_new(self, relative: str, content: bytes, *, mode: int = 0o666) -> None:
        """Write a new file durably, its directories made if missing; the umask holds.

        Raises:
            FileExistsError: something is there.
        """
        with self._parent(relative, make_mode=0o755) as (parent, name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FOLLOW_NOTHING
            with open(os.open(name, flags, mode, dir_fd=parent), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

    # Changing ------------------------------------------------------------------------------

    def remove(self, relative: str) -> None:
        """Remove whatever is there, if anything is: a whole tree, of a link the link."""
        if self.status(relative) is None:
            return
        try:
            with self._parent(relative) as (fd, name):
                if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    from serdab.linux.dirtree import remove

                    # Not shutil.rmtree: it recurses and keeps a descriptor per level, and whoever
                    # writes here decides how deep it is.
                    remove(fd, name, self.name(relative))
                else:
                    os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            pass

    def rename(self, old: str, new: str, *, to: DirFd | None = None) -> None:
        """renameat(2), to a path below another directory if ``to`` is given."""
        with self._parent(old) as (fd, name), (to or self)._parent(new) as (new_fd, new_name):
            os.rename(name, new_name, src_dir_fd=fd, dst_dir_fd=new_fd)

    def exchange(self, first: str, second: str) -> None:
        """Swap two names in one step (renameat2(2), RENAME_EXCHANGE).

        Raises:
            OSError: EINVAL where the file system cannot do it.
        """
        from serdab.linux.files import renameat2

        with self._parent(first) as (fd, name), self._parent(second) as (other_fd, other):
            renameat2(fd, os.fsencode(name), other_fd, os.fsencode(other), 2)

    def create_whole(self, name: str, content: bytes, *, mode: int = 0o600) -> bool:
        """Make the file ``name`` whole and durably, or not at all; False if something was there.

        Whoever was there first keeps the name: link(2) fails as O_EXCL does, but nobody ever sees
        half a file.
        """
        temporary = f"{name}.new-{os.getpid()}"
        try:
            self._write_aside(temporary, content, mode)
            try:
                os.link(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            except FileExistsError:
                return False
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self.fd)
        self.sync()
        return True

    def replace_whole(self, name: str, content: bytes, *, mode: int = 0o644) -> None:
        """Replace the file ``name`` in one step; on disk, with its name, on return."""
        temporary = f"{name}.new-{os.getpid()}"
        self.remove(temporary)
        try:
            self._write_aside(temporary, content, mode)
            self.rename(temporary, name)
        except BaseException:
            self.remove(temporary)
            raise
        self.sync()

    def _write_aside(self, temporary: str, content: bytes, mode: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FOLLOW_NOTHING
        with open(self.open(temporary, flags, mode=mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def sync(self, relative: str = "") -> None:
        """Make the names in a directory durable."""
        with self.directory(relative) as directory:
            os.fsync(directory.fd)

    # Refusals and lifetime -----------------------------------------------------------------

    def not_ours(self, relative: str, expected: str, *, found: str = "") -> Error:
        """Return the refusal of something else than what should be there, or on the way to it."""
        names = components(relative)
        for length in range(1, len(names) + 1):
            part = "/".join(names[:length])
            status = self.status(part)
            if status is None:
                break
            last = length == len(names)
            if not last and not stat.S_ISDIR(status.st_mode):
                relative, expected = part, "a directory"
                found = word_for(status.st_mode)
                break
            if last:
                found = found or word_for(status.st_mode)
        return UsageError(
            "something else stands where the instance has its own",
            subject=self.name(relative),
            expected=expected,
            found=found or "something that changes",
            hint="no link is followed below an instance: put the real one in its place",
        )

    def again(self) -> DirFd:
        """Return the same directory by a descriptor of its own, for another owner."""
        return DirFd(os.open(".", _LISTABLE, dir_fd=self.fd), self.path)

    def is_at(self, parent: DirFd, relative: str) -> bool:
        """Return whether it is what stands at ``relative`` below ``parent`` at this moment."""
        there = parent.status(relative)
        here = os.fstat(self.fd)
        return there is not None and os.path.samestat(there, here)

    def close(self) -> None:
        """Close it; harmless afterwards."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _step(fd: int, name: str, make_mode: int | None) -> int:
    if make_mode is not None:
        try:
            os.mkdir(name, make_mode, dir_fd=fd)
        except FileExistsError:
            pass
    return os.open(name, _WAY, dir_fd=fd)
