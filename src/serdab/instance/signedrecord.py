# SPDX-License-Identifier: Apache-2.0
"""What this user signed last of an instance, and how what is there now differs from it.

The record lies in the user's state directory: ``build/`` is the storage's to write, and would say
whatever hides a change. It is for people: nothing that is signed depends on it.

On-disk format:
    ``builds/<SHA-256 of the instance's real path>.signed`` in the state directory, 0600: zlib over
    JSON with ``format`` 1, ``config`` (what ``Occlum.json`` held), ``image`` and ``initfs``, each
    with ``root_mac`` (64 hex digits) and ``files``: stamps (16 hex digits) by path, or null where
    there were more than 200 000.

Above: ``build``. Below: ``fingerprint``, ``config``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeGuard

from serdab.config.dirs import make_private
from serdab.instance.fingerprint import record_path
from serdab.instance.owners import Owner
from serdab.linux.durable import write_durably
from serdab.structs import frozen

MAX_FILES: Final = 200_000
_MAX_PACKED_BYTES: Final = 32 << 20
_MAX_BYTES: Final = 128 << 20
_SHOWN: Final = 3
_SHOWN_FIELDS: Final = 10
NOTHING_ON_RECORD: Final = "no build that this user signed is on record: nothing to compare with"
_SAME_FILES: Final = (
    "the same files, sealed anew: another key, another option or another Serdab, or a change that "
    "was put back"
)
_HEX: Final = re.compile("[0-9a-f]+")

Files = Mapping[str, str]


@frozen
class SignedTree:
    """A sealed tree: its root MAC (64 hex digits), and a stamp of each file by path."""

    root_mac: str
    files: Files | None


@frozen
class Signed:
    """What one signature was made over, in terms of the sources."""

    config: object
    image: SignedTree
    initfs: SignedTree


def stamps(seen: Mapping[str, str], owners: Mapping[str, Owner]) -> Files | None:
    """Return a stamp for each path of a tree that ``fingerprint`` has seen."""
    if len(seen) > MAX_FILES:
        return None
    out = {}
    for path, fields in seen.items():
        text = f"{fields} {owners.get(path, (0, 0))}"
        out[path] = hashlib.sha256(os.fsencode(text)).hexdigest()[:16]
    return out


def changed_fields(before: object, now: object, path: str = "") -> Iterator[str]:
    """Yield the fields of a configuration that differ, by name."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}):
            inner = f"{path}.{name}" if path else name
            if name not in before or name not in now:
                yield inner
            else:
                yield from changed_fields(before[name], now[name], inner)
    elif _has_sections(before) and _has_sections(now):
        for number in range(max(len(before), len(now))):
            inner = f"{path}[{number}]"
            if number >= min(len(before), len(now)):
                yield inner
            else:
                yield from changed_fields(before[number], now[number], inner)
    # Numbers and booleans are compared as JSON has them: 1 is not true.
    elif json.dumps(before, sort_keys=True) != json.dumps(now, sort_keys=True):
        yield path


def _has_sections(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def changes(before: Signed, now: Signed) -> Iterator[str]:
    """Yield what differs from what was signed before, a line each.

    A tree with the same root MAC is the same. One that has none yet (a check) is not.
    """
    fields = list(changed_fields(before.config, now.config))
    if fields:
        yield f"configuration: {len(fields)} changed: {_some(fields, _SHOWN_FIELDS)}"
    for what, old, new in (
        ("init FS", before.initfs, now.initfs),
        ("image", before.image, now.image),
    ):
        if old.root_mac != new.root_mac:
            yield f"{what}: {_tree_change(old.files, new.files) or _SAME_FILES}"


def _tree_change(before: Files | None, files: Files | None) -> str | None:
    if before is None or files is None:
        return f"changed, and has more than {MAX_FILES} files or had"
    added = sorted(files.keys() - before.keys())
    removed = sorted(before.keys() - files.keys())
    changed = sorted(path for path in files.keys() & before.keys() if files[path] != before[path])
    counts = [
        f"{len(paths)} {word}"
        for paths, word in ((changed, "changed"), (added, "added"), (removed, "removed"))
        if paths
    ]
    if not counts:
        return None
    names = [f"/{path}" for path in (*changed, *added, *removed)]
    return f"{', '.join(counts)}: {_some(names, _SHOWN)}"


def _some(names: Sequence[str], most: int) -> str:
    # A name is for people here: what is no text in it is shown as escapes.
    shown = ", ".join(_text(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _path(instance: str) -> str:
    return record_path(instance, ".signed")


def load_signed(instance: str) -> Signed | None:
    """Return what was signed last; None: nothing that can be read is on record."""
    try:
        with open(_path(instance), "rb") as file:
            packed = file.read(_MAX_PACKED_BYTES + 1)
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(packed, _MAX_BYTES)
        if not unpacker.eof:
            return None
        value = json.loads(raw)
        if not isinstance(value, dict) or value.keys() != {"format", "config", "image", "initfs"}:
            return None
        if value["format"] != 1 or value["format"] is True:
            return None
        image, initfs = _tree(value["image"]), _tree(value["initfs"])
    except (OSError, zlib.error, ValueError, RecursionError):
        return None
    if image is None or initfs is None:
        return None
    return Signed(value["config"], image, initfs)


def _tree(value: object) -> SignedTree | None:
    if not isinstance(value, dict) or value.keys() != {"root_mac", "files"}:
        return None
    mac, files = value["root_mac"], value["files"]
    if not isinstance(mac, str) or len(mac) != 64 or not _HEX.fullmatch(mac):
        return None
    if files is None:
        return SignedTree(mac, None)
    if not isinstance(files, dict) or len(files) > MAX_FILES:
        return None
    if not all(isinstance(s, str) and len(s) == 16 and _HEX.fullmatch(s) for s in files.values()):
        return None
    return SignedTree(mac, files)


def store_signed(instance: str, signed: Signed) -> None:
    """Put on record what was signed; durable on return."""
    path = _path(instance)
    make_private(os.path.dirname(path))
    value = {
        "format": 1,
        "config": signed.config,
        "image": {"root_mac": signed.image.root_mac, "files": _plain(signed.image.files)},
        "initfs": {"root_mac": signed.initfs.root_mac, "files": _plain(signed.initfs.files)},
    }
    write_durably(path, zlib.compress(json.dumps(value, sort_keys=True).encode("ascii"), 1))


def _plain(files: Files | None) -> dict[str, str] | None:
    return None if files is None else dict(files)
