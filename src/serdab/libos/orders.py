# SPDX-License-Identifier: Apache-2.0
"""What an fs server is ordered to serve: one value, dumped by the kernel process, parsed by the
server, and what it has opened.

Above: ``fsclient``, ``storage``, ``layers``. Below: ``fence``, ``messages``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from serdab.errors import FormatError
from serdab.libos.fence import Fence
from serdab.libos.fields import (
    flag,
    many,
    number,
    optional_number,
    optional_raw,
    optional_record,
    raw,
    record_of,
    text,
)
from serdab.libos.ground import Ground, parse_identities
from serdab.libos.messages import Value
from serdab.linux.dirfd import DirFd
from serdab.structs import field, frozen
from serdab.vfs.api import FileSystem

#: A read-only image under a writable layer in memory: the init FS.
TRANSIENT: Final = "transient"
#: A read-only image under a writable volume: the root FS.
UNION: Final = "union"
#: A sealed file system by itself: a writable volume, or an image that stays as it is.
SEALED: Final = "sealed"
#: A directory of the host.
HOST: Final = "host"


@frozen
class Orders:
    """One file system to serve. Keys are bytes here and nowhere else outside ``keys``.

    ``source`` is what the volume remembers in clear about where its key comes from. ``files`` are
    put into the writable layer before it is served: absolute path to content, mode 0400.
    ``image`` may be a volume too, which is then read only. With ``ground`` paths are opened from
    the instance's descriptor; without, they are the host's own. With ``fence`` every directory must
    exist and lie where the fence allows, and one that is empty becomes a new file system.
    ``owner``: the user inside to whom host directories must belong that would be changed.
    ``hidden`` and ``instance`` say what of a host directory is not shown (``hostdirs.Shown``),
    ``private`` and ``home``, the real path of the instance, what has no second name there either;
    with a fence, it says so, and ``ground``. With ``one_owner`` everything is shown as owned by the
    inner root. ``max_bytes`` is the most that live data of the volume may take; 0: no limit but the
    host's. ``commit_ms``: a change waits no longer for a commit; 0: until something asks for one.
    ``read_only``: the volume exists, or the host directory is shown, and stays as it is.
    ``is_small``: with little memory, caches and buffers hold less. ``max_volumes``: so many are
    remembered below the roots of the fence; 0: any number. ``host`` is the host directory, open:
    whoever parsed the orders owns it, and ``ground``.
    From ``freshness`` on: how the volume is watched (``trust.freshness``).
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
    instance: str = ""
    private: tuple[str, ...] = ()
    home: str = ""
    one_owner: bool = False
    max_bytes: int = 0
    commit_ms: int = 0
    read_only: bool = False
    freshness: str = "off"
    conf_mac: bytes = bytes(32)
    version_number: int | None = None
    accept_rollback: bool = False
    pin_file: str = ""
    pin_command: str = ""
    expect_upper: bytes = b""
    fence: Fence | None = None
    owner: int | None = None
    patience_ms: int = 0
    ground: Ground | None = None
    host: DirFd | None = None
    is_small: bool = False
    max_volumes: int = 0

    def __repr__(self) -> str:
        return f"Orders(kind={self.kind!r}, image={self.image!r}, volume={self.volume!r})"

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that travel beside the record."""
        ground = () if self.ground is None else (self.ground.instance.fd,)
        return ground if self.host is None else (*ground, self.host.fd)

    def close(self) -> None:
        """Close the descriptors; what was opened from them is not theirs."""
        if self.ground is not None:
            self.ground.close()
        if self.host is not None:
            self.host.close()

    def dump(self) -> dict[str, Value]:
        """Return the record that travels to the fs server, beside ``fds``."""
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
            "instance": self.instance,
            "private": list(self.private),
            "home": self.home,
            "one_owner": self.one_owner,
            "max_bytes": self.max_bytes,
            "commit_ms": self.commit_ms,
            "read_only": self.read_only,
            "freshness": self.freshness,
            "conf_mac": self.conf_mac,
            "version_number": self.version_number,
            "accept_rollback": self.accept_rollback,
            "pin_file": self.pin_file,
            "pin_command": self.pin_command,
            "expect_upper": self.expect_upper,
            "fence": None if self.fence is None else self.fence.dump(),
            "owner": self.owner,
            "patience_ms": self.patience_ms,
            "ground": None
            if self.ground is None
            else {"path": self.ground.instance.path, "closed": self.ground.dump_closed()},
            "has_host": self.host is not None,
            "is_small": self.is_small,
            "max_volumes": self.max_volumes,
        }

    @classmethod
    def parse(cls, record: Mapping[str, Value], fds: Sequence[int] = ()) -> Orders:
        """Return the orders in a record; the descriptors are theirs, or the caller's if it fails.

        Raises:
            FormatError: it is not what :meth:`dump` makes.
        """
        ground, host = _descriptors(record, fds)
        files = record_of(record.get("files"), "files")
        fence = optional_record(record, "fence")
        return cls(
            kind=text(record, "kind"),
            image=text(record, "image"),
            image_key=optional_raw(record, "image_key"),
            expected_mac=optional_raw(record, "expected_mac"),
            volume=text(record, "volume"),
            volume_key=optional_raw(record, "volume_key"),
            source=raw(record, "source"),
            files={name: raw(files, name) for name in files},
            host_path=text(record, "host_path"),
            hidden=tuple(str(item) for item in many(record, "hidden")),
            instance=text(record, "instance"),
            private=tuple(str(item) for item in many(record, "private")),
            home=text(record, "home"),
            one_owner=flag(record, "one_owner"),
            max_bytes=number(record, "max_bytes"),
            commit_ms=number(record, "commit_ms"),
            read_only=flag(record, "read_only"),
            freshness=text(record, "freshness"),
            conf_mac=raw(record, "conf_mac"),
            version_number=optional_number(record, "version_number"),
            accept_rollback=flag(record, "accept_rollback"),
            pin_file=text(record, "pin_file"),
            pin_command=text(record, "pin_command"),
            expect_upper=raw(record, "expect_upper"),
            fence=None if fence is None else Fence.parse(fence),
            owner=optional_number(record, "owner"),
            patience_ms=number(record, "patience_ms"),
            ground=ground,
            host=host,
            is_small=flag(record, "is_small"),
            max_volumes=number(record, "max_volumes"),
        )


def _descriptors(
    record: Mapping[str, Value], fds: Sequence[int]
) -> tuple[Ground | None, DirFd | None]:
    left = list(fds)
    described = optional_record(record, "ground")
    has_host = flag(record, "has_host")
    if len(left) != (described is not None) + has_host:
        raise FormatError("orders to an fs server lack a descriptor, or have one too many")
    ground = None
    if described is not None:
        closed = parse_identities(raw(described, "closed"))
        ground = Ground(DirFd(left.pop(0), text(described, "path")), closed)
    host = DirFd(left.pop(0), text(record, "host_path")) if has_host else None
    return ground, host


@frozen
class Opened:
    """A file system that was verified up to its root; ``root_mac`` is empty for the host's.

    ``notices`` are lines that the operator must see. ``read_only``: nothing can be written to it.
    """

    fs: FileSystem
    root_mac: bytes = b""
    notices: tuple[str, ...] = ()
    read_only: bool = False
