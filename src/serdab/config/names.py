# SPDX-License-Identifier: Apache-2.0
"""The names in an instance directory that verbs on the host read or write. Pure.

No program inside sees, makes or changes anything at these names, whether there is something yet or
not: a later verb would obey it. Above: ``instance.layout``, ``libos.hostdirs``, ``vfs.hiding``.

Security: names are compared as host file systems do that fold case (ext4 and tmpfs with casefold,
vfat, NTFS, network shares): without case, compatibility forms, characters that are ignored, and
dots and spaces at the end. A host that does not fold loses a few names more (``Image``, ``BUILD``).
"""

from __future__ import annotations

from functools import lru_cache

from serdab.characters import is_ignorable

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

CONFIG: Final = "Occlum.json"
IMAGE_SOURCE: Final = "image"
INITFS_SOURCE: Final = "initfs"
BUILD: Final = "build"
RUN: Final = "run"
#: Where a build puts the sealed image.
IMAGE: Final = "build/mount/__ROOT"
#: What a signed build leaves; a package has it without a configuration beside it.
DESCRIPTOR: Final = "build/lib/libserdab.signed.json"
OWNERS_SUFFIX: Final = ".owners"
BUILD_STAGING: Final = ".build-staging"
REKEY_STAGING: Final = ".rekey-staging"

#: Shown inside as empty directories: they tell a program where it is, as Occlum's do.
SHOWN_EMPTY: Final = frozenset((BUILD.encode(), RUN.encode()))
#: Directories that the configuration may show nevertheless, read-only.
SHOWN_ON_REQUEST: Final = frozenset((IMAGE_SOURCE, INITFS_SOURCE))
#: Files that are looked at one by one where a second name may lead to them.
FILES: Final = (CONFIG, IMAGE_SOURCE + OWNERS_SUFFIX, INITFS_SOURCE + OWNERS_SUFFIX)
DIRECTORIES: Final = (IMAGE_SOURCE, INITFS_SOURCE, BUILD, RUN, BUILD_STAGING, REKEY_STAGING)

_WHOLE: Final = frozenset(
    name.encode().lower() for name in (IMAGE_SOURCE, INITFS_SOURCE, BUILD, RUN)
)
# With all that begins so: an editor's copy, what replaces the file by a rename, what was set aside.
_BEGINNINGS: Final = tuple(name.encode().lower() for name in (*FILES, BUILD_STAGING, REKEY_STAGING))
_CONFIG: Final = CONFIG.encode().lower()


@lru_cache(maxsize=4096)
def fold(name: bytes) -> bytes:
    """Return what is the same for all names that a host may take for each other."""
    if not name.isascii():
        name = _fold_unicode(name)
    return name.lower().rstrip(b". ")


def _fold_unicode(name: bytes) -> bytes:
    import unicodedata  # few names need its tables

    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return name
    # Both ways: the dotless i has a capital that is an ordinary one.
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).upper().casefold())
    # The kernel's casefold drops what Unicode says to ignore (fs/unicode).
    return "".join(c for c in text if not is_ignorable(c)).encode("utf-8")


def is_reserved(folded: bytes) -> bool:
    """Return whether a folded name is one of an instance directory's own."""
    if folded in _WHOLE or folded.startswith(_BEGINNINGS):
        return True
    # What ``write_durably`` and a package in the making are called until they are whole.
    _, mark, number = folded.rpartition(b".new-")
    return bool(mark) and number.isdigit()


def is_config(folded: bytes) -> bool:
    """Return whether a folded name is that which makes a directory an instance."""
    return folded == _CONFIG
