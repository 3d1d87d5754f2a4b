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
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
from typing import Final

from serdab.config.boot import parse_boot_config
from serdab.config.dirs import sync_directory
from serdab.errors import Error
from serdab.instance import publish
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
from serdab.instance.publish import is_directory, remove

_NEW: Final = "new"
_OLD: Final = "old"


def settle(instance: Instance, *, keep_undecided: bool = False) -> None:
    """Bring a switch that was cut off to its end, or take it back. Caller holds ``run/``.

    ``keep_undecided``: leave what is no more than work for who is to go on with it.
    """
    _put_build_back(instance)
    try:
        raw = instance.read(PROTECTED_CONFIG)
        source = parse_boot_config(raw).upper.source
    except Error:
        return  # what was decided cannot be told: everything stays as it is
    layer = find_layer(instance, source)
    waiting = _waiting(instance, raw)
    if is_directory(instance.at(REKEY_VOLUME)) and is_directory(waiting):
        if layer is None:
            return
        _move_in(instance, waiting, layer)
    else:
        _put_layer_back(instance, layer)
        if keep_undecided:
            return
    remove_staged(instance)


def take_up(instance: Instance, *, with_layer: bool) -> tuple[str, str]:
    """Return two directories to write to: for ``build/`` and, on its file system, for the layer.

    They hold what an earlier attempt left, of which nothing is known. Caller holds both locks.
    """
    build, staged = instance.at(REKEY_BUILD), instance.at(REKEY_VOLUME)
    volume = os.path.join(staged, _NEW)
    for path in (build, staged):
        if not is_directory(path):
            remove(path)
    remove(instance.at(REKEY_ASIDE))
    os.makedirs(build, 0o755, exist_ok=True)
    if with_layer:
        os.makedirs(staged, 0o700, exist_ok=True)
        names = os.listdir(staged)
        if len(names) == 1 and names != [_NEW]:
            os.rename(os.path.join(staged, names[0]), volume)  # it was waiting already
        elif names != [_NEW]:
            remove(staged)
        if not is_directory(volume):
            remove(volume)
        os.makedirs(volume, 0o700, exist_ok=True)
    return build, volume


def stage_layer(instance: Instance, raw_config: bytes) -> None:
    """Give the new layer the name under which it waits.

    Preconditions: its files are durable.
    """
    staged = instance.at(REKEY_VOLUME)
    sync_directory(os.path.join(staged, _NEW))
    os.rename(os.path.join(staged, _NEW), _waiting(instance, raw_config))
    sync_directory(staged)
    sync_directory(instance.at(RUN))


def decide(instance: Instance, raw_config: bytes, layer: str | None) -> None:
    """Make what was staged the instance. ``layer``: where the writable layer goes; None: none."""
    publish.put_in_place(instance, instance.at(REKEY_BUILD))
    if layer is not None:
        _move_in(instance, _waiting(instance, raw_config), layer)


def remove_staged(instance: Instance) -> None:
    """Remove what a switch leaves: its work before it was decided, the old data afterwards."""
    for path in map(instance.at, REKEY_PATHS):
        remove(path)


def find_layer(instance: Instance, source: str) -> str | None:
    """Return where the writable layer lies; None if that is not plainly inside the instance.

    ``run`` itself may be a link: what waits lies behind the same one.
    """
    path = posixpath.normpath(source)
    parts = path.split("/")
    if path.startswith("/") or parts[0] in ("", ".", "..") or path == RUN:
        return None
    here = instance.path
    for number, part in enumerate(parts):
        here = os.path.join(here, part)
        if os.path.islink(here) and not (number == 0 and part == RUN):
            return None
    return here


def _waiting(instance: Instance, raw_config: bytes) -> str:
    return os.path.join(instance.at(REKEY_VOLUME), hashlib.sha256(raw_config).hexdigest())


def _put_build_back(instance: Instance) -> None:
    """Where directories cannot be exchanged: undo the first of two renames (``publish``)."""
    aside = instance.at(REKEY_ASIDE)
    if is_directory(aside) and not os.path.lexists(instance.at(BUILD)):
        os.rename(aside, instance.at(BUILD))
        sync_directory(instance.path)


def _put_layer_back(instance: Instance, layer: str | None) -> None:
    """Nothing waits for the place of the layer that was moved aside: it was its own."""
    aside = os.path.join(instance.at(REKEY_VOLUME), _OLD)
    if layer is None or os.path.lexists(layer):
        return
    if is_directory(instance.at(REKEY_VOLUME)) and is_directory(aside):
        os.rename(aside, layer)
        sync_directory(os.path.dirname(layer))


def _move_in(instance: Instance, waiting: str, layer: str) -> None:
    staged = instance.at(REKEY_VOLUME)
    aside = os.path.join(staged, _OLD)
    with contextlib.suppress(FileNotFoundError):
        os.rename(layer, aside)
    os.makedirs(os.path.dirname(layer), mode=0o700, exist_ok=True)
    os.rename(waiting, layer)
    sync_directory(os.path.dirname(layer))
    sync_directory(staged)
