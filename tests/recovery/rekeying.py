# SPDX-License-Identifier: Apache-2.0
"""An instance whose key is changed in this process: made, used as a boot uses it, rekeyed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serdab.instance.build import BuildRequest, build
from serdab.instance.create import new_instance
from serdab.instance.layout import IMAGE, UPPER, Instance
from serdab.instance.locks import lock_run
from serdab.instance.rekey import RekeyRequest, RekeyResult, rekey
from serdab.instance.sealedroot import layer_keys, verified_chain
from serdab.keys import Key
from serdab.sefs.image import open_image
from serdab.sefs.volume import Volume
from serdab.trust.freshness import Watch, open_watched
from serdab.vfs.union import Union
from tests.harness.homes import NamedHome
from tests.harness.signers import signer
from tests.property.fsops import picture

OLD, NEW = Key(b"o" * 16), Key(b"n" * 16)
Picture = dict[bytes, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Place:
    """An instance with its state directory, and a copy of both to begin anew from."""

    base: Path
    saved: Path
    before: Picture

    @property
    def instance(self) -> Instance:
        return Instance(str(self.base / "instance"))

    def restore(self) -> None:
        for name in ("instance", "state"):
            shutil.rmtree(self.base / name, ignore_errors=True)
            shutil.copytree(self.saved / name, self.base / name, symlinks=True)


def use(
    instance: Instance,
    key: Key,
    act: Callable[[Union, Volume], None] | None = None,
    *,
    upper: str = UPPER,
) -> Picture:
    """Open the sealed root as a boot does, change it, return what it shows."""
    with lock_run(instance), ExitStack() as stack:
        chain = verified_chain(instance)
        keys = layer_keys(chain, key)
        mac = chain.config.root_mac
        image = open_image(Path(instance.at(IMAGE)), key=key, expected_mac=mac)
        stack.callback(image.close)
        watched = open_watched(
            NamedHome(Path(instance.at(upper))),
            Watch(chain.config.freshness, conf_mac=chain.descriptor.conf_mac.value),
            key=Key(keys.volume.key),
            lower=image,
            source=keys.volume.source,
        )
        stack.callback(watched.guard.close)
        fs = Union(watched.volume, image)
        stack.callback(fs.close)
        if act is not None:
            act(fs, watched.volume)
        return picture(fs)


def change(fs: Union, _: Volume) -> None:
    """Put something of every kind into the writable layer."""
    for number in range(20):
        inode = fs.mknod(1, b"file%d" % number, 0o100644, 0, 0, 0)
        content = random.Random(number).randbytes(number * 7000)
        fs.write(inode.ino, 0, memoryview(content), kill_suidgid=False)
    lower = fs.lookup(fs.lookup(1, b"root").ino, b"lower").ino
    fs.write(lower, 40_000, memoryview(b"changed"), kill_suidgid=False)
    fs.unlink(fs.lookup(1, b"root").ino, b"gone")


def do_build(instance: Instance, key: Key | None) -> bytes:
    """Build; return the root MAC."""
    request = BuildRequest(signer(), image_key=key)
    return build(instance, request, say=lambda _: None).root_mac


def do_rekey(instance: Instance, old: Key = OLD, new: Key = NEW) -> RekeyResult:
    request = RekeyRequest(signer(), old=old, new=new)
    return rekey(instance, request, say=lambda _: None)


def make_place(
    base: Path,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    fill: Callable[[Path], None] = lambda _image: None,
) -> Place:
    """Make an instance with a writable layer; ``fill`` adds to its image."""
    base.mkdir(exist_ok=True)
    for name in ("STATE", "CONFIG", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(base / name.lower()))
    instance = new_instance(str(base / "instance"))
    root = Path(instance.at("image/root"))
    (root / "lower").write_bytes(b"lower" * 20_000)
    (root / "gone").write_bytes(b"gone")
    fill(Path(instance.at("image")))
    do_build(instance, OLD)
    before = use(instance, OLD, change)
    saved.mkdir()
    for name in ("instance", "state"):
        shutil.copytree(base / name, saved / name, symlinks=True)
    return Place(base, saved, before)
