# SPDX-License-Identifier: Apache-2.0
"""The layout of an instance directory: every path in it has its one name here.

Nothing in an instance is trusted: it may lie on any storage. What a boot may use is decided by
measurements (``trust.chain``), never by where a file lies.

Above: ``build``, ``create``, ``cli``, ``libos``'s callers. Below: ``linux.dirfd``, ``config.names``
only, so that a run pays for nothing else.
"""

from __future__ import annotations

import os
from types import TracebackType

from serdab.config.names import (
    BUILD,
    BUILD_STAGING,
    CONFIG,
    DESCRIPTOR,
    IMAGE,
    IMAGE_SOURCE,
    INITFS_SOURCE,
    OWNERS_SUFFIX,
    REKEY_STAGING,
    RUN,
)
from serdab.errors import UsageError
from serdab.linux.dirfd import DirFd

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final, Self

__all__ = [
    "BUILD",
    "BUILD_STAGING",
    "CONFIG",
    "DESCRIPTOR",
    "IMAGE",
    "IMAGE_SOURCE",
    "INITFS_SOURCE",
    "OWNERS_SUFFIX",
    "RUN",
]

PROTECTED_CONFIG: Final = "build/.Occlum_sys.json.protected"
INITFS: Final = "build/initfs/__ROOT"
PREVIOUS: Final = "build/previous"
UPPER: Final = "run/mount/__ROOT"
REKEY_BUILD: Final = REKEY_STAGING
REKEY_ASIDE: Final = REKEY_STAGING + "-old"
REKEY_VOLUME: Final = "run/.rekey"
#: Where copies of directories wait that cannot be renamed, and whose they may be (``movable``).
MOVED_COPIES: Final = REKEY_STAGING + "-copies"
MOVED_PLACES: Final = (BUILD, BUILD_STAGING, REKEY_STAGING, REKEY_VOLUME)
REKEY_PATHS: Final = (REKEY_VOLUME, REKEY_BUILD, REKEY_ASIDE, MOVED_COPIES)
INIT: Final = "bin/init"
MAX_FILE_BYTES: Final = 1 << 20
_MAKE_HINT: Final = "`serdab new PATH` makes one; -C names the one to use"


#: The top folder of a package: the launcher, the manifest, our code, the instance.
PACKAGE_LAUNCHER: Final = "serdab"
PACKAGE_MANIFEST: Final = "package.json"
PACKAGE_CODE: Final = "code"
PACKAGE_INSTANCE: Final = "instance"


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
    """An instance: the descriptor of its directory, which stays the same whatever is renamed.

    ``path`` is absolute and for messages, and for what is recorded outside of the instance. What
    lies in it is opened, made and removed through ``root`` alone.
    """

    __slots__ = ("path", "root")

    def __init__(self, path: str, root: DirFd | None = None) -> None:
        """Open the directory, unless it is open already as ``root``, which is ours from here on."""
        self.path = os.path.abspath(path)
        self.root = DirFd.at(self.path) if root is None else root
        self.root.path = self.path

    def __repr__(self) -> str:
        return f"Instance({self.path!r})"

    def close(self) -> None:
        """Close the directory; harmless afterwards."""
        self.root.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A verb has one until its process ends; whoever lives longer closes it. ``root`` closes
        # once, so a number that is somebody else's by now is left alone.
        root = getattr(self, "root", None)
        if root is not None:
            root.close()

    @classmethod
    def open(cls, path: str, *, sources: bool = True) -> Instance:
        """Return the instance at ``path``; without ``sources`` a packaged one will do.

        Raises:
            UsageError: there is none.
        """
        if not os.path.isabs(path):
            _require_current_directory()
        try:
            instance = cls(path)
        except OSError as exc:
            raise _no_instance(path, exc) from exc
        packaged = instance.is_packaged()
        if (sources and packaged) or not (packaged or instance.has_sources()):
            raise UsageError(
                "not an instance",
                subject=instance.path,
                expected=f"a directory with {CONFIG}",
                found="a built one that has no sources, as in a package"
                if packaged
                else "a directory without it",
                hint="build where the sources are; what is built runs without them"
                if packaged
                else _MAKE_HINT,
            )
        return instance

    @classmethod
    def open_built(cls, path: str) -> Instance:
        """Return the instance at ``path``, which has been built.

        Raises:
            UsageError: there is none, or it has not been built.
        """
        instance = cls.open(path, sources=False)
        instance.require_built()
        return instance

    def require_built(self) -> None:
        """Refuse one that has not been built.

        Raises:
            UsageError: it has not, or something else stands where ``build/`` should.
        """
        for relative in (DESCRIPTOR, PROTECTED_CONFIG):
            self.root.require_plain(relative, "a file")
            if not self.root.exists(relative):
                raise UsageError(
                    "the instance has not been built",
                    subject=self.path,
                    expected=relative,
                    found="no such file",
                    hint="`serdab build` seals image/ and initfs/",
                )

    def has_sources(self) -> bool:
        """Return whether it has the configuration that a build reads."""
        return self.root.exists(CONFIG)

    def is_packaged(self) -> bool:
        """Return whether it was built and has no sources, as in a package."""
        return self.root.exists(DESCRIPTOR) and not self.has_sources()

    def at(self, relative: str) -> str:
        """Return what messages and records call something in the instance: never for opening."""
        return self.root.name(relative)

    def read(self, relative: str) -> bytes:
        """Return the bytes of a small file of the instance; nothing about them is checked.

        Raises:
            UsageError: it cannot be read or is no plain file of sane size.
        """
        hint = "restore it; `serdab build` writes what is below build/"
        try:
            return self.root.read(relative, MAX_FILE_BYTES)
        except OSError as exc:
            raise UsageError(
                "a file of the instance cannot be read",
                subject=self.at(relative),
                expected="a readable file",
                found=os.strerror(exc.errno or 0),
                hint=hint,
            ) from exc
        except UsageError as exc:
            exc.hint = exc.hint or hint
            raise


def _no_instance(path: str, exc: OSError) -> UsageError:
    if isinstance(exc, PermissionError):
        return UsageError(
            "the instance is another user's",
            subject=os.path.abspath(path),
            expected=f"a directory that user id {os.geteuid()} may use",
            found=os.strerror(exc.errno or 0),
            hint="be the user who made it, or make an instance of your own",
        )
    return UsageError(
        "not an instance",
        subject=os.path.abspath(path),
        expected=f"a directory with {CONFIG}",
        found="no directory",
        hint=_MAKE_HINT,
    )
