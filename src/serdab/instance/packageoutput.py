# SPDX-License-Identifier: Apache-2.0
"""Where a package goes: a tarball and its signature beside it, both or neither.

Neither has a name before it is whole. The names come one after the other, the tarball's last, so
that nobody finds a package without its signature; what a kill in between leaves is a signature of
nothing, and the next run that makes the same package finds it to be its own.

Above: ``package``, ``cli.package``. Below: ``pendingfile``, ``tarball``, ``trust.signing``.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
from contextlib import ExitStack
from typing import Final

from serdab.errors import EnvironmentRefused, Error, UsageError
from serdab.instance.layout import Instance
from serdab.instance.pendingfile import PendingFile, require_free
from serdab.instance.tarball import Member, write_tarball
from serdab.linux.dirfd import DirFd
from serdab.linux.outside import Walk
from serdab.sefs.segment import FULL
from serdab.structs import frozen
from serdab.trust.signing import MODULUS_BYTES, Signer

SUFFIX: Final = ".tar.gz"
SIGNATURE_SUFFIX: Final = ".sig"
_NOT_WRITABLE: Final = frozenset(
    (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    )
)


@frozen
class Written:
    """What was written beside the path that was asked for, and what the tarball is."""

    signature: str
    sha256: str
    size_bytes: int


def output_path(instance: Instance, name: str | None) -> str:
    """Return the path of the tarball that a name stands for (None: the instance's own name).

    Raises:
        UsageError: it has no name that a folder could bear.
    """
    path = os.path.basename(instance.path) if name is None else name
    stem = path.removesuffix(SUFFIX)
    folder = os.path.basename(stem)
    if folder in ("", ".", "..") or folder.startswith("-") or not folder.isprintable():
        raise UsageError(
            "not a name for a package",
            subject=path,
            expected=f"NAME{SUFFIX}",
            found=folder or "nothing",
            hint="its top folder is named as the package is",
        )
    parent = os.path.dirname(stem) or "."
    try:
        directory = Walk().directory(parent)
    except UsageError as exc:
        if not isinstance(exc.__cause__, FileNotFoundError | NotADirectoryError):
            raise
        raise UsageError(
            "the package cannot be written",
            subject=stem + SUFFIX,
            expected="a path in a directory that can be written",
            found=f"no directory {parent}",
            hint="make the directory first, or name a path elsewhere",
        ) from exc
    with directory:
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=directory.fd):
            # Said here, before everything is verified and packed; the kernel has the last word.
            raise _not_writable(stem + SUFFIX, f"no right to write in {parent}")
    return stem + SUFFIX


def require_place(directory: DirFd, name: str) -> None:
    """Refuse a name where a package, or the signature of one, cannot come.

    Raises:
        UsageError: something is there already.
    """
    require_free(directory, name)
    if not _may_be_left_over(directory, name + SIGNATURE_SUFFIX):
        require_free(directory, name + SIGNATURE_SUFFIX)


def write_package(
    directory: DirFd, name: str, signer: Signer, members: list[Member], mtime_s: int
) -> Written:
    """Write the tarball of a package, all below its top folder, and the signature beside it.

    Raises:
        UsageError: the place was taken, or it cannot be written there.
        EnvironmentRefused: there is no room.
    """
    try:
        return _write(directory, name, signer, members, mtime_s)
    except OSError as exc:
        told = _told(exc, directory.name(name))
        if told is None:
            raise
        raise told from exc


def _write(
    directory: DirFd, name: str, signer: Signer, members: list[Member], mtime_s: int
) -> Written:
    top = name.removesuffix(SUFFIX)
    members = [
        Member(f"{top}/{one.path}", one.content, one.size_bytes, one.executable) for one in members
    ]
    signature_name = name + SIGNATURE_SUFFIX
    with ExitStack() as stack:
        file = PendingFile(directory, name, stack)
        write_tarball(file.file, members, mtime_s)
        file.file.flush()
        size = file.file.tell()
        # Mapped, not read: it may be larger than memory.
        with mmap.mmap(file.file.fileno(), size, prot=mmap.PROT_READ) as content:
            signature = signer.sign(content)
            signer.public.verify(content, signature)
            digest = hashlib.sha256(content).hexdigest()
        detached = PendingFile(directory, signature_name, stack)
        detached.file.write(signature)
        is_new = _publish_signature(detached, directory, signature_name, signature)
        try:
            file.publish()
        except BaseException:
            if is_new:
                directory.remove(signature_name)
            raise
    directory.sync()
    return Written(directory.name(signature_name), digest, size)


def _may_be_left_over(directory: DirFd, signature_name: str) -> bool:
    """Return whether a signature may be what a run left that was killed before its tarball."""
    status = directory.status(signature_name)
    return status is not None and stat.S_ISREG(status.st_mode) and status.st_size == MODULUS_BYTES


def _publish_signature(pending: PendingFile, directory: DirFd, name: str, signature: bytes) -> bool:
    """Give the signature its name; return False if just that is there already."""
    try:
        pending.publish()
    except UsageError:
        if not _may_be_left_over(directory, name):
            raise
        if directory.read(name, MODULUS_BYTES) == signature:
            return False
        raise UsageError(
            "a signature is there already, of another package",
            subject=directory.name(name),
            expected="no file, or the signature of this very package",
            found="another one, without its package",
            hint="remove it first, or name another; a run that was killed may have left it",
        ) from None
    return True


def _told(exc: OSError, path: str) -> Error | None:
    """Return what to say of an error while the package was written, if that is why."""
    words = os.strerror(exc.errno or 0).lower()
    if exc.errno in FULL:
        return EnvironmentRefused(
            "the host has no room for the package",
            subject=path,
            expected="room for all of it",
            found=words,
            hint="nothing was left there; make room, or name a path elsewhere",
        )
    return _not_writable(path, words) if exc.errno in _NOT_WRITABLE else None


def _not_writable(path: str, found: str) -> UsageError:
    return UsageError(
        "the package cannot be written",
        subject=path,
        expected="a path in a directory that can be written",
        found=found,
        hint="name a path elsewhere: `serdab package DIR/NAME.tar.gz`",
    )
