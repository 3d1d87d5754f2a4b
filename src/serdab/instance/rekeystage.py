# SPDX-License-Identifier: Apache-2.0
"""Writes what an instance becomes under a new image key, beside what it is.

What an earlier attempt finished is taken over: the present image, if it was noted (``rekeynote``),
and the writable layer as far as its copy came (``sefs.volumecopy``). All else is written again: it
is small, or, as the image before the present one, seldom there.

Above: ``rekey``. Below: ``switch`` (where), ``sefs`` (sealing), ``publish``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from serdab.config.boot import BootConfig, dump_boot_config
from serdab.errors import EnvironmentRefused, Error
from serdab.instance import publish, switch
from serdab.instance.build import IMAGE_KEY
from serdab.instance.layout import (
    BUILD,
    DESCRIPTOR,
    IMAGE,
    INITFS,
    PREVIOUS,
    PROTECTED_CONFIG,
    REKEY_BUILD,
    REKEY_VOLUME,
    RUN,
    Instance,
)
from serdab.instance.rekeylayer import WritableLayer
from serdab.instance.rekeynote import RekeyNote
from serdab.keys import Key
from serdab.libos.volumekey import VolumeKey, volume_key
from serdab.sefs.image import Image, open_image
from serdab.sefs.imagebuild import reseal_image
from serdab.sefs.imageformat import IMAGE_NAME
from serdab.sefs.volumecopy import copy_volume
from serdab.trust import platform
from serdab.trust.chain import BootChain
from serdab.trust.descriptor import Descriptor, sign
from serdab.trust.measurement import Digest
from serdab.trust.signing import Signer

Progress = Callable[[str, int], None]
_SLACK_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Staged:
    """What was written. ``lower``: where the image will lie that the layer belongs to."""

    config: BootConfig
    raw_config: bytes
    descriptor: Descriptor
    lower: str
    lower_mac: bytes
    volume_key: VolumeKey


class Staging:
    """One attempt. ``key`` is the new one, ``signer`` was proved to be the instance's."""

    def __init__(
        self,
        instance: Instance,
        chain: BootChain,
        signer: Signer,
        key: Key,
        progress: Progress | None,
    ) -> None:
        self._instance = instance
        self._chain = chain
        self._signer = signer
        self._key = key
        self._progress = progress
        self._note = RekeyNote(instance.path)

    def write(self, image: Image, layer: WritableLayer | None) -> Staged:
        """Write all that is new, durably but for the names.

        Raises:
            AuthenticationError, FormatError: what is there is damaged.
            OSError: the host refused.
        """
        build, volume = switch.take_up(self._instance, with_layer=layer is not None)
        previous = None if layer is None or layer.image is image else layer.image
        image_path = os.path.join(build, _within(IMAGE))
        _clear(build, but=os.path.dirname(image_path))
        if not publish.is_directory(image_path):
            _clear(build, but="")  # a link there would lead out of the instance
        old = self._chain.config
        root_mac = self._reseal("image", image, image_path)
        lower, lower_mac = IMAGE, root_mac
        if previous is not None:
            lower, lower_mac = self._reseal_previous(previous, build)
        init_mac = self._init_fs(old, os.path.join(build, _within(INITFS)))
        config = replace(old, root_mac=root_mac, init_mac=init_mac)
        raw = dump_boot_config(config)
        descriptor = replace(self._chain.descriptor, conf_mac=Digest.of(raw))
        publish.write_file(os.path.join(build, _within(PROTECTED_CONFIG)), raw)
        signed = sign(descriptor, self._signer)
        publish.write_file(os.path.join(build, _within(DESCRIPTOR)), signed)
        chosen = volume_key(
            config,
            self._key.raw(),
            platform=platform.current(),
            mrsigner=self._chain.signer,
            mrenclave=descriptor.mrenclave(),
        )
        staged = Staged(config, raw, descriptor, lower, lower_mac, chosen)
        if layer is not None:
            self._copy_layer(layer, staged, os.path.join(build, _within(lower)), volume)
            switch.stage_layer(self._instance, raw)
        return staged

    def forget(self) -> None:
        """The switch is complete: nobody goes on with this."""
        self._note.remove()

    def _reseal(self, label: str, image: Image, out: str) -> bytes:
        """Seal an image under the new key, or take what an earlier attempt made of it."""
        mac = self._note.sealed(image.root_mac)
        if mac is None or not self._opens(out, mac):
            progress = self._labelled(label)
            mac = reseal_image(image, Path(out), key=self._key, progress=progress).root_mac
            self._note.add(image.root_mac, mac)
        return mac

    def _opens(self, path: str, mac: bytes) -> bool:
        try:
            open_image(Path(path), key=self._key, expected_mac=mac).close()
        except (Error, OSError):
            return False
        return True

    def _reseal_previous(self, image: Image, build: str) -> tuple[str, bytes]:
        """Seal the image that the layer belongs to, which is not the present one."""
        folder = os.path.join(build, _within(PREVIOUS))
        mac = self._reseal("previous image", image, os.path.join(folder, "new"))
        os.rename(os.path.join(folder, "new"), os.path.join(folder, mac.hex()))
        return os.path.join(PREVIOUS, mac.hex()), mac

    def _init_fs(self, config: BootConfig, out: str) -> bytes:
        """Take the init FS over; one that holds the image key gets the new one instead."""
        source = self._instance.at(INITFS)
        if not config.builtin_image_key:
            publish.copy_sealed(source, out)
            return config.init_mac
        init_fs = open_image(Path(source), key=None, expected_mac=config.init_mac)
        try:
            content = self._key.dump().encode("ascii") + b"\n"
            info = reseal_image(init_fs, Path(out), key=None, replaced={IMAGE_KEY: content})
        finally:
            init_fs.close()
        return info.root_mac

    def _copy_layer(self, layer: WritableLayer, staged: Staged, lower: str, out: str) -> None:
        image = open_image(Path(lower), key=self._key, expected_mac=staged.lower_mac)
        try:
            copy_volume(
                layer.volume,
                Path(out),
                key=Key(staged.volume_key.key),
                lower=image,
                source=staged.volume_key.source,
                progress=self._labelled("writable layer"),
            )
        finally:
            image.close()

    def _labelled(self, label: str) -> Callable[[int], None] | None:
        progress = self._progress
        return None if progress is None else lambda count: progress(label, count)


def _within(path: str) -> str:
    """Return a path below ``build/`` as one relative to it."""
    return os.path.relpath(path, BUILD)


def _clear(folder: str, *, but: str) -> None:
    """Remove what a directory holds, but for the directory ``but``."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if not publish.is_directory(path):
            os.unlink(path)
        elif path != but:
            shutil.rmtree(path)


def check_room(instance: Instance, image: Image, layer: WritableLayer | None) -> None:
    """Refuse at once what cannot end well; what an earlier attempt takes counts as free.

    Raises:
        EnvironmentRefused: the host has no room.
    """
    init_fs = os.stat(os.path.join(instance.at(INITFS), IMAGE_NAME)).st_size
    build_bytes = image.stored_bytes() + init_fs + _SLACK_BYTES - _taken(instance.at(REKEY_BUILD))
    layer_bytes = 0
    if layer is not None:
        if layer.image is not image:
            build_bytes += layer.image.stored_bytes()
        layer_bytes = layer.live_bytes() + _SLACK_BYTES - _taken(instance.at(REKEY_VOLUME))
    build, run = instance.path, instance.at(RUN)
    if os.stat(build).st_dev == os.stat(run).st_dev:
        _require_free(build, build_bytes + layer_bytes)
    else:
        _require_free(build, build_bytes)
        _require_free(run, layer_bytes)


def _taken(folder: str) -> int:
    """Return how many bytes the files below a directory take."""
    return sum(
        os.lstat(os.path.join(path, name)).st_blocks * 512
        for path, _, names in os.walk(folder)
        for name in names
    )


def _require_free(path: str, size: int) -> None:
    status = os.statvfs(path)
    blocks = status.f_bfree if os.geteuid() == 0 else status.f_bavail
    free = blocks * status.f_frsize
    if free < size:
        raise no_room(f"{size} bytes free at {path}", f"{free}")


def no_room(expected: str, found: str) -> EnvironmentRefused:
    """Return the refusal of a host that is too full."""
    return EnvironmentRefused(
        "the host has no room for the copies that a new key takes",
        expected=expected,
        found=found,
        hint="nothing was changed; the old data are removed when the new ones are whole",
    )
