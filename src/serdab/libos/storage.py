# SPDX-License-Identifier: Apache-2.0
"""What an fs server is ordered to serve, and how it opens it. Runs inside fs server processes.

Above: ``fsserver``. Below: ``sefs``, ``vfs``. The imports are late on purpose: a process pays only
for the kind it serves.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from serdab.errors import FormatError, FsError
from serdab.keys import Key
from serdab.libos.messages import Value
from serdab.vfs.api import ROOT_INO, FileSystem, SetAttr

if TYPE_CHECKING:
    from serdab.sefs.volume import Volume
    from serdab.vfs.layer import Layer

#: A read-only image under a writable layer in memory: the init FS.
TRANSIENT: Final = "transient"
#: A read-only image under a writable volume: the root FS.
UNION: Final = "union"
#: A directory of the host.
HOST: Final = "host"
#: The overflow id: who owns what has no owner inside (user_namespaces(7)).
_NOBODY: Final = 65534


@dataclass(frozen=True, slots=True)
class Orders:
    """One file system to serve. Keys are bytes here and nowhere else outside ``keys``.

    ``source`` is what the volume remembers in clear about where its key comes from. ``files`` are
    put into the writable layer before it is served: absolute path to content, mode 0400.
    ``hidden`` are relative paths of a host directory that are shown empty. With ``one_owner``
    everything is shown as owned by the inner root. From ``freshness`` on: how the volume is watched
    (``trust.freshness``).
    """

    kind: str
    image: str = ""
    image_key: bytes | None = None
    expected_mac: bytes | None = None
    volume: str = ""
    volume_key: bytes | None = None
    source: bytes = b"{}"
    files: Mapping[str, bytes] = field(default_factory=dict)
    host_path: str = ""
    hidden: tuple[str, ...] = ()
    one_owner: bool = False
    freshness: str = "off"
    conf_mac: bytes = bytes(32)
    accept_rollback: bool = False
    pin_file: str = ""
    pin_command: str = ""
    expect_upper: bytes = b""

    def __repr__(self) -> str:
        return f"Orders(kind={self.kind!r}, image={self.image!r}, volume={self.volume!r})"

    def dump(self) -> dict[str, Value]:
        """Return the record that travels to the fs server."""
        return {
            "op": "open",
            "kind": self.kind,
            "image": self.image,
            "image_key": self.image_key,
            "expected_mac": self.expected_mac,
            "volume": self.volume,
            "volume_key": self.volume_key,
            "source": self.source,
            "files": dict(self.files),
            "host_path": self.host_path,
            "hidden": list(self.hidden),
            "one_owner": self.one_owner,
            "freshness": self.freshness,
            "conf_mac": self.conf_mac,
            "accept_rollback": self.accept_rollback,
            "pin_file": self.pin_file,
            "pin_command": self.pin_command,
            "expect_upper": self.expect_upper,
        }

    @classmethod
    def parse(cls, record: Mapping[str, Value]) -> Orders:
        """Return the orders in a record.

        Raises:
            FormatError: it is not what :meth:`dump` makes.
        """
        files = record.get("files")
        hidden = record.get("hidden")
        if not isinstance(files, dict) or not isinstance(hidden, list):
            raise FormatError("orders to an fs server are malformed")
        return cls(
            kind=_text(record, "kind"),
            image=_text(record, "image"),
            image_key=_bytes(record, "image_key"),
            expected_mac=_bytes(record, "expected_mac"),
            volume=_text(record, "volume"),
            volume_key=_bytes(record, "volume_key"),
            source=_bytes(record, "source") or b"{}",
            files={str(name): bytes(content) for name, content in files.items()},
            host_path=_text(record, "host_path"),
            hidden=tuple(str(item) for item in hidden),
            one_owner=record.get("one_owner") is True,
            freshness=_text(record, "freshness"),
            conf_mac=_bytes(record, "conf_mac") or b"",
            accept_rollback=record.get("accept_rollback") is True,
            pin_file=_text(record, "pin_file"),
            pin_command=_text(record, "pin_command"),
            expect_upper=_bytes(record, "expect_upper") or b"",
        )


def _text(record: Mapping[str, Value], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise FormatError(f"orders to an fs server: {name} is no text")
    return value


def _bytes(record: Mapping[str, Value], name: str) -> bytes | None:
    value = record.get(name)
    if value is not None and not isinstance(value, bytes):
        raise FormatError(f"orders to an fs server: {name} is no bytes")
    return value


@dataclass(frozen=True, slots=True)
class Opened:
    """A file system that was verified up to its root; ``root_mac`` is empty for the host's.

    ``notices`` are lines that the operator must see.
    """

    fs: FileSystem
    root_mac: bytes = b""
    notices: tuple[str, ...] = ()


def open_file_system(orders: Orders) -> Opened:
    """Open and verify what the orders name.

    Raises:
        Error: as ``sefs.image.open_image`` and ``sefs.volume.open_volume`` say.
    """
    if orders.kind == HOST:
        opened = Opened(_open_host(orders))
    elif orders.kind in (TRANSIENT, UNION):
        opened = _open_sealed(orders)
    else:
        raise FormatError("orders to an fs server name an unknown kind", found=orders.kind)
    for path, content in orders.files.items():
        _put_file(opened.fs, path, content)
    if orders.one_owner:
        from serdab.libos.owners import OneOwner

        return replace(opened, fs=OneOwner(opened.fs))
    return opened


def _open_sealed(orders: Orders) -> Opened:
    from serdab.sefs.image import open_image
    from serdab.vfs.union import Union

    key = None if orders.image_key is None else Key(orders.image_key)
    image = open_image(Path(orders.image), key=key, expected_mac=orders.expected_mac)
    notices: list[str] = []
    try:
        if orders.kind == TRANSIENT or not orders.volume:
            from serdab.sefs.memorydir import MemoryDir
            from serdab.sefs.volume import open_volume_in

            upper = open_volume_in(MemoryDir(), key=Key.generate(), lower=image, create=True)
        else:
            upper, notices = _open_upper(orders, image)
        return Opened(Union(upper, image), image.root_mac, tuple(notices))
    except BaseException:
        image.close()
        raise


def _open_upper(orders: Orders, image: Layer) -> tuple[Volume, list[str]]:
    from serdab.trust.freshness import Watch, open_watched

    if orders.volume_key is None:
        raise FormatError("orders to an fs server name a volume without its key")
    watch = Watch(
        orders.freshness,
        conf_mac=orders.conf_mac,
        accept_rollback=orders.accept_rollback,
        pin_file=orders.pin_file,
        pin_command=orders.pin_command,
        expected_mac=orders.expect_upper,
    )
    watched = open_watched(
        Path(orders.volume),
        watch,
        key=Key(orders.volume_key),
        lower=image,
        source=orders.source,
    )
    # Its lock lives as long as this process: it hears of the last checkpoint too.
    return watched.volume, watched.notices


def _open_host(orders: Orders) -> FileSystem:
    from serdab.vfs.hostfs import HostFs, Owners

    hidden = [os.fsencode(item) for item in orders.hidden]
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        return HostFs(orders.host_path, hidden=hidden)
    # We can make files for ourselves only, and that is whom the inner root stands for.
    owners = Owners(
        show=lambda user, group: (
            0 if user == uid else _NOBODY,
            0 if group == gid else _NOBODY,
        ),
        keep=lambda user, group: (uid, gid),
    )
    return HostFs(orders.host_path, hidden=hidden, owners=owners)


def _put_file(fs: FileSystem, path: str, content: bytes) -> None:
    """Create a file that only the inner root reads, in place of what may be there."""
    *directories, name = (part.encode() for part in path.split("/") if part)
    parent = ROOT_INO
    for part in directories:
        try:
            inode = fs.lookup(parent, part)
        except FsError:
            inode = fs.mkdir(parent, part, stat.S_IFDIR | 0o755, 0, 0)
        if not stat.S_ISDIR(inode.mode):
            raise FormatError("not a directory in the init FS", stage="initfs", subject=path)
        parent = inode.ino
    try:
        fs.lookup(parent, name)
    except FsError:
        pass
    else:
        fs.unlink(parent, name)
    inode = fs.mknod(parent, name, stat.S_IFREG | 0o400, 0, 0, 0)
    fs.write(inode.ino, 0, memoryview(content), kill_suidgid=False)
    fs.setattr(inode.ino, SetAttr(mode=stat.S_IFREG | 0o400))
