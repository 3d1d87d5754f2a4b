# SPDX-License-Identifier: Apache-2.0
"""The inodes of a host directory tree that the kernel knows of, and the descriptors behind them.

Above: ``hostfs``. Below: ``hiding``, ``linux.files``.

Each node has an O_PATH descriptor, which pins the file whatever happens to its name. Descriptors
are few, so the least recently used are closed, and opened again from the root by the names that
led there; what is found must be the same file (device and inode number), else ESTALE. A file that
lost its last name through us keeps its descriptor.

Security:
    1. Every step is one openat2(2) below a descriptor, with RESOLVE_BENEATH, NO_SYMLINKS and
       NO_MAGICLINKS: no path leaves the root, whatever is swapped on the host meanwhile.
    2. What is hidden is known by name and by identity (``hiding``), whatever led there.
    3. File systems that are an interface of the kernel (proc, sysfs and their like) are never
       entered: a server that is host root would write to them with host root's rights.
    4. Not covered: a directory that someone on the host moves out of the tree stays reachable for
       a program that stands in it, as with a bind mount.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from serdab.errors import FsError, UsageError
from serdab.linux.files import CONFINED, Resolve, filesystem_magic, openat2
from serdab.linux.identity import Identity, identity_of
from serdab.linux.outside import is_instance
from serdab.linux.whereabouts import NOTHING
from serdab.vfs.api import ROOT_INO
from serdab.vfs.hiding import NOWHERE, Elsewhere, Hidden, Hiding, Kind, Place, merge

#: Inode numbers of what has none on the root's own device start here.
FOREIGN_INO: Final = 1 << 61
#: Directories that are shown empty: they exist on our side only.
PHANTOM_INO: Final = 1 << 62
#: linux/magic.h and statfs(2): what is written there changes the kernel, not a file.
_KERNEL_INTERFACES: Final = frozenset(
    {
        0x00009FA0,  # proc
        0x00009FA1,  # openpromfs
        0x00009FA2,  # usbdevfs
        0x00001CD1,  # devpts
        0x0027E0EB,  # cgroup
        0x07655821,  # resctrl
        0x19800202,  # mqueue
        0x42494E4D,  # binfmt_misc
        0x43415D53,  # smackfs
        0x62656570,  # configfs
        0x62656572,  # sysfs
        0x63677270,  # cgroup2
        0x64626720,  # debugfs
        0x6165676C,  # pstore
        0x65735543,  # fusectl
        0x67596969,  # rpc_pipefs
        0x6E667364,  # nfsd
        0x6E736673,  # nsfs
        0x73636673,  # securityfs
        0x74726163,  # tracefs
        0xABBA1974,  # xenfs
        0xCAFE4A11,  # bpf
        0xDE5E81E4,  # efivarfs
        0xF97CFF8C,  # selinuxfs
    }
)
_CONFINED_HERE: Final = CONFINED | Resolve.NO_XDEV
_PATH_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW


class Node:
    """A file of the host. ``place`` is set where something at a known path below is hidden."""

    __slots__ = ("ino", "identity", "fd", "parent", "name", "nlookup", "is_pinned", "place")

    def __init__(self, ino: int, identity: Identity, fd: int) -> None:
        self.ino = ino
        self.identity = identity
        self.fd = fd
        self.parent = ROOT_INO
        self.name = b""
        self.nlookup = 0
        self.is_pinned = False
        self.place: Place | None = None


class NodeTable:
    """All nodes the kernel holds, by inode number and by identity on the host."""

    def __init__(
        self,
        root_fd: int,
        hidden: Iterable[bytes],
        *,
        instance: bytes | None = None,
        elsewhere: Elsewhere = NOWHERE,
        max_fds: int,
    ) -> None:
        """Take the descriptor of the root over; what is hidden, as ``Hiding`` says.

        Raises:
            UsageError: it is an interface of the kernel; the descriptor stays the caller's.
        """
        if filesystem_magic(root_fd) in _KERNEL_INTERFACES:
            raise UsageError(
                "this host directory is never shown to programs",
                stage="config",
                subject=os.readlink(f"/proc/self/fd/{root_fd}"),
                expected="a directory of files",
                found="an interface of the kernel",
                hint="programs have a /proc of their own inside",
            )
        status = os.fstat(root_fd)
        self._root_device = status.st_dev
        self._next_foreign = FOREIGN_INO
        self._max_fds = max_fds
        root = Node(ROOT_INO, identity_of(status), root_fd)
        root.nlookup = 1
        root.is_pinned = True
        self.hiding = Hiding(root_fd, hidden, instance, elsewhere)
        root.place = self.hiding.root
        self._root = root
        self._phantoms: dict[tuple[Identity, bytes], int] = {}
        #: the directories that they are in, in the order of their numbers
        self._above_phantoms: list[Identity] = []
        self._nodes: dict[int, Node] = {ROOT_INO: root}
        self._by_identity: dict[Identity, Node] = {root.identity: root}
        #: nodes whose descriptor may be closed, the least recently used first
        self._recent: OrderedDict[int, Node] = OrderedDict()

    def get(self, ino: int) -> Node:
        """Return a node; ESTALE if the kernel should not know it."""
        node = self._nodes.get(ino)
        if node is None:
            raise FsError(errno.ESTALE)
        return node

    def find(self, ino: int) -> Node | None:
        return self._nodes.get(ino)

    def fd(self, node: Node) -> int:
        """Return the O_PATH descriptor of a node, opened again if it was closed."""
        if node.fd < 0:
            node.fd = self._reopen(node)
        if not node.is_pinned:
            self._keep(node)
        return node.fd

    def _keep(self, node: Node) -> None:
        self._recent[node.ino] = node
        self._recent.move_to_end(node.ino)
        while len(self._recent) > self._max_fds:
            _, oldest = self._recent.popitem(last=False)
            os.close(oldest.fd)
            oldest.fd = -1

    def _reopen(self, node: Node) -> int:
        names: list[bytes] = []
        at = node
        while at is not self._root:
            names.append(at.name)
            above = self._nodes.get(at.parent)
            if above is None or len(names) > 4096:
                raise FsError(errno.ESTALE)
            at = above
        try:
            fd = openat2(self._root.fd, b"/".join(reversed(names)), _PATH_FLAGS, CONFINED)
        except OSError as exc:
            raise FsError(errno.ESTALE) from exc
        status = os.fstat(fd)
        if identity_of(status) != node.identity:
            os.close(fd)
            raise FsError(errno.ESTALE)
        return fd

    def pin(self, node: Node) -> None:
        """Keep the descriptor for as long as the node lives: its name is about to go."""
        self.fd(node)
        node.is_pinned = True
        self._recent.pop(node.ino, None)

    def kind(self, parent: Node, name: bytes) -> Kind:
        """Return what becomes of a name."""
        return self.hiding.kind(parent.place, self.fd(parent), name)

    def phantom(self, parent: Node, name: bytes) -> int:
        """Return the inode number of a directory that is shown empty."""
        key = (parent.identity, name)
        found = self._phantoms.get(key)
        if found is None:
            self._above_phantoms.append(parent.identity)
            found = self._phantoms[key] = PHANTOM_INO + len(self._above_phantoms)
        return found

    def above_phantom(self, ino: int) -> int:
        """Return the inode number of the directory that one which is shown empty is in."""
        node = self._by_identity.get(self._above_phantoms[ino - PHANTOM_INO - 1])
        return ROOT_INO if node is None else node.ino

    def holds_hidden(self, node: Node) -> bool:
        """Return whether a directory has something hidden below at a known path, or is an instance.

        Such a one stays in place, with the owner and mode that it has.
        """
        place = node.place
        if place is not None and (place.below or place.is_instance):
            return True
        return is_instance(self.fd(node))

    def must_stay(self, parent: Node, name: bytes) -> bool:
        """Return whether what is at a name that is shown must not be moved, removed or covered."""
        try:
            status = os.stat(name, dir_fd=self.fd(parent), follow_symlinks=False)
        except OSError as exc:
            if exc.errno in NOTHING:
                return False
            raise
        if self.hiding.is_alias(parent.place, self.fd(parent), status, crossed=False):
            return True
        if not stat.S_ISDIR(status.st_mode):
            return False
        # An instance: in its place another one could be put, with what was made for that.
        try:
            fd = openat2(self.fd(parent), name, _PATH_FLAGS, CONFINED)
        except OSError as exc:
            if exc.errno in NOTHING:
                return False
            raise
        try:
            return is_instance(fd)
        finally:
            os.close(fd)

    def open_child(self, parent: Node, name: bytes) -> tuple[int, os.stat_result, Place | None]:
        """Open a name below a node; the O_PATH descriptor is the caller's.

        Preconditions: the name is shown (``kind``).
        """
        if not name or b"/" in name or name in (b".", b".."):
            raise FsError(errno.EINVAL)
        fd, crossed = self._step(parent, name)
        try:
            status = os.fstat(fd)
            place = self.hiding.below(parent.place, name)
            if place is None and self.hiding.is_alias(
                parent.place, self.fd(parent), status, crossed=crossed
            ):
                raise FsError(errno.ENOENT)
            if crossed:
                # A mount point of the host; what lies on one mount with its parent was asked there.
                if filesystem_magic(fd) in _KERNEL_INTERFACES:
                    raise FsError(errno.EACCES)
                place = merge(place, self.hiding.across(fd))
        except Hidden:
            os.close(fd)
            raise FsError(errno.ENOENT) from None
        except BaseException:
            os.close(fd)
            raise
        return fd, status, place

    def _step(self, parent: Node, name: bytes) -> tuple[int, bool]:
        """Open a name; return the descriptor, and whether a mount lies between."""
        try:
            return openat2(self.fd(parent), name, _PATH_FLAGS, _CONFINED_HERE), False
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
        return openat2(self.fd(parent), name, _PATH_FLAGS, CONFINED), True

    def lookup(self, parent: Node, name: bytes) -> tuple[Node, os.stat_result]:
        """Return the node of a name, with one lookup more."""
        fd, status, place = self.open_child(parent, name)
        node = self.adopt(fd, status, parent, name)
        if node is not self._root:
            node.place = place
        return node, status

    def adopt(
        self, fd: int, status: os.stat_result, parent: Node | None = None, name: bytes = b""
    ) -> Node:
        """Return the node of an open file, with one lookup more; takes the descriptor.

        ``parent`` is None for a file that has no name.
        """
        identity = identity_of(status)
        node = self._by_identity.get(identity)
        if node is None:
            node = Node(self.number(identity), identity, fd)
            self._nodes[node.ino] = self._by_identity[identity] = node
            self._keep(node)
        elif node.fd < 0:
            node.fd = fd
            self._keep(node)
        else:
            os.close(fd)
        node.nlookup += 1
        if parent is not None and node is not self._root:
            node.parent = parent.ino
            node.name = name
            node.place = self.hiding.below(parent.place, name)
        return node

    def number(self, identity: Identity) -> int:
        """Return the inode number to show: the host's own where that is unambiguous."""
        known = self._by_identity.get(identity)
        if known is not None:
            return known.ino
        device, ino = identity
        if device == self._root_device and ROOT_INO < ino < FOREIGN_INO:
            return ino
        self._next_foreign += 1
        return self._next_foreign

    def number_of_entry(self, parent: Node, ino: int) -> int:
        """Return the inode number of a directory entry, which names no device."""
        known = self._by_identity.get((parent.identity[0], ino))
        return known.ino if known is not None else ino

    def peek(self, parent: Node, name: bytes) -> Node | None:
        """Return the node of a name if the kernel holds it."""
        try:
            status = os.stat(name, dir_fd=self.fd(parent), follow_symlinks=False)
        except OSError as exc:
            if exc.errno in NOTHING:
                return None
            raise
        return self._by_identity.get(identity_of(status))

    def forget(self, ino: int, nlookup: int) -> bool:
        """Drop lookups; return whether the node is gone."""
        node = self._nodes.get(ino)
        if node is None or node is self._root:
            return False
        node.nlookup -= nlookup
        if node.nlookup > 0:
            return False
        del self._nodes[ino]
        del self._by_identity[node.identity]
        self._recent.pop(ino, None)
        if node.fd >= 0:
            os.close(node.fd)
        return True

    def close(self) -> None:
        """Close every descriptor."""
        for node in self._nodes.values():
            if node.fd >= 0:
                os.close(node.fd)
                node.fd = -1
        self.hiding.close()
        self._nodes.clear()
        self._by_identity.clear()
        self._recent.clear()
