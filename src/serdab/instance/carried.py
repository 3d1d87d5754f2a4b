# SPDX-License-Identifier: Apache-2.0
"""The code that a package carries: this Serdab and the libraries it needs when it runs.

Libraries are copied from where they are installed, file by file as their installer recorded them
(the RECORD of the PyPA's "Recording installed projects"), and each file must be what was recorded.
Never carried: byte code (it could be other than the sources), scripts, and the installer's notes,
which name paths of this machine.

Above: ``package``. Below: ``trust.codetree``.

Security: the descriptor names the digest of Serdab's own code only. The libraries, the launcher and
the interpreter are what the detached signature of the package is for.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Final

from serdab.errors import EnvironmentRefused, MeasurementMismatch
from serdab.structs import frozen
from serdab.trust.codetree import package_root

#: What the verbs of a package import, and of each what they do not: zstandard and cffi bring what
#: is for other interpreters and for compiling. Not carried: PyYAML and pyelftools (copy-bom) and
#: rich, so copy-bom says that a library is missing.
_EVERYTHING: Final = ""
LIBRARIES: Final = {
    "blake3": _EVERYTHING,
    "cffi": r"cffi/.*",
    "cryptography": _EVERYTHING,
    "msgspec": _EVERYTHING,
    "zstandard": r"zstandard/(_cffi|backend_cffi)\..*",
}
_NOTES: Final = re.compile(
    r"[^/]+\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json|entry_points\.txt)"
)
_MANYLINUX: Final = re.compile(r"manylinux_(\d+)_(\d+)_\w+")
_OLD_MANYLINUX: Final = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}


@frozen
class CarriedFile:
    """One file, by its path below the directory of the code."""

    path: str
    content: bytes
    executable: bool = False


@frozen
class Library:
    """A library with its version and the oldest C library that it runs on."""

    name: str
    version: str
    glibc: tuple[int, int]
    files: tuple[CarriedFile, ...]


def own_code() -> list[CarriedFile]:
    """Return the running Serdab: everything that its digest covers, and its templates."""
    root = package_root()
    out = []
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name != "__pycache__")
        for name in files:
            path = os.path.join(directory, name)
            inside = os.path.relpath(path, root)
            is_program = inside.startswith("init/bin/")
            is_template = inside.startswith("instance/templates/")
            if is_program or is_template or name.endswith(".py"):
                with open(path, "rb") as file:
                    out.append(CarriedFile(f"serdab/{inside}", file.read(), executable=is_program))
    return out


def own_licence() -> list[CarriedFile]:
    """Return our licence as an installation has it; a bare tree of sources has none."""
    try:
        files = metadata.files("serdab") or []
    except metadata.PackageNotFoundError:
        return []
    return [
        CarriedFile(str(file), file.read_binary()) for file in files if file.match("licenses/*")
    ]


def libraries() -> list[Library]:
    """Return the libraries that a package carries.

    Raises:
        EnvironmentRefused: one is not installed in a way that tells which files it has.
        MeasurementMismatch: a file of one is not what was installed.
    """
    return [_library(name) for name in LIBRARIES]


def _library(name: str) -> Library:
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise _unknown(name, "no such distribution") from None
    tags = distribution.read_text("WHEEL")
    if tags is None or not distribution.files:
        raise _unknown(name, "an installation without RECORD or WHEEL")
    return Library(name, distribution.version, _glibc(tags), tuple(_files(name, distribution)))


def _unknown(name: str, found: str) -> EnvironmentRefused:
    return EnvironmentRefused(
        "a library that a package carries cannot be copied",
        subject=name,
        expected="one installed from a wheel",
        found=found,
        hint=f"install Serdab into a virtual environment with pip, which puts {name} there too",
    )


def _files(name: str, distribution: metadata.Distribution) -> Iterator[CarriedFile]:
    for file in distribution.files or ():
        path = str(file)
        if (
            ".." in file.parts
            or os.path.isabs(path)
            or file.suffix == ".pyc"
            or _NOTES.fullmatch(path)
            or re.fullmatch(LIBRARIES[name], path)
        ):
            continue
        content = file.read_binary()
        if file.hash is None or not _is_recorded(content, file.hash):
            raise MeasurementMismatch(
                "a file of a library is not what was installed",
                subject=str(file.locate()),
                expected=f"{file.hash.mode} {file.hash.value}" if file.hash else "a recorded hash",
                found="another content" if file.hash else "none",
                hint=f"install {name} anew",
            )
        yield CarriedFile(path, content)


def _is_recorded(content: bytes, recorded: metadata.FileHash) -> bool:
    digest = hashlib.new(recorded.mode, content).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii") == recorded.value


def _glibc(tags: str) -> tuple[int, int]:
    """Return the oldest glibc that a wheel claims to run on (PEP 600); this machine's if none."""
    found = [(int(high), int(low)) for high, low in _MANYLINUX.findall(tags)]
    found += [version for tag, version in _OLD_MANYLINUX.items() if f"-{tag}_" in tags]
    if found:
        # Several tags of one wheel are alternatives: any of them suffices.
        return min(found)
    if "-any\n" in tags + "\n":
        return (2, 0)
    return this_glibc()


def this_glibc() -> tuple[int, int]:
    """Return the version of this machine's glibc.

    Raises:
        EnvironmentRefused: it has another C library.
    """
    try:
        words = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (ValueError, OSError):
        words = []
    if len(words) != 2 or words[0] != "glibc":
        raise EnvironmentRefused(
            "packages are made on machines with glibc",
            subject="C library",
            expected="glibc",
            found=" ".join(words) or "another",
        )
    high, low, *_ = words[1].split(".")
    return int(high), int(low)
