# SPDX-License-Identifier: Apache-2.0
"""What an fs server is ordered to serve, and how it opens it. Runs inside fs server processes.

Above: ``fsserver``. Below: ``sefs``, ``vfs``. The imports are late on purpose: a process pays only
for the kind it serves.
"""

from __future__ import annotations

import os
import stat
from functools import partial

from serdab.errors import FormatError, FsError
from serdab.libos import layers
from serdab.libos.orders import HOST, SEALED, TRANSIENT, UNION, Opened, Orders
from serdab.libos.users import NOBODY, require_owner, shown_owner
from serdab.structs import replace
from serdab.vfs.api import ROOT_INO, FileSystem, SetAttr


def open_file_system(orders: Orders) -> Opened:
    """Open and verify what the orders name.

    Raises:
        Error: as ``sefs.image.open_image`` and ``sefs.volume.open_volume`` say.
    """
    if orders.is_small:
        from serdab.sefs.cache import cap_caches

        cap_caches(layers.SMALL_CACHE_BYTES)
    if orders.kind == HOST:
        opened = Opened(_open_host(orders))
    elif orders.kind == SEALED:
        opened = layers.open_single(orders)
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
    from serdab.vfs.union import Union

    image = layers.open_lower(orders)
    notices: list[str] = []
    try:
        if orders.kind == TRANSIENT or not orders.volume:
            from serdab.sefs.boundeddir import half_of_memory
            from serdab.sefs.volume import bounded_volume

            upper = bounded_volume(image, orders.max_bytes or half_of_memory())
        else:
            upper, notices = layers.open_upper(orders, image)
        return Opened(Union(upper, image), image.root_mac, tuple(notices))
    except BaseException:
        image.close()
        raise


def _open_host(orders: Orders) -> FileSystem:
    from serdab.vfs.hiding import Elsewhere
    from serdab.vfs.hostfs import HostFs, Owners

    names, instance = orders.hidden, orders.instance
    private, home = orders.private, orders.home
    if orders.fence is not None and orders.ground is not None:
        place = orders.fence.enter(orders.ground, orders.host_path)
        try:
            require_owner(place.directory.fd, orders.owner, orders.host_path)
        except BaseException:
            place.directory.close()
            raise
        root, names, instance = place.directory.fd, place.hidden, place.instance
        private, home = orders.fence.private, orders.ground.real(".")
    elif orders.host is not None:
        root = os.dup(orders.host.fd)  # close-on-exec (PEP 446), and the file system's own
    else:
        raise FormatError("orders to an fs server name a host directory without its descriptor")
    open_it = partial(
        HostFs,
        root,
        hidden=[os.fsencode(item) for item in names],
        instance=os.fsencode(instance) or None,
        elsewhere=Elsewhere(tuple(map(os.fsencode, private)), os.fsencode(home) or None),
        read_only=orders.read_only,
    )
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and not orders.one_owner:
        return open_it()
    # We can make files for ourselves only, and that is whom the inner root stands for.
    owners = Owners(
        show=lambda user, group: (
            shown_owner(user),
            0 if group == gid else NOBODY,
        ),
        keep=lambda user, group: (uid, gid),
    )
    return open_it(owners=owners)


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
