# SPDX-License-Identifier: Apache-2.0
"""Verifies what an instance, or a host directory, keeps sealed.

Above: ``cli.fsck``. Below: ``sefs.fsck``, ``libos.volumekey``, ``measurements``.
"""

from __future__ import annotations

from collections.abc import Callable

from serdab.errors import (
    AuthenticationError,
    MeasurementMismatch,
    RollbackError,
    UsageError,
    WrongKeyError,
)
from serdab.instance import outer
from serdab.instance.layout import IMAGE, INITFS, Instance
from serdab.instance.locks import settle_switch
from serdab.instance.measurements import Measurements, read_measurements
from serdab.keys import Key
from serdab.libos.keysource import USER, KeySource, explaining
from serdab.libos.volumekey import VolumeKey, volume_key
from serdab.linux.dirfd import DirFd
from serdab.linux.outside import Walk
from serdab.sefs.anchor import ANCHOR_NAME
from serdab.sefs.anchorfile import NEW_ANCHOR
from serdab.sefs.damage import Report
from serdab.sefs.fsck import check, salvage
from serdab.sefs.hostdir import HostDir, read_exact
from serdab.sefs.hostplace import Place, label_of, open_place
from serdab.sefs.image import Image, open_image
from serdab.sefs.imageformat import HEADER_BYTES, IMAGE_NAME, header_mac, parse_header
from serdab.sefs.volume import Volume, memory_volume, open_volume
from serdab.structs import frozen
from serdab.trust import records
from serdab.trust.chain import verify_signer
from serdab.trust.freshness import OFF, RECORD, refusal_of
from serdab.trust.platform import current
from serdab.trust.signers import expected_signer
from serdab.vfs.union import Union

Progress = Callable[[str, int], None]


@frozen
class Checked:
    """The outcome for one sealed file system.

    ``root_mac`` is that of an image, or of the last durable state of a volume; empty for a repair,
    whose result has not been checked. ``rolled_back``: why a boot refuses what verifies.
    """

    label: str
    report: Report
    root_mac: bytes = b""
    rolled_back: RollbackError | None = None

    def is_clean(self) -> bool:
        """Return whether nothing is wrong with it."""
        return self.report.is_clean() and self.rolled_back is None


def _unpinned_mac(path: Place) -> bytes:
    """Return the root MAC that an integrity-only image has: nobody named one to compare."""
    directory = open_place(path)
    try:
        raw = _header(directory)
    finally:
        directory.close()
    return header_mac(raw, parse_header(raw))


def _header(directory: HostDir) -> bytes:
    # The storage may have put a FIFO or a link there.
    file = directory.open(IMAGE_NAME)
    try:
        return read_exact(file, HEADER_BYTES, 0)
    finally:
        file.close()


def _open_lower(path: Place, key: Key | None, mac: bytes | None) -> Image:
    if key is None and mac is None:
        mac = _unpinned_mac(path)
    return open_image(path, key=key, expected_mac=mac)


def check_image_at(
    path: Place, key: Key | None, mac: bytes | None, progress: Progress | None = None
) -> Checked:
    """Verify the image in a host directory."""
    label = label_of(path)
    image = _open_lower(path, key, mac)
    try:
        report = check(
            lambda: Union(memory_volume(image), image), [image.tree], _labelled(progress, label)
        )
        try:
            image.check_padding()
        except AuthenticationError as exc:
            report.add("padding", exc.message)
    finally:
        image.close()
    return Checked(label, report, image.root_mac)


def check_image_header(path: Place, mac: bytes) -> None:
    """Verify of an image what can be verified without its key: the header, by the root MAC.

    Raises:
        MeasurementMismatch: it has another root MAC.
    """
    found = _unpinned_mac(path)
    if found != mac:
        raise MeasurementMismatch(
            "the image is not the one that was measured",
            stage="rootfs",
            subject=label_of(path),
            expected=mac.hex(),
            found=found.hex(),
            hint="`serdab build` seals it anew",
        )


def check_volume_at(
    path: DirFd,
    key: VolumeKey,
    lower: Image | None,
    freshness: str,
    progress: Progress | None,
    *,
    version_number: int | None = None,
) -> Checked:
    """Verify the volume in a host directory, and what it shows of its lower layer.

    ``version_number``: of the build whose writable layer it is.
    """
    label = label_of(path)
    with explaining(path, key.source):
        volume = open_volume(path, key=Key(key.key), lower=lower, read_only=True, tolerant=True)
    try:
        found = volume.durable_mac
        rolled_back = refusal_of(path.real(), freshness, volume, version_number=version_number)
        report = check(
            lambda: Union(volume, lower),
            [volume.tree],
            _labelled(progress, label),
            upper=volume,
        )
    finally:
        volume.close()
        if lower is not None:
            lower.close()
    return Checked(label, report, found, rolled_back)


def _labelled(progress: Progress | None, label: str) -> Callable[[int], None] | None:
    if progress is None:
        return None
    return lambda count: progress(label, count)


def check_directory(
    place: DirFd, key: Key | None, lower: DirFd | None, progress: Progress | None = None
) -> Checked:
    """Verify whatever sealed file system lies in a host directory.

    Raises:
        UsageError: there is none.
    """
    if place.exists(IMAGE_NAME):
        return check_image_at(place, key, None, progress)
    if not place.exists(ANCHOR_NAME):
        raise UsageError(
            "no sealed file system here",
            stage="fsck",
            subject=place.path,
            expected=f"{IMAGE_NAME}, or {ANCHOR_NAME}",
            found="neither",
        )
    # Elsewhere it is a copy, which may be as old as it likes.
    freshness = RECORD if records.volume_at(place.real()) is not None else OFF
    return check_volume_at(place, _named(key, place), _lower_of(lower, key), freshness, progress)


def _named(key: Key | None, path: DirFd) -> VolumeKey:
    return VolumeKey(_needed(key, path.path).raw(), KeySource(USER).dump())


def _needed(key: Key | None, path: str) -> Key:
    if key is None:
        raise WrongKeyError(
            "it is encrypted and no key was given",
            stage="fsck",
            subject=path,
            expected="an image key",
            found="none",
            hint="give the key it was built with: --image-key FILE",
        )
    return key


def _lower_of(lower: DirFd | None, key: Key | None) -> Image | None:
    if lower is None:
        return None
    directory = open_place(lower)
    try:
        encrypted = any(parse_header(_header(directory)).key_check)
    finally:
        directory.close()
    return _open_lower(lower, key if encrypted else None, None)


def _upper_key(measured: Measurements, image_key: Key | None) -> VolumeKey:
    return volume_key(
        measured.config,
        image_key.raw() if image_key is not None else None,
        platform=current(),
        mrsigner=measured.mrsigner,
        mrenclave=measured.descriptor.mrenclave(),
    )


def _measured(instance: Instance) -> Measurements:
    """Return what the instance says of itself, if its signer is the expected one."""
    measured = read_measurements(instance)
    verify_signer(measured.mrsigner, expected_signer(instance.path, None))
    return measured


def check_instance(
    instance: Instance, key: Key | None, progress: Progress | None = None
) -> list[Checked]:
    """Verify init FS, root FS image and writable layer of an instance."""
    settle_switch(instance)
    measured = _measured(instance)
    config = measured.config
    image_key = key if config.image_type == "encrypted" else None
    if config.image_type == "encrypted":
        _needed(key, instance.at(IMAGE))
    with instance.root.directory(INITFS) as init_fs, instance.root.directory(IMAGE) as image:
        checked = [
            check_image_at(init_fs, None, config.init_mac, progress),
            check_image_at(image, image_key, config.root_mac, progress),
        ]
        shown = outer.shown_by(config)
        upper = outer.find(instance, config.upper.source, shown)
        if upper is not None:
            with upper:
                if set(upper.names()) - {NEW_ANCHOR}:  # a boot takes it for a volume
                    lower = open_image(image, key=image_key, expected_mac=config.root_mac)
                    checked.append(
                        check_volume_at(
                            upper,
                            _upper_key(measured, image_key),
                            lower,
                            config.freshness,
                            progress,
                            version_number=measured.descriptor.security_version,
                        )
                    )
                    return checked
    with outer.ground_of(instance, shown) as ground:
        gone = refusal_of(ground.real(config.upper.source), config.freshness, None)
    if gone:
        path = instance.at(config.upper.source)
        checked.append(Checked(path, Report(), rolled_back=gone))
    return checked


def repair_volume(
    path: DirFd,
    output: str,
    key: VolumeKey,
    lower: Image | None,
    progress: Progress | None = None,
) -> Checked:
    """Copy what verifies of a volume into a new one at ``output``, an empty directory."""
    with explaining(path, key.source):
        damaged = open_volume(path, key=Key(key.key), lower=lower, read_only=True, tolerant=True)
    try:
        into = _new_volume(output, Key(key.key), lower, damaged)
        try:
            report = salvage(damaged, into, _labelled(progress, output))
        finally:
            into.close()
    finally:
        damaged.close()
        if lower is not None:
            lower.close()
    return Checked(path.path, report)


def _new_volume(output: str, key: Key, lower: Image | None, like: Volume) -> Volume:
    with Walk().make(output, mode=0o700) as place:
        if place.names():
            raise UsageError(
                "the place for the repaired volume is not empty",
                stage="fsck",
                subject=output,
                expected="an empty or missing directory",
                found="files",
            )
        return open_volume(
            place,
            key=key,
            lower=lower,
            create=True,
            source=like.source,
            chunk_size=like.state.chunk_size,
        )


def repair(
    instance: Instance | None,
    directory: DirFd | None,
    output: str,
    *,
    key: Key | None,
    lower: DirFd | None,
    progress: Progress | None = None,
) -> Checked:
    """Salvage the volume in ``directory``, or the writable layer of ``instance``."""
    if directory is not None:
        return repair_volume(
            directory, output, _named(key, directory), _lower_of(lower, key), progress
        )
    if instance is None:
        raise UsageError("nothing to repair was named", stage="fsck")
    settle_switch(instance)
    measured = _measured(instance)
    config = measured.config
    image_key = key if config.image_type == "encrypted" else None
    shown = outer.shown_by(config)
    with (
        instance.root.directory(IMAGE) as sealed,
        outer.open_directory(instance, config.upper.source, shown) as upper,
    ):
        image = open_image(sealed, key=image_key, expected_mac=config.root_mac)
        return repair_volume(upper, output, _upper_key(measured, image_key), image, progress)
