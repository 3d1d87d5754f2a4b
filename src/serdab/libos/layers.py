# SPDX-License-Identifier: Apache-2.0
"""Opens the sealed layers that orders name: images and volumes, alone or one above the other.

Above: ``storage`` (in fs servers). Below: ``fence``, ``sefs``, ``trust.freshness``. A directory
with an image file in it is an image; any other is a volume. The imports are late on purpose: a
process pays only for the kind it serves.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from serdab.errors import (
    BusyError,
    FormatError,
    MeasurementMismatch,
    UsageError,
    WrongKeyError,
)
from serdab.keys import Key
from serdab.libos.orders import Opened, Orders
from serdab.libos.users import require_owner

if TYPE_CHECKING:
    from serdab.libos.ground import Ground
    from serdab.sefs.hostdir import Dir
    from serdab.sefs.limits import VolumeLimits
    from serdab.sefs.volume import Volume
    from serdab.vfs.layer import Layer

T = TypeVar("T")

_RETRY_S: Final = 0.02
#: Where an instance has a memory limit: of each cache in the server of a program's mount, and of
#: what waits for a checkpoint there (``shares.MOUNT_BYTES`` is for all of them).
SMALL_CACHE_BYTES: Final = 2 << 20
_SMALL_DIRTY_BYTES: Final = 4 << 20


def open_lower(orders: Orders) -> Layer:
    """Open the read-only layer.

    Raises:
        Error: as ``open_image`` and ``open_volume`` say, or the fence.
    """
    return _patiently(orders, lambda: _open_lower(orders))


def _patiently(orders: Orders, work: Callable[[], T]) -> T:
    """Wait while somebody holds a directory whose file system is just being closed."""
    deadline = time.monotonic() + orders.patience_ms / 1000
    while True:
        try:
            return work()
        except BusyError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_S)


def _ground(orders: Orders) -> Ground:
    if orders.ground is None:
        raise FormatError("orders to an fs server name a directory without its ground")
    return orders.ground


def _directory(orders: Orders, path: str, *, changes: bool = False) -> tuple[Dir, str]:
    """Open a directory; return it and its real path; ``changes``: something will be written."""
    from serdab.sefs.hostdir import HostDir

    ground = _ground(orders)
    if orders.fence is None:
        with ground.way(path) as way:
            label = ground.name(path)
            return HostDir(way.open(label).fd, label), way.real()
    place = orders.fence.enter(ground, path)
    if changes:
        try:
            require_owner(place.directory.fd, orders.owner, path)
        except BaseException:
            place.directory.close()
            raise
    return HostDir(place.directory.fd, place.path), place.path


@contextmanager
def _explaining(orders: Orders, path: str) -> Iterator[None]:
    """Say of a key that does not open the volume at ``path`` what differs from the right one."""

    def read() -> bytes | None:
        from serdab.sefs.anchor import read_source

        directory, _ = _directory(orders, path)
        try:
            return read_source(directory)
        finally:
            directory.close()

    try:
        yield
    except WrongKeyError as exc:
        from serdab.libos.keysource import wrong_key

        raise wrong_key(read(), orders.source, subject=exc.subject) from None


def _has_image(directory: Dir) -> bool:
    from serdab.sefs.imageformat import IMAGE_NAME

    return IMAGE_NAME in directory.names()


def _open_lower(orders: Orders) -> Layer:
    directory, path = _directory(orders, orders.image)
    try:
        if _has_image(directory):
            return _open_image(orders, directory)
    except BaseException:
        directory.close()
        raise
    return _open_lower_volume(orders, directory, path)


def _open_image(orders: Orders, directory: Dir) -> Layer:
    from serdab.sefs.image import open_image_in

    key = None if orders.image_key is None else Key(orders.image_key)
    directory.lock(exclusive=False)
    image = open_image_in(directory, key=key, expected_mac=orders.expected_mac)
    # The lock lives as long as the directory stays open.
    image.keep_open(directory)
    return image


def _volume_key(orders: Orders) -> Key:
    raw = orders.image_key if orders.image_key is not None else orders.volume_key
    if raw is None:
        raise FormatError("orders to an fs server name a volume without its key")
    return Key(raw)


def _open_lower_volume(orders: Orders, directory: Dir, path: str) -> Layer:
    from serdab.sefs.anchor import ANCHOR_NAME
    from serdab.sefs.imageformat import IMAGE_NAME
    from serdab.sefs.volume import open_volume_in

    names = directory.names()
    if orders.fence is not None and not names:
        directory.close()
        directory, _ = _directory(orders, orders.image, changes=True)
        _begin(orders, directory)
        directory, path = _directory(orders, orders.image)
    elif ANCHOR_NAME not in names:
        directory.close()
        raise FormatError(
            "no sealed file system here",
            subject=path,
            expected=f"{IMAGE_NAME}, or the {ANCHOR_NAME} of a volume",
            found="neither",
            hint="restore it; `serdab build` makes the image of an instance",
        )
    with _explaining(orders, orders.image):
        volume = open_volume_in(directory, key=_volume_key(orders), read_only=True)
    try:
        _check_closed(volume, path)
        _watch(orders, volume, path)
        if orders.expected_mac:
            _check_mac(volume.root_mac, orders.expected_mac, path)
    except BaseException:
        volume.abandon()
        raise
    return volume


def _begin(orders: Orders, directory: Dir) -> None:
    """Make an empty directory an empty volume, durably: layers above name its MAC."""
    from serdab.sefs.volume import open_volume_in
    from serdab.vfs.union import Union

    volume = open_volume_in(directory, key=_volume_key(orders), create=True, source=orders.source)
    Union(volume, None).close()


def _check_closed(volume: Volume, path: str) -> None:
    """A lower layer is named by the MAC of its last checkpoint, so that must be all of it."""
    if volume.durable_mac != volume.root_mac:
        raise FormatError(
            "a volume that was not closed cannot be a lower layer",
            subject=path,
            expected="a volume that ends with a checkpoint",
            found="commits after it",
            hint="mount it by itself and unmount it: that brings it in order",
        )


def _check_mac(found: bytes, expected: bytes, path: str) -> None:
    import hmac

    if not hmac.compare_digest(expected, found[: len(expected)]):
        raise MeasurementMismatch(
            "the root MAC is not the expected one",
            subject=path,
            expected=expected.hex(),
            found=found.hex(),
            hint="it was changed since, or is another one",
        )


def _check_room(orders: Orders, path: str) -> None:
    """Refuse a volume that would be remembered anew where that many are.

    Raises:
        NoRoomError: it says which way out there is.
    """
    if orders.fence is None:
        return
    if not orders.max_volumes or orders.freshness == "off":
        return
    from serdab.trust.records import check_room

    roots = tuple(map(_ground(orders).real, orders.fence.names))
    check_room(path, roots, orders.max_volumes)


def _watch(orders: Orders, volume: Volume, path: str, *, expected: bytes = b"") -> list[str]:
    from serdab.trust.freshness import Guard, Watch

    watch = Watch(
        orders.freshness,
        conf_mac=orders.conf_mac,
        # A lower layer may be another product's.
        version_number=None if volume.read_only else orders.version_number,
        accept_rollback=orders.accept_rollback,
        pin_file=orders.pin_file if orders.fence is None and not volume.read_only else "",
        pin_command=orders.pin_command if orders.fence is None and not volume.read_only else "",
        expected_mac=expected,
    )
    return Guard(path, watch).admit(volume)


def check_existence(orders: Orders) -> None:
    """Refuse a directory without a volume where one was before, for who does not open it.

    Raises:
        RollbackError: refused.
    """
    from serdab.trust.freshness import Guard, Watch

    Guard(_ground(orders).real(orders.volume), Watch(orders.freshness)).check_existence()


def open_upper(orders: Orders, lower: Layer) -> tuple[Volume, list[str]]:
    """Open the writable layer; return it and lines for the operator.

    Raises:
        Error: as ``open_watched`` says, or the fence.
    """
    return _patiently(orders, lambda: _open_upper(orders, lower))


def _open_upper(orders: Orders, lower: Layer) -> tuple[Volume, list[str]]:
    if orders.fence is not None:
        return _open_in_fence(orders, lower)
    from serdab.sefs.limits import VolumeLimits
    from serdab.trust.freshness import Watch, open_watched

    if orders.volume_key is None:
        raise FormatError("orders to an fs server name a volume without its key")
    watch = Watch(
        orders.freshness,
        conf_mac=orders.conf_mac,
        version_number=orders.version_number,
        accept_rollback=orders.accept_rollback,
        pin_file=orders.pin_file,
        pin_command=orders.pin_command,
        expected_mac=orders.expect_upper,
    )
    with _explaining(orders, orders.volume):
        watched = open_watched(
            _Home(orders),
            watch,
            key=Key(orders.volume_key),
            lower=lower,
            source=orders.source,
            read_only=orders.read_only,
            limits=VolumeLimits(max_bytes=orders.max_bytes, commit_s=orders.commit_ms / 1000),
        )
    # Its lock lives as long as this process: it hears of the last checkpoint too.
    return watched.volume, watched.notices


class _Home:
    """Where the writable layer lies, from the ground of the orders (``freshness.Home``)."""

    def __init__(self, orders: Orders) -> None:
        self._ground = _ground(orders)
        self._orders = orders
        self.path = self._ground.real(orders.volume)

    def find(self) -> Dir | None:
        """Open the directory, if there is one."""
        try:
            return _directory(self._orders, self._orders.volume)[0]
        except UsageError as exc:
            cause = exc.__cause__
            if isinstance(cause, OSError) and cause.errno == errno.ENOENT:
                return None
            raise

    def make(self) -> Dir:
        """Open the directory, made if it is missing."""
        from serdab.sefs.hostdir import HostDir

        made = self._ground.make(self._orders.volume, mode=0o700)
        return HostDir(made.fd, self._ground.name(self._orders.volume))


def _limits(orders: Orders) -> VolumeLimits:
    from serdab.sefs.limits import DEFAULT_LIMITS, VolumeLimits

    if not orders.is_small:
        return DEFAULT_LIMITS
    return VolumeLimits(dirty_bytes=_SMALL_DIRTY_BYTES, log_bytes=_SMALL_DIRTY_BYTES)


def _open_in_fence(
    orders: Orders, lower: Layer | None, *, expected: bytes = b""
) -> tuple[Volume, list[str]]:
    from serdab.sefs.volume import open_volume_in
    from serdab.trust.freshness import Guard, Watch

    if orders.volume_key is None:
        raise FormatError("orders to an fs server name a volume without its key")
    directory, path = _directory(orders, orders.volume, changes=True)
    try:
        Guard(path, Watch(orders.freshness)).check_existence(directory)
        _check_room(orders, path)
    except BaseException:
        directory.close()
        raise
    with _explaining(orders, orders.volume):
        volume = open_volume_in(
            directory,
            key=Key(orders.volume_key),
            lower=lower,
            create=not expected,
            source=orders.source,
            limits=_limits(orders),
        )
    try:
        return volume, _watch(orders, volume, path, expected=expected)
    except BaseException:
        volume.abandon()
        raise


def open_single(orders: Orders) -> Opened:
    """Open a sealed file system that stands by itself.

    Raises:
        Error: as :func:`open_lower` and :func:`open_upper` say.
    """
    return _patiently(orders, lambda: _open_single(orders))


def _open_single(orders: Orders) -> Opened:
    from serdab.vfs.union import Union

    directory, path = _directory(orders, orders.volume, changes=True)
    try:
        is_image = _has_image(directory)
    finally:
        directory.close()
    if is_image:
        return _image_alone(orders, path)
    volume, notices = _open_in_fence(orders, None, expected=orders.expected_mac or b"")
    return Opened(Union(volume, None), volume.root_mac, tuple(notices))


def _image_alone(orders: Orders, path: str) -> Opened:
    """An image takes no writes; the layer above it, in memory, is there for the mount to have."""
    from serdab.sefs.image import Image
    from serdab.sefs.volume import memory_volume
    from serdab.vfs.union import Union

    directory, _ = _directory(orders, orders.volume)
    expected = orders.expected_mac
    try:
        # A MAC of a mount option has half the length: the whole one is compared afterwards.
        whole = expected if expected is None or len(expected) != 16 else _full_mac(directory, path)
        directory.lock(exclusive=False)
        key = None if orders.image_key is None else Key(orders.image_key)
        from serdab.sefs.image import open_image_in

        image: Image = open_image_in(directory, key=key, expected_mac=whole)
    except BaseException:
        directory.close()
        raise
    image.keep_open(directory)
    try:
        if expected:
            _check_mac(image.root_mac, expected, path)
        return Opened(Union(memory_volume(image), image), image.root_mac, read_only=True)
    except BaseException:
        image.close()
        raise


def _full_mac(directory: Dir, path: str) -> bytes:
    from serdab.sefs.hostdir import read_exact
    from serdab.sefs.imageformat import HEADER_BYTES, IMAGE_NAME, header_mac, parse_header

    file = directory.open(IMAGE_NAME)
    try:
        raw = read_exact(file, HEADER_BYTES, 0)
    finally:
        file.close()
    return header_mac(raw, parse_header(raw))
