# SPDX-License-Identifier: Apache-2.0
"""Throws the writable layer away, with the images that were kept for it; or one other volume.

Its record goes last: a reset that was cut off leaves a layer that is missed, not one that passes as
new. Above: ``cli``. Below: ``layout``, ``locks``, ``trust.records``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from serdab.config.occlum import parse
from serdab.errors import Error, UsageError
from serdab.instance.layout import CONFIG, PREVIOUS, UPPER, Instance, is_packaged
from serdab.instance.locks import lock_build, lock_run
from serdab.instance.measurements import read_measurements
from serdab.sefs.anchor import ANCHOR_NAME
from serdab.sefs.hostdir import HostDir
from serdab.trust.records import discard, missing_below

Say = Callable[[str], None]


def _upper(instance: Instance) -> str:
    """Return where the writable layer lies."""
    try:
        if is_packaged(instance.path):
            return read_measurements(instance).config.upper.source
        return parse(instance.read(CONFIG)).upper.source
    except Error:
        # Resetting must be possible with a broken configuration too.
        return UPPER


def reset_volume(instance: Instance, volume: str, *, say: Say) -> list[str]:
    """Remove what lies in the directory of a volume that programs mount, and let a new one begin.

    ``volume`` is relative to the instance, or absolute. Everything else stays, the directory too.
    ``say(line)`` hears of what is waited for.

    Raises:
        BusyError: the instance, or the volume, is in use.
        UsageError: the directory holds something that is no volume.
    """
    path = os.path.realpath(os.path.join(instance.path, volume))
    removed = []
    with lock_build(instance), lock_run(instance, on_wait=say):
        if os.path.lexists(os.path.join(path, ANCHOR_NAME)):
            _empty(path)
            removed.append(volume)
        elif os.path.isdir(path) and os.listdir(path):
            raise UsageError(
                "reset: there is no volume",
                subject=path,
                expected="a directory that a program has mounted, or an empty one",
                found="something else in it",
            )
        if discard(path):
            removed.append(f"the record of {volume}")
    return removed


def _empty(path: str) -> None:
    directory = HostDir.at(Path(path))
    try:
        directory.lock(exclusive=True)
        # The anchor last: a reset that was cut off leaves a damaged volume, not a new one.
        for name in sorted(directory.names(), key=lambda name: name == ANCHOR_NAME):
            entry = os.path.join(path, name)
            if os.path.isdir(entry) and not os.path.islink(entry):
                shutil.rmtree(entry)
            else:
                directory.unlink(name)
    finally:
        directory.close()


def reset(instance: Instance, *, say: Say) -> list[str]:
    """Remove the writable layer; return the paths (in the instance) that were removed.

    ``say(line)`` hears of what is waited for.

    Raises:
        BusyError: the instance is in use.
    """
    upper = _upper(instance)
    removed = []
    with lock_build(instance), lock_run(instance, on_wait=say):
        for relative in (upper, PREVIOUS):
            path = instance.at(relative)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
                removed.append(relative)
        if discard(instance.at(upper)) and upper not in removed:
            removed.append(f"the record of {upper}")
        # Layers that an init named itself and that are gone: nothing else could let them go.
        for path in missing_below(instance.path, ANCHOR_NAME):
            discard(path)
            removed.append(
                f"the record of {os.path.relpath(path, os.path.realpath(instance.path))}"
            )
    return removed
