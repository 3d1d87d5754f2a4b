# SPDX-License-Identifier: Apache-2.0
"""Builds an instance: seals both trees, writes the measured configuration, signs the descriptor.

Order: configuration checked → init FS sealed (always integrity-only) → image sealed → protected
configuration → signed descriptor → swapped in as a whole (``publish``). The source trees are never
written to: missing mount points and ``/etc/image_config.json`` are added to what is sealed.

Above: ``cli``. Below: ``treesealer`` (sealing), ``trust`` (signing), ``fingerprint``, ``publish``.

Security:
    1. A root MAC that gets signed was computed in this run or comes from the record in the user's
       state directory, never from ``build/`` (``fingerprint``).
    2. ``--buildin-image-key`` puts the key in clear into the init FS: it is public then. The
       configuration says so, and the writable layer mixes in the automatic key.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import Final

from serdab.config.boot import (
    ENCRYPTED,
    INTEGRITY_ONLY,
    BootConfig,
    MountEntry,
    dump_boot_config,
    parse_boot_config,
)
from serdab.config.occlum import InstanceConfig, parse
from serdab.errors import Error, MeasurementMismatch, UsageError
from serdab.instance import loaders, outer, publish
from serdab.instance.buildwarnings import of_change, of_configuration
from serdab.instance.fingerprint import load_record, store_record
from serdab.instance.layersabove import layers_above
from serdab.instance.layout import (
    CONFIG,
    DESCRIPTOR,
    IMAGE,
    IMAGE_SOURCE,
    INIT,
    INITFS,
    INITFS_SOURCE,
    PROTECTED_CONFIG,
    Instance,
)
from serdab.instance.locks import is_in_use, lock_build, lock_run, settle_switch
from serdab.instance.owners import Owner
from serdab.instance.ownersfrom import TREE, owners_of_file, owners_of_tree
from serdab.instance.signedrecord import (
    NOTHING_ON_RECORD,
    changes,
    load_signed,
    store_signed,
)
from serdab.instance.treesealer import TreeSealer, staged
from serdab.keys import Key
from serdab.libos.volumekey import volume_key
from serdab.linux.dirfd import DirFd
from serdab.sefs.imagewalk import Additions
from serdab.structs import frozen
from serdab.trust import platform
from serdab.trust.descriptor import Descriptor, sign
from serdab.trust.measurement import Digest, code_digest
from serdab.trust.signers import record_signer, recorded_signer
from serdab.trust.signing import Signer
from serdab.version import VERSION

IMAGE_CONFIG: Final = b"etc/image_config.json"
IMAGE_KEY: Final = b"etc/image_key"
_UNKNOWN: Final = bytes(32)
# Bound over at boot with what the host says; an image without them gets empty ones.
_HOST_FILES: Final = (b"etc/resolv.conf", b"etc/hosts", b"etc/hostname")


@frozen
class BuildRequest:
    """What to build with. ``builtin_key`` needs ``image_key``.

    ``owners`` is where the owners of image/ stand: ``tree``, or a file (see ``ownersfrom``).
    """

    signer: Signer
    image_key: Key | None = None
    builtin_key: bool = False
    force: bool = False
    owners: str = ""


@frozen
class BuildResult:
    """What a build produced; ``sealed`` names the trees that were sealed anew.

    ``changes`` says what differs from what was signed before, a line each.
    """

    mrenclave: Digest
    mrsigner: Digest
    conf_mac: Digest
    init_mac: bytes
    root_mac: bytes
    image_type: str
    platform: str
    debuggable: bool
    signer_origin: str
    sealed: tuple[str, ...]
    changes: tuple[str, ...] = ()


Say = Callable[[str], None]


def build(
    instance: Instance,
    request: BuildRequest,
    *,
    say: Say,
    progress: Callable[[int], None] | None = None,
) -> BuildResult:
    """Build the instance; ``say`` gets one line for each thing the user should know.

    Raises:
        UsageError: configuration or trees are not fit to be sealed.
        BusyError: another build is at work.
        MeasurementMismatch: the image has not the MAC that the configuration requires.
    """
    with lock_build(instance):
        if not os.access(".", os.W_OK, dir_fd=instance.root.fd):
            raise UsageError(
                "the instance cannot be built",
                subject=instance.path,
                expected=f"a directory that user id {os.geteuid()} may write to",
                found="one that is not",
                hint="be the user who made it, or make an instance of your own",
            )
        settle_switch(instance)
        raw_config = instance.read(CONFIG)
        config = parse(raw_config)
        for line in of_configuration(
            instance,
            config,
            builtin_key=request.builtin_key,
            is_encrypted=request.image_key is not None,
        ):
            say(line)
        _check_trees(instance)
        with publish.begin(instance, partial(lock_run, instance)) as staging:
            try:
                return _build(instance, raw_config, request, staging, say, progress)
            finally:
                publish.abandon(instance)


def _build(
    instance: Instance,
    raw_config: bytes,
    request: BuildRequest,
    staging: DirFd,
    say: Say,
    progress: Callable[[int], None] | None,
) -> BuildResult:
    config = parse(raw_config)
    image_type = INTEGRITY_ONLY if request.image_key is None else ENCRYPTED
    record = {} if request.force else load_record(instance.path)
    owners = _owners(instance, request.owners)
    sealer = TreeSealer(instance, staging, record, progress, say, owners)
    builtin = _builtin(request.image_key, wanted=request.builtin_key)
    init_mac = sealer.seal(
        "initfs", INITFS_SOURCE, INITFS, None, _initfs_additions(image_type, builtin)
    )
    root_mac = sealer.seal(
        "image",
        IMAGE_SOURCE,
        IMAGE,
        request.image_key,
        _image_additions(instance, config),
        config.image_form,
    )
    if "image" in sealer.sealed:
        _say_lacking(instance, say)
    _check_reference(config, root_mac)
    before, now = load_signed(instance.path), sealer.to_be_signed(raw_config)
    changed = () if before is None else tuple(changes(before, now))
    for change in changed:
        say(change)  # before anything is signed
    boot = _boot_config(config, image_type, init_mac, root_mac, builtin_key=request.builtin_key)
    protected = dump_boot_config(boot)
    descriptor = _descriptor(config, protected)
    signed = sign(descriptor, request.signer)
    staging.write_new(staged(PROTECTED_CONFIG), protected)
    staging.write_new(staged(DESCRIPTOR), signed)
    mrsigner = request.signer.public.mrsigner()
    for line in of_change(
        instance,
        boot,
        request.image_key,
        before,
        mrsigner=mrsigner,
        mrenclave=descriptor.mrenclave(),
    ):
        say(line)  # before anything is replaced
    old_image = _replaced_image(instance, root_mac)
    kept = False
    if not sealer.sealed and _is_published(instance, protected, signed):
        publish.abandon(instance)
    else:
        sealer.take_over_unchanged()
        kept = publish.swap_in(
            instance,
            staging,
            old_image=old_image,
            alone=partial(lock_run, instance),
            is_needed=lambda: (
                _has_writable_layer(instance, config)
                or _is_below_others(instance, boot, request, descriptor, old_image)
            ),
        )
    store_record(instance.path, sealer.outcome)
    if now != before:
        store_signed(instance.path, now)
    _remember_signer(instance, mrsigner)
    if kept:
        say(
            "the image before this one is kept, for the writable layer: if `run` refuses it, "
            "`serdab rebind` binds it to this one where both hold the same, `serdab run "
            "--previous` boots what it belongs to, and `serdab reset` gives both up"
        )
    return BuildResult(
        mrenclave=descriptor.mrenclave(),
        mrsigner=mrsigner,
        conf_mac=descriptor.conf_mac,
        init_mac=init_mac,
        root_mac=root_mac,
        image_type=image_type,
        platform=descriptor.platform,
        debuggable=descriptor.debuggable,
        signer_origin=request.signer.origin,
        sealed=tuple(sealer.sealed),
        changes=changed,
    )


def check(
    instance: Instance,
    signer: Signer | None,
    *,
    image_key: Key | None,
    builtin_key: bool,
    say: Say,
    owners: str = "",
) -> tuple[str, ...]:
    """Return what differs from what this user signed last, a line each; nothing is written.

    It goes by sizes, times and inode numbers, as a build does when it decides what to seal anew.
    ``say`` gets the warnings that a build would give; ``signer`` is None where there is no key yet.

    Raises:
        UsageError: configuration or trees are not fit to be sealed.
        BusyError: a build is at work.
    """
    with lock_build(instance):
        raw_config = instance.read(CONFIG)
        config = parse(raw_config)
        for line in of_configuration(
            instance, config, builtin_key=builtin_key, is_encrypted=image_key is not None
        ):
            say(line)
        _check_trees(instance)
        before = load_signed(instance.path)
        record = load_record(instance.path)
        sealer = TreeSealer(instance, None, record, None, say, _owners(instance, owners))
        image_type = INTEGRITY_ONLY if image_key is None else ENCRYPTED
        initfs = _initfs_additions(image_type, _builtin(image_key, wanted=builtin_key))
        init_mac = sealer.seal("initfs", INITFS_SOURCE, INITFS, None, initfs)
        image = _image_additions(instance, config)
        root_mac = sealer.seal("image", IMAGE_SOURCE, IMAGE, image_key, image, config.image_form)
        if not root_mac:
            _say_lacking(instance, say)
        # Of what is to be sealed anew nobody knows the MAC yet; it is another one, and that counts.
        boot = _boot_config(
            config, image_type, init_mac or _UNKNOWN, root_mac or _UNKNOWN, builtin_key=builtin_key
        )
        for line in of_change(
            instance,
            boot,
            image_key,
            before,
            mrsigner=None if signer is None else signer.public.mrsigner(),
            mrenclave=_descriptor(config, dump_boot_config(boot)).mrenclave(),
        ):
            say(line)
        if before is None:
            return (NOTHING_ON_RECORD,)
        return tuple(changes(before, sealer.to_be_signed(raw_config)))


def _owners(instance: Instance, named: str) -> dict[str, dict[str, Owner]]:
    """Return the owners of a tree by its name, where the caller says where they stand."""
    if not named:
        return {}
    if named != TREE:
        return {"image": owners_of_file(named)}
    with instance.root.directory(IMAGE_SOURCE) as tree:
        return {"image": owners_of_tree(tree)}


def _say_lacking(instance: Instance, say: Say) -> None:
    with instance.root.directory(IMAGE_SOURCE) as tree:
        for line in loaders.lines_about(tree):
            say(line)


def _check_trees(instance: Instance) -> None:
    for name in (IMAGE_SOURCE, INITFS_SOURCE):
        instance.root.require_plain(name, "a directory")
        if not instance.root.is_directory(name):
            raise UsageError(
                "a source tree is missing",
                stage="build",
                subject=instance.at(name),
                expected="a directory",
                found="none",
                hint="`serdab copy-bom -f FILE --root " + name + "` fills one",
            )
    path = f"{INITFS_SOURCE}/{INIT}"
    status = instance.root.status(path)
    # A link may point to where only the init FS itself can tell; a file must be executable.
    if status is None or not (
        stat.S_ISLNK(status.st_mode)
        or (stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) & 0o111)
    ):
        raise UsageError(
            "the init FS has no init",
            stage="build",
            subject=instance.at(path),
            expected="an executable /bin/init",
            found="none" if status is None else "something that cannot be executed",
            hint="`serdab new` puts the default one there",
        )


def _builtin(image_key: Key | None, *, wanted: bool) -> Key | None:
    """Return the key to build in.

    Raises:
        UsageError: it is asked for, and there is none.
    """
    if wanted and image_key is None:
        raise UsageError(
            "--buildin-image-key without a key",
            expected="--image-key FILE as well",
            found="no key",
            hint="`serdab gen-image-key FILE` makes a key",
        )
    return image_key if wanted else None


def _initfs_additions(image_type: str, builtin: Key | None) -> Additions:
    config = json.dumps({"image_type": image_type}, sort_keys=True).encode("ascii") + b"\n"
    files = {IMAGE_CONFIG: config}
    if builtin is not None:
        files[IMAGE_KEY] = builtin.dump().encode("ascii") + b"\n"
    return Additions(directories={b"proc": 0o755, b"dev": 0o755}, files=files)


def _image_additions(instance: Instance, config: InstanceConfig) -> Additions:
    directories: dict[bytes, int] = {}
    with instance.root.directory(IMAGE_SOURCE) as tree:
        for entry in config.mounts:
            _require_plain(tree, entry)
            parts = entry.target.strip("/").encode("utf-8").split(b"/")
            for length in range(1, len(parts) + 1):
                directories[b"/".join(parts[:length])] = 0o755
        files = {
            path: b""
            for path in _HOST_FILES
            if not tree.exists(os.fsdecode(path)) and tree.is_plain("etc")
        }
    return Additions(directories=directories, files=files)


def _require_plain(tree: DirFd, entry: MountEntry) -> None:
    """Refuse a mount point that the tree has as something else than plain directories."""
    parts = entry.target.strip("/").split("/")
    for length in range(1, len(parts) + 1):
        path = "/".join(parts[:length])
        status = tree.status(path)
        if status is None:
            return
        if not stat.S_ISDIR(status.st_mode):
            raise UsageError(
                f"the mount point {entry.target} is no directory",
                stage="build",
                subject=tree.name(path),
                expected="a directory, or nothing",
                found="a symlink" if stat.S_ISLNK(status.st_mode) else "a file",
                hint="remove it from the tree, or mount elsewhere",
            )


def _check_reference(config: InstanceConfig, root_mac: bytes) -> None:
    if config.image_mac and root_mac[: len(config.image_mac)] != config.image_mac:
        raise MeasurementMismatch(
            "the image has another root MAC than the configuration requires",
            stage="build",
            subject="mount[0].options.layers[0].options.MAC",
            expected=config.image_mac.hex(),
            found=root_mac.hex(),
            hint='an empty MAC ("") accepts what the build makes',
        )


def _descriptor(config: InstanceConfig, protected: bytes) -> Descriptor:
    separation = config.key_separation or (b"", b"")
    return Descriptor(
        serdab_version=VERSION,
        code_digest=code_digest(),
        conf_mac=Digest.of(protected),
        product_id=config.product_id,
        security_version=config.security_version,
        debuggable=config.debuggable,
        platform=platform.current().name,
        family_id=separation[0],
        ext_prod_id=separation[1],
    )


def _boot_config(
    config: InstanceConfig,
    image_type: str,
    init_mac: bytes,
    root_mac: bytes,
    *,
    builtin_key: bool,
) -> BootConfig:
    return BootConfig(
        image_type=image_type,
        init_mac=init_mac,
        root_mac=root_mac,
        entry_points=config.entry_points,
        env_default=config.env_default,
        env_untrusted=config.env_untrusted,
        limits=config.limits,
        mounts=config.mounts,
        upper=config.upper,
        builtin_image_key=builtin_key,
        product_id=config.product_id,
        security_version=config.security_version,
        debuggable=config.debuggable,
        disable_log=config.disable_log,
        host_directories=config.host_directories,
        network=config.network,
        freshness=config.freshness,
        runtime_mounts=config.runtime_mounts,
    )


def _is_published(instance: Instance, protected: bytes, signed: bytes) -> bool:
    """Return whether ``build/`` holds just these; RSA signatures of this kind are deterministic."""
    try:
        return instance.read(PROTECTED_CONFIG) == protected and instance.read(DESCRIPTOR) == signed
    except UsageError:
        return False


def _replaced_image(instance: Instance, root_mac: bytes) -> str | None:
    """Return the root MAC of the image that goes, or None if it stays.

    It comes from untrusted bytes and serves as a directory name only.
    """
    try:
        old = parse_boot_config(instance.read(PROTECTED_CONFIG)).root_mac
    except (OSError, Error):
        return None
    return None if old == root_mac else old.hex()


def _has_writable_layer(instance: Instance, config: InstanceConfig) -> bool:
    """Return whether there is a writable layer, or a session that may begin one any moment."""
    if is_in_use(instance):
        return True
    shown = outer.shown_by(config)
    try:
        with outer.open_directory(instance, config.upper.source, shown) as upper:
            return bool(upper.names())
    except (OSError, UsageError) as exc:
        # Where that cannot be told the image that it would lie over stays.
        return not any(isinstance(each, FileNotFoundError) for each in (exc, exc.__cause__))


def _is_below_others(
    instance: Instance,
    boot: BootConfig,
    request: BuildRequest,
    descriptor: Descriptor,
    image: str | None,
) -> bool:
    """Return whether an init put a layer above an image (its root MAC) that opens after a build."""
    try:
        made = volume_key(
            boot,
            None if request.image_key is None else request.image_key.raw(),
            platform=platform.current(),
            mrsigner=request.signer.public.mrsigner(),
            mrenclave=descriptor.mrenclave(),
        )
        with outer.ground_of(instance, outer.shown_by(boot)) as ground:
            above = layers_above(ground, Key(made.key), but="")
            return any(mac.hex() == image for _, anchor in above for mac in anchor.state.lower)
    except (Error, OSError):
        return False  # nothing that could be opened


def _remember_signer(instance: Instance, signer: Digest) -> None:
    """Whoever builds says whom to expect."""
    known = recorded_signer(instance.path)
    if known is None or not known.matches(signer):
        record_signer(instance.path, signer)
