# SPDX-License-Identifier: Apache-2.0
"""What an fs server is ordered to serve: one value, dumped by the kernel process, parsed by the
server, and what it has opened.

Above: ``fsclient``, ``storage``, ``layers``. Below: ``fence``, ``messages``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from serdab.errors import FormatError
from serdab.libos.fence import Fence
from serdab.libos.fields import many, number, optional_raw, raw, text
from serdab.libos.messages import Value
from serdab.vfs.api import FileSystem

#: A read-only image under a writable layer in memory: the init FS.
TRANSIENT: Final = "transient"
#: A read-only image under a writable volume: the root FS.
UNION: Final = "union"
#: A sealed file system by itself: a writable volume, or an image that stays as it is.
SEALED: Final = "sealed"
#: A directory of the host.
HOST: Final = "host"


@dataclass(frozen=True, slots=True)
class Orders:
    """One file system to serve. Keys are bytes here and nowhere else outside ``keys``.

    ``source`` is what the volume remembers in clear about where its key comes from. ``files`` are
    put into the writable layer before it is served: absolute path to content, mode 0400.
    ``image`` may be a volume too, which is then read only. With ``fence`` every directory must
    exist and lie where the fence allows, and one that is empty becomes a new file system.
    ``hidden`` are relative paths of a host directory that are shown empty. With ``one_owner``
    everything is shown as owned by the inner root. ``max_bytes`` is the most that live data of the
    volume may take; 0: no limit but the host's. ``commit_ms``: a change waits no longer for a
    commit; 0: until something asks for one. ``read_only``: the volume exists, and stays as it is.
    ``is_small``: with little memory, caches and buffers hold less. ``max_volumes``: so many are
    remembered below the roots of the fence; 0: any number.
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
    one_owner: bool = False
    max_bytes: int = 0
    commit_ms: int = 0
    read_only: bool = False
    freshness: str = "off"
    conf_mac: bytes = bytes(32)
    accept_rollback: bool = False
    pin_file: str = ""
    pin_command: str = ""
    expect_upper: bytes = b""
    fence: Fence | None = None
    patience_ms: int = 0
    is_small: bool = False
    max_volumes: int = 0

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
            "max_bytes": self.max_bytes,
            "commit_ms": self.commit_ms,
            "read_only": self.read_only,
            "freshness": self.freshness,
            "conf_mac": self.conf_mac,
            "accept_rollback": self.accept_rollback,
            "pin_file": self.pin_file,
            "pin_command": self.pin_command,
            "expect_upper": self.expect_upper,
            "fence": None
            if self.fence is None
            else [self.fence.instance, list(self.fence.roots), list(self.fence.private)],
            "patience_ms": self.patience_ms,
            "is_small": self.is_small,
            "max_volumes": self.max_volumes,
        }

    @classmethod
    def parse(cls, record: Mapping[str, Value]) -> Orders:
        """Return the orders in a record.

        Raises:
            FormatError: it is not what :meth:`dump` makes.
        """
        files = record.get("files")
        if not isinstance(files, dict):
            raise FormatError("orders to an fs server are malformed")
        return cls(
            kind=text(record, "kind"),
            image=text(record, "image"),
            image_key=optional_raw(record, "image_key"),
            expected_mac=optional_raw(record, "expected_mac"),
            volume=text(record, "volume"),
            volume_key=optional_raw(record, "volume_key"),
            source=raw(record, "source"),
            files={str(name): bytes(content) for name, content in files.items()},
            host_path=text(record, "host_path"),
            hidden=tuple(str(item) for item in many(record, "hidden")),
            one_owner=record.get("one_owner") is True,
            max_bytes=number(record, "max_bytes"),
            commit_ms=number(record, "commit_ms"),
            read_only=record.get("read_only") is True,
            freshness=text(record, "freshness"),
            conf_mac=raw(record, "conf_mac"),
            accept_rollback=record.get("accept_rollback") is True,
            pin_file=text(record, "pin_file"),
            pin_command=text(record, "pin_command"),
            expect_upper=raw(record, "expect_upper"),
            fence=_fence(record.get("fence")),
            patience_ms=number(record, "patience_ms"),
            is_small=record.get("is_small") is True,
            max_volumes=number(record, "max_volumes"),
        )


def _fence(value: Value) -> Fence | None:
    match value:
        case None:
            return None
        case [str() as instance, list() as roots, list() as private]:
            return Fence(instance, tuple(map(str, roots)), tuple(map(str, private)))
        case _:
            raise FormatError("orders to an fs server: fence is malformed")


@dataclass(frozen=True, slots=True)
class Opened:
    """A file system that was verified up to its root; ``root_mac`` is empty for the host's.

    ``notices`` are lines that the operator must see. ``read_only``: nothing can be written to it.
    """

    fs: FileSystem
    root_mac: bytes = b""
    notices: tuple[str, ...] = ()
    read_only: bool = False
