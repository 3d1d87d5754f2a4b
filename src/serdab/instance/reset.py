# SPDX-License-Identifier: Apache-2.0
"""Throws the writable layer away, with the images that were kept for it; or one other volume.

Its record goes last: a reset that was cut off leaves a layer that is missed, not one that passes as
new. Above: ``cli``. Below: ``layout``, ``locks``, ``trust.records``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from serdab.config.occlum import parse
from serdab.errors import Error, UsageError
from serdab.instance import outer
from serdab.instance.layout import CONFIG, PREVIOUS, UPPER, Instance
from serdab.instance.locks import lock_build, lock_run
from serdab.instance.measurements import read_measurements
from serdab.linux.dirfd import DirFd
from serdab.sefs.anchor import ANCHOR_NAME
from serdab.sefs.hostplace import open_place
from serdab.trust.records import discard, known_below

Say = Callable[[str], None]


def _layout(instance: Instance) -> tuple[str, tuple[str, ...]]:
    """Return where the writable layer lies, and which host directories programs are shown."""
    try:
        if instance.is_packaged():
            config = read_measurements(instance).config
            return config.upper.source, outer.shown_by(config)
        written = parse(instance.read(CONFIG))
        return written.upper.source, outer.shown_by(written)
    except Error:
        # Resetting must be possible with a broken configuration too.
        return UPPER, ()


def reset_volume(instance: Instance, volume: str, *, say: Say) -> list[str]:
    """Remove what lies in the directory of a volume that programs mount, and let a new one begin.

    ``volume`` is relative to the instance, or absolute. Everything else stays, the directory too.
    ``say(line)`` hears of what is waited for.

    Raises:
        BusyError: the instance, or the volume, is in use.
        UsageError: the directory holds something that is no volume, or the way to it is a link's.
    """
    path = os.path.join(instance.path, volume)
    removed = []
    with lock_build(instance), lock_run(instance, on_wait=say):
        shown = _layout(instance)[1]
        directory = outer.find(instance, volume, shown)
        if directory is not None:
            with directory:
                if directory.exists(ANCHOR_NAME):
                    _empty(directory)
                    removed.append(volume)
                elif directory.names():
                    raise UsageError(
                        "reset: there is no volume",
                        subject=path,
                        expected="a directory that a program has mounted, or an empty one",
                        found="something else in it",
                    )
        with outer.ground_of(instance, shown) as ground:
            real = ground.real(volume)
        if discard(real):
            removed.append(f"the record of {volume}")
    return removed


def _empty(volume: DirFd) -> None:
    lock = open_place(volume)
    try:
        lock.lock(exclusive=True)
        # The anchor last: a reset that was cut off leaves a damaged volume, not a new one.
        for name in sorted(volume.names(), key=lambda name: name == ANCHOR_NAME):
            volume.remove(name)
    finally:
        lock.close()


def reset(instance: Instance, *, say: Say) -> list[str]:
    """Remove the writable layer; return the paths (in the instance) that were removed.

    ``say(line)`` hears of what is waited for.

    Raises:
        BusyError: the instance is in use.
        UsageError: the way to the layer leads through a link.
    """
    upper, shown = _layout(instance)
    removed = []
    with lock_build(instance), lock_run(instance, on_wait=say):
        for relative in (upper, PREVIOUS):
            if _remove(instance, relative, shown):
                removed.append(relative)
        with outer.ground_of(instance, shown) as ground:
            real = ground.real(upper)
        if discard(real) and upper not in removed:
            removed.append(f"the record of {upper}")
        # Layers that an init named itself and that are gone: nothing else could let them go.
        for relative in _missing(instance):
            discard(instance.root.real(relative))
            removed.append(f"the record of {relative}")
    return removed


def _missing(instance: Instance) -> Iterator[str]:
    """Yield the remembered places below the instance where there is no volume any more."""
    here = instance.root.real()
    for path in known_below(here):
        relative = os.path.relpath(path, here)
        if not instance.root.exists(f"{relative}/{ANCHOR_NAME}"):
            yield relative


def _remove(instance: Instance, source: str, shown: tuple[str, ...]) -> bool:
    place = outer.parent(instance, source, shown)
    if place is None:
        return False
    above, name = place
    with above:
        if not above.exists(name):
            return False
        if not above.is_directory(name):
            raise above.not_ours(name, "a directory")
        above.remove(name)
    return True
