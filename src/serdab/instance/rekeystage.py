# SPDX-License-Identifier: Apache-2.0
"""Writes what an instance becomes under a new image key, beside what it is.

What an earlier attempt finished is taken over: the present image, if it was noted (``rekeynote``),
and the writable layer as far as its copy came (``sefs.volumecopy``). All else is written again: it
is small, or, as the image before the present one, seldom there.

Above: ``rekey``. Below: ``switch`` (where), ``sefs`` (sealing), ``publish``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
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
from serdab.linux import dirtree
from serdab.linux.dirfd import DirFd
from serdab.sefs.image import Image, open_image
from serdab.sefs.imagebuild import reseal_image
from serdab.sefs.imageformat import IMAGE_NAME
from serdab.sefs.volumecopy import copy_volume
from serdab.structs import frozen, replace
from serdab.trust import platform
from serdab.trust.chain import BootChain
from serdab.trust.descriptor import Descriptor, sign
from serdab.trust.measurement import Digest
from serdab.trust.signing import Signer

Progress = Callable[[str, int], None]
_SLACK_BYTES: Final = 8 << 20


@frozen
class Staged:
    """What was written, and the directory that is to be ``build/``, which stays the staging's.

    ``lower``: where the image will lie that the layer belongs to.
    """

    config: BootConfig
    raw_config: bytes
    descriptor: Descriptor
    build: DirFd
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
        self._stack = ExitStack()

    def write(self, image: Image, layer: WritableLayer | None) -> Staged:
        """Write all that is new, durably but for the names.

        Raises:
            AuthenticationError, FormatError: what is there is damaged.
            OSError: the host refused.
        """
        build, volume = switch.take_up(self._instance, with_layer=layer is not None)
        self._stack.enter_context(build)
        if volume is not None:
            self._stack.enter_context(volume)
        previous = None if layer is None or layer.image is image else layer.image
        image_path = _within(IMAGE)
        # Of an earlier attempt the image may be of use, if that is what lies there.
        _clear(build, but=image_path.partition("/")[0] if build.is_directory(image_path) else "")
        old = self._chain.config
        root_mac = self._reseal("image", image, build, image_path)
        lower, lower_mac = IMAGE, root_mac
        if previous is not None:
            lower, lower_mac = self._reseal_previous(previous, build)
        init_mac = self._init_fs(old, build)
        config = replace(old, root_mac=root_mac, init_mac=init_mac)
        raw = dump_boot_config(config)
        descriptor = replace(self._chain.descriptor, conf_mac=Digest.of(raw))
        build.write_new(_within(PROTECTED_CONFIG), raw)
        signed = sign(descriptor, self._signer)
        build.write_new(_within(DESCRIPTOR), signed)
        chosen = volume_key(
            config,
            self._key.raw(),
            platform=platform.current(),
            mrsigner=self._chain.signer,
            mrenclave=descriptor.mrenclave(),
        )
        staged = Staged(config, raw, descriptor, build, lower, lower_mac, chosen)
        if layer is not None and volume is not None:
            with build.directory(_within(lower)) as sealed:
                self._copy_layer(layer, staged, sealed, volume)
            switch.stage_layer(self._instance, raw, volume)
        return staged

    def close(self) -> None:
        """Let go of what was written to."""
        self._stack.close()

    def forget(self) -> None:
        """The switch is complete: nobody goes on with this."""
        self._note.remove()

    def _reseal(self, label: str, image: Image, build: DirFd, path: str) -> bytes:
        """Seal an image under the new key, or take what an earlier attempt made of it."""
        mac = self._note.sealed(image.root_mac)
        with build.make(path) as out:
            if mac is None or not self._opens(out, mac):
                progress = self._labelled(label)
                mac = reseal_image(image, out, key=self._key, progress=progress).root_mac
                self._note.add(image.root_mac, mac)
        return mac

    def _opens(self, place: DirFd, mac: bytes) -> bool:
        try:
            open_image(place, key=self._key, expected_mac=mac).close()
        except (Error, OSError):
            return False
        return True

    def _reseal_previous(self, image: Image, build: DirFd) -> tuple[str, bytes]:
        """Seal the image that the layer belongs to, which is not the present one."""
        folder = _within(PREVIOUS)
        mac = self._reseal("previous image", image, build, f"{folder}/new")
        build.rename(f"{folder}/new", f"{folder}/{mac.hex()}")
        return f"{PREVIOUS}/{mac.hex()}", mac

    def _init_fs(self, config: BootConfig, build: DirFd) -> bytes:
        """Take the init FS over; one that holds the image key gets the new one instead."""
        root = self._instance.root
        with build.make(_within(INITFS)) as out:
            if not config.builtin_image_key:
                publish.copy_sealed(root, INITFS, out)
                return config.init_mac
            with root.directory(INITFS) as sealed:
                init_fs = open_image(sealed, key=None, expected_mac=config.init_mac)
            try:
                content = self._key.dump().encode("ascii") + b"\n"
                info = reseal_image(init_fs, out, key=None, replaced={IMAGE_KEY: content})
            finally:
                init_fs.close()
            return info.root_mac

    def _copy_layer(self, layer: WritableLayer, staged: Staged, lower: DirFd, out: DirFd) -> None:
        image = open_image(lower, key=self._key, expected_mac=staged.lower_mac)
        try:
            copy_volume(
                layer.volume,
                out,
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
    return path.removeprefix(f"{BUILD}/")


def _clear(folder: DirFd, *, but: str) -> None:
    """Remove what a directory holds, but for the directory ``but``."""
    for name in folder.names():
        if name != but or not folder.is_directory(name):
            folder.remove(name)


def check_room(instance: Instance, image: Image, layer: WritableLayer | None) -> None:
    """Refuse at once what cannot end well; what an earlier attempt takes counts as free.

    Raises:
        EnvironmentRefused: the host has no room.
    """
    root = instance.root
    init_fs = root.status(f"{INITFS}/{IMAGE_NAME}")
    build_bytes = image.stored_bytes() + _SLACK_BYTES - _taken(root, REKEY_BUILD)
    build_bytes += 0 if init_fs is None else init_fs.st_size
    layer_bytes = 0
    if layer is not None:
        if layer.image is not image:
            build_bytes += layer.image.stored_bytes()
        layer_bytes = layer.live_bytes() + _SLACK_BYTES - _taken(root, REKEY_VOLUME)
    with root.directory(RUN) as run:
        if os.fstat(root.fd).st_dev == os.fstat(run.fd).st_dev:
            _require_free(root, build_bytes + layer_bytes)
        else:
            _require_free(root, build_bytes)
            _require_free(run, layer_bytes)


def _taken(root: DirFd, folder: str) -> int:
    """Return how many bytes the files below a directory take."""
    if not root.is_directory(folder):
        return 0
    with root.directory(folder) as top:
        return sum(
            entry.stat(follow_symlinks=False).st_blocks * 512
            for _, entries in dirtree.walk(top)
            for entry in entries
            if not entry.is_dir(follow_symlinks=False)
        )


def _require_free(directory: DirFd, size: int) -> None:
    status = os.fstatvfs(directory.fd)
    blocks = status.f_bfree if os.geteuid() == 0 else status.f_bavail
    free = blocks * status.f_frsize
    if free < size:
        raise no_room(f"{size} bytes free at {directory.path}", f"{free}")


def no_room(expected: str, found: str) -> EnvironmentRefused:
    """Return the refusal of a host that is too full."""
    return EnvironmentRefused(
        "the host has no room for the copies that a new key takes",
        expected=expected,
        found=found,
        hint="nothing was changed; the old data are removed when the new ones are whole",
    )
