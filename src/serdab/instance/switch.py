# SPDX-License-Identifier: Apache-2.0
"""The switch from one image key to another: two directories, one moment.

A change of the key replaces ``build/`` and the writable layer, and there is no call that replaces
two directories at once. So the new layer waits under the name of the configuration it belongs to,
and the moment that counts is the exchange of ``build/``. What lies on disk is the state::

    .rekey-staging  run/.rekey/  build/  layer      what it is              what settle() does
    --------------  -----------  ------  ---------  ----------------------  -------------------
    (any)           new          old     old        being written           removes both (1)
    new             <conf MAC>   old     old        whole, not decided      removes both (1)
    old             <conf MAC>   new     old        decided                 moves the layer in
    old             <MAC>, old   new     (nothing)  layer moved aside       moves the layer in
    old             old          new     new        layer in place          removes both

(1) but for another ``rekey``, which goes on from there (``take_up``).

<conf MAC> is the SHA-256 of the new protected configuration: "decided" is that ``build/`` holds
that one. Before it the old key opens everything, from it on the new key does, since everybody who
locks ``run/`` settles first (``locks``), and so does ``build``.

Above: ``locks``, ``rekey``, ``rekeystage``. Below: ``layout``, ``publish``.

Security: nothing here is verified, and nothing needs to be: the storage could have moved and
removed these directories as well. So no path is followed out of the instance: a link is left alone.
What was written here gets its place only as the directory that it was written into (``publish``).
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
from typing import Final

from serdab.config.boot import parse_boot_config
from serdab.errors import Error
from serdab.instance import movable, publish
from serdab.instance.layout import (
    BUILD,
    PROTECTED_CONFIG,
    REKEY_ASIDE,
    REKEY_BUILD,
    REKEY_PATHS,
    REKEY_VOLUME,
    RUN,
    Instance,
)
from serdab.linux.dirfd import DirFd

_NEW: Final = "new"
_WORK: Final = f"{REKEY_VOLUME}/{_NEW}"
_MOVED_ASIDE: Final = f"{REKEY_VOLUME}/old"


def settle(instance: Instance, *, keep_undecided: bool = False) -> None:
    """Bring a switch that was cut off to its end, or take it back. Caller holds ``run/``.

    ``keep_undecided``: leave what is no more than work for who is to go on with it.
    """
    root = instance.root
    movable.finish(root)
    _put_build_back(root)
    try:
        raw = instance.read(PROTECTED_CONFIG)
        source = parse_boot_config(raw).upper.source
    except Error:
        return  # what was decided cannot be told: everything stays as it is
    layer = find_layer(instance, source)
    waiting = _waiting(raw)
    if root.is_directory(waiting):
        if layer is None:
            return
        _move_in(root, waiting, layer)
    else:
        _put_layer_back(root, layer)
        if keep_undecided:
            return
    remove_staged(instance)


def take_up(instance: Instance, *, with_layer: bool) -> tuple[DirFd, DirFd | None]:
    """Return two directories to write to: for ``build/`` and, on its file system, for the layer.

    They hold what an earlier attempt left, of which nothing is known. Caller holds both locks.
    """
    root = instance.root
    for path in (REKEY_BUILD, REKEY_VOLUME):
        if not root.is_directory(path):
            root.remove(path)
    root.remove(REKEY_ASIDE)
    # What became a lower layer meanwhile would be in the way of the switch: it is made anew.
    if root.exists(REKEY_BUILD) and not movable.is_movable(root, REKEY_BUILD, REKEY_ASIDE):
        root.remove(REKEY_BUILD)
    for name in root.names(REKEY_VOLUME):
        _drop_immovable(root, name)
    build = publish.take_up_staging(root, REKEY_BUILD)
    if not with_layer:
        return build, None
    try:
        root.make(REKEY_VOLUME, mode=0o700).close()
        names = root.names(REKEY_VOLUME)
        if len(names) == 1 and names != [_NEW]:
            root.rename(f"{REKEY_VOLUME}/{names[0]}", _WORK)  # it was waiting already
        elif names != [_NEW]:
            root.remove(REKEY_VOLUME)
        if not root.is_directory(_WORK):
            root.remove(_WORK)
        return build, root.make(_WORK, mode=0o700)
    except BaseException:
        build.close()
        raise


def stage_layer(instance: Instance, raw_config: bytes, volume: DirFd) -> None:
    """Give the new layer the name under which it waits.

    Preconditions: its files are durable.

    Raises:
        UsageError: what bears its name is not what was written.
    """
    root = instance.root
    os.fsync(volume.fd)
    publish.require_same(root, _WORK, volume)
    waiting = _waiting(raw_config)
    root.rename(_WORK, waiting)
    publish.require_same(root, waiting, volume)
    root.sync(REKEY_VOLUME)
    root.sync(RUN)


def decide(instance: Instance, raw_config: bytes, build: DirFd, layer: str | None) -> None:
    """Make what was staged the instance. ``layer``: where the writable layer goes; None: none."""
    publish.put_in_place(instance, REKEY_BUILD, build)
    if layer is not None:
        _move_in(instance.root, _waiting(raw_config), layer)


def remove_staged(instance: Instance) -> None:
    """Remove what a switch leaves: its work before it was decided, the old data afterwards."""
    for path in REKEY_PATHS:
        instance.root.remove(path)


def find_layer(instance: Instance, source: str) -> str | None:
    """Return where the writable layer lies, relative; None if that is not plainly inside."""
    path = posixpath.normpath(source)
    if path.startswith("/") or path.split("/")[0] in ("", ".", "..") or path == RUN:
        return None
    return path if instance.root.is_plain(path) else None


def _waiting(raw_config: bytes) -> str:
    return f"{REKEY_VOLUME}/{hashlib.sha256(raw_config).hexdigest()}"


def _put_build_back(root: DirFd) -> None:
    """Where directories cannot be exchanged: undo the first of two renames (``publish``)."""
    if root.is_directory(REKEY_ASIDE) and not root.exists(BUILD):
        movable.rename(root, REKEY_ASIDE, BUILD)
        root.sync()


def _put_layer_back(root: DirFd, layer: str | None) -> None:
    """Nothing waits for the place of the layer that was moved aside: it was its own."""
    if layer is None or root.exists(layer) or not root.is_directory(_MOVED_ASIDE):
        return
    movable.rename(root, _MOVED_ASIDE, layer)
    root.sync(posixpath.dirname(layer))


def _drop_immovable(root: DirFd, name: str) -> None:
    path, spare = f"{REKEY_VOLUME}/{name}", f"{REKEY_VOLUME}/{name}-"
    if root.is_directory(path) and not movable.is_movable(root, path, spare):
        root.remove(path)


def _move_in(root: DirFd, waiting: str, layer: str) -> None:
    try:
        root.rename(layer, _MOVED_ASIDE)
    except FileNotFoundError:
        pass
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        root.remove(layer)  # of a lower layer (movable); it is decided, so nobody needs it
    above = posixpath.dirname(layer)
    root.make(above, mode=0o700).close()
    movable.rename(root, waiting, layer)
    root.sync(above)
    root.sync(REKEY_VOLUME)
