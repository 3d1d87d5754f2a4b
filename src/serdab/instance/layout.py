# SPDX-License-Identifier: Apache-2.0
"""The layout of an instance directory: every path in it has its one name here.

Nothing in an instance is trusted: it may lie on any storage. What a boot may use is decided by
measurements (``trust.chain``), never by where a file lies.

Above: ``build``, ``create``, ``cli``, ``libos``'s callers. Below: ``errors`` and ``config.names``
only, so that a run pays for nothing else.
"""

from __future__ import annotations

import os
from typing import Final

from serdab.config.names import (
    BUILD,
    BUILD_STAGING,
    CONFIG,
    DESCRIPTOR,
    IMAGE_SOURCE,
    INITFS_SOURCE,
    OWNERS_SUFFIX,
    REKEY_STAGING,
    RUN,
)
from serdab.errors import UsageError

__all__ = [
    "BUILD",
    "BUILD_STAGING",
    "CONFIG",
    "DESCRIPTOR",
    "IMAGE_SOURCE",
    "INITFS_SOURCE",
    "OWNERS_SUFFIX",
    "RUN",
]

PROTECTED_CONFIG: Final = "build/.Occlum_sys.json.protected"
IMAGE: Final = "build/mount/__ROOT"
INITFS: Final = "build/initfs/__ROOT"
PREVIOUS: Final = "build/previous"
UPPER: Final = "run/mount/__ROOT"
REKEY_BUILD: Final = REKEY_STAGING
REKEY_ASIDE: Final = REKEY_STAGING + "-old"
REKEY_VOLUME: Final = "run/.rekey"
REKEY_PATHS: Final = (REKEY_VOLUME, REKEY_BUILD, REKEY_ASIDE)
INIT: Final = "bin/init"
MAX_FILE_BYTES: Final = 1 << 20


#: The top folder of a package: the launcher, the manifest, our code, the instance.
PACKAGE_LAUNCHER: Final = "serdab"
PACKAGE_MANIFEST: Final = "package.json"
PACKAGE_CODE: Final = "code"
PACKAGE_INSTANCE: Final = "instance"


def is_instance(path: str) -> bool:
    """Return whether there is an instance with its sources at ``path``."""
    return os.path.isfile(os.path.join(path, CONFIG))


def is_packaged(path: str) -> bool:
    """Return whether there is a built instance without its sources, as in a package."""
    return os.path.isfile(os.path.join(path, DESCRIPTOR)) and not is_instance(path)


def package_parts(code_root: str) -> tuple[str, ...]:
    """Return the paths of what is ours in the package that carries the code at ``code_root``.

    Empty when it is no package's (``code/<digest>/serdab``) but an installed one.
    """
    code = os.path.dirname(os.path.dirname(code_root))
    top = os.path.dirname(code)
    manifest = os.path.join(top, PACKAGE_MANIFEST)
    if os.path.basename(code) != PACKAGE_CODE or not os.path.isfile(manifest):
        return ()
    return code, manifest, os.path.join(top, PACKAGE_LAUNCHER)


def _require_current_directory() -> None:
    try:
        os.getcwd()
    except OSError as exc:
        raise UsageError(
            "the current directory is not there any more",
            expected="a directory to start from",
            found=os.strerror(exc.errno or 0),
            hint="change to one that exists, or give -C an absolute path",
        ) from exc


class Instance:
    """An instance by the absolute path of its directory."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def __repr__(self) -> str:
        return f"Instance({self.path!r})"

    @classmethod
    def open(cls, path: str, *, sources: bool = True) -> Instance:
        """Return the instance at ``path``; without ``sources`` a packaged one will do.

        Raises:
            UsageError: there is none.
        """
        if not os.path.isabs(path):
            _require_current_directory()
        if not is_instance(path):
            packaged = is_packaged(path)
            found = "a directory without it" if os.path.isdir(path) else "no directory"
            if sources or not packaged:
                raise UsageError(
                    "not an instance",
                    subject=os.path.abspath(path),
                    expected=f"a directory with {CONFIG}",
                    found="a built one that has no sources, as in a package" if packaged else found,
                    hint="build where the sources are; what is built runs without them"
                    if packaged
                    else "`serdab new PATH` makes one; -C names the one to use",
                )
        return cls(path)

    @classmethod
    def open_built(cls, path: str) -> Instance:
        """Return the instance at ``path``, which has been built.

        Raises:
            UsageError: there is none, or it has not been built.
        """
        instance = cls.open(path, sources=False)
        for relative in (DESCRIPTOR, PROTECTED_CONFIG):
            if not os.path.lexists(instance.at(relative)):
                raise UsageError(
                    "the instance has not been built",
                    subject=instance.path,
                    expected=relative,
                    found="no such file",
                    hint="`serdab build` seals image/ and initfs/",
                )
        return instance

    def at(self, relative: str) -> str:
        """Return the absolute path of something in the instance."""
        return os.path.join(self.path, relative)

    def read(self, relative: str) -> bytes:
        """Return the bytes of a small file of the instance; nothing about them is checked.

        Raises:
            UsageError: it cannot be read or is no plain file of sane size.
        """
        path = self.at(relative)
        try:
            # O_NONBLOCK: a FIFO in its place must not hang the reader.
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(fd, "rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
        except OSError as exc:
            raise UsageError(
                "a file of the instance cannot be read",
                subject=path,
                expected="a readable file",
                found=os.strerror(exc.errno or 0),
                hint="restore it; `serdab build` writes what is below build/",
            ) from exc
        if len(raw) > MAX_FILE_BYTES:
            raise UsageError(
                "a file of the instance is too large",
                subject=path,
                expected=f"at most {MAX_FILE_BYTES} bytes",
                found="more",
                hint="restore it; `serdab build` writes what is below build/",
            )
        return raw
