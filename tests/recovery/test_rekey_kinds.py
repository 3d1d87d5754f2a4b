# SPDX-License-Identifier: Apache-2.0
"""What a change of the key makes of every kind of instance, and what it refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serdab.errors import (
    BusyError,
    Error,
    RollbackError,
    UsageError,
    VerificationError,
    WrongKeyError,
)
from serdab.instance.layout import IMAGE, Instance
from serdab.instance.locks import lock_run
from serdab.instance.rekey import RekeyRequest, rekey
from serdab.instance.sealedroot import verified_chain
from serdab.keys import Key
from serdab.libos.ground import LedElsewhere
from serdab.libos.mountrules import derive_named
from serdab.sefs.volume import Volume
from serdab.trust import records
from serdab.trust.freshness import Watch, open_watched
from serdab.trust.signing import development_signer
from serdab.vfs.union import Union
from tests.harness.homes import NamedHome
from tests.harness.signers import signer
from tests.recovery.rekeying import NEW, OLD, Place, do_build, do_rekey, make_place, use

THIRD = Key(b"t" * 16)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return make_place(tmp_path / "at", tmp_path / "saved", monkeypatch)


def write(name: bytes, content: bytes) -> Callable[[Union, Volume], None]:
    def act(fs: Union, _: Volume) -> None:
        inode = fs.mknod(1, name, 0o100644, 0, 0, 0)
        fs.write(inode.ino, 0, memoryview(content), kill_suidgid=False)

    return act


def configure(instance: Instance, change: Callable[[dict[str, Any]], None]) -> None:
    path = Path(instance.at("Occlum.json"))
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def forget_everything(place: Place) -> None:
    """As a new instance at this place: no layer, no record of one."""
    shutil.rmtree(place.instance.at("run/mount"))
    shutil.rmtree(place.base / "state/serdab/volumes")


def test_a_later_build_makes_the_same_image_and_keeps_the_layer(place: Place) -> None:
    result = do_rekey(place.instance)
    assert do_build(place.instance, NEW) == result.root_mac
    assert use(place.instance, NEW) == place.before


def test_a_build_with_the_old_key_does_not_sign_the_new_image(place: Place) -> None:
    before = verified_chain(place.instance).config.root_mac
    do_rekey(place.instance)
    assert do_build(place.instance, OLD) == before
    with pytest.raises(WrongKeyError):  # the layer has the new key
        use(place.instance, OLD)
    forget_everything(place)
    assert b"/root/gone" in use(place.instance, OLD)


def test_what_is_sealed_again_is_the_build_and_not_the_source_tree(place: Place) -> None:
    Path(place.instance.at("image/root/lower")).write_text("changed since")
    do_rekey(place.instance)
    assert use(place.instance, NEW) == place.before


def test_an_instance_without_a_layer(place: Place) -> None:
    forget_everything(place)
    result = do_rekey(place.instance)
    assert not result.has_layer
    assert b"/first" in use(place.instance, NEW, write(b"first", b"content"))


def test_a_layer_without_a_change(place: Place) -> None:
    forget_everything(place)

    def come_and_go(fs: Union, volume: Volume) -> None:
        write(b"gone", b"")(fs, volume)
        fs.unlink(1, b"gone")

    before = use(place.instance, OLD, come_and_go)
    assert do_rekey(place.instance).has_layer
    assert use(place.instance, NEW) == before


def test_a_layer_in_memory_is_no_matter(place: Place) -> None:
    forget_everything(place)

    def in_memory(config: dict[str, Any]) -> None:
        config["mount"][0]["options"]["layers"][1]["options"] = {"temporary": True}

    configure(place.instance, in_memory)
    do_build(place.instance, OLD)
    assert not do_rekey(place.instance).has_layer


@pytest.mark.parametrize("policy", ["enforce", "off"])
def test_whatever_the_policy_of_freshness(place: Place, policy: str) -> None:
    configure(place.instance, lambda config: config.update(serdab={"freshness": policy}))
    do_build(place.instance, OLD)
    assert use(place.instance, OLD) == place.before
    do_rekey(place.instance)
    assert use(place.instance, NEW) == place.before
    after = use(place.instance, NEW, write(b"more", b"more"))
    assert use(place.instance, NEW) == after


def test_a_root_mac_that_the_sources_require_is_told_of(place: Place) -> None:
    mac = verified_chain(place.instance).config.root_mac.hex()

    def require(config: dict[str, Any]) -> None:
        config["mount"][0]["options"]["layers"][0]["options"] = {"MAC": mac}

    configure(place.instance, require)
    said: list[str] = []
    rekey(place.instance, RekeyRequest(signer(), old=OLD, new=NEW), say=said.append)
    assert any(mac in line for line in said)


def test_a_failure_after_the_switch_says_which_key_counts(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "the state directory failed")

    said: list[str] = []
    request = RekeyRequest(signer(), old=OLD, new=NEW)
    with monkeypatch.context() as patch:
        patch.setattr(records, "store_record", fail)
        with pytest.raises(OSError, match="the state directory failed"):
            rekey(place.instance, request, say=said.append)
    assert "the new key counts" in said[-1]
    assert use(place.instance, NEW) == place.before


# Refusals ---------------------------------------------------------------------------------


def digest_of(path: Path) -> dict[str, str]:
    """Return everything below a directory."""
    return {
        str(entry.relative_to(path)): hashlib.sha256(entry.read_bytes()).hexdigest()
        if entry.is_file() and not entry.is_symlink()
        else "-"
        for entry in sorted(path.rglob("*"))
    }


def refused(place: Place, kind: type[Error], act: Callable[[], object]) -> Error:
    """Require a refusal after which every byte of the instance is what it was."""
    before = digest_of(Path(place.instance.path))
    with pytest.raises(kind) as refusal:
        act()
    assert type(refusal.value) is kind
    assert refusal.value.hint
    assert digest_of(Path(place.instance.path)) == before
    return refusal.value


def test_a_wrong_old_key_is_refused(place: Place) -> None:
    error = refused(place, WrongKeyError, lambda: do_rekey(place.instance, THIRD, NEW))
    assert "wrong image key" in error.message


def test_an_old_key_that_is_not_that_of_the_layer_is_refused(place: Place) -> None:
    do_build(place.instance, THIRD)
    error = refused(place, WrongKeyError, lambda: do_rekey(place.instance, THIRD, NEW))
    assert "but not its writable layer" in error.message


def test_another_signer_is_refused(place: Place) -> None:
    request = RekeyRequest(development_signer(), old=OLD, new=NEW)
    act = lambda: rekey(place.instance, request, say=lambda _: None)  # noqa: E731
    error = refused(place, VerificationError, act)
    assert "mrsigner" in error.expected


def test_no_signer_is_refused(place: Place) -> None:
    request = RekeyRequest(None, old=OLD, new=NEW)
    act = lambda: rekey(place.instance, request, say=lambda _: None)  # noqa: E731
    refused(place, VerificationError, act)


def test_an_instance_in_use_is_refused(place: Place) -> None:
    with lock_run(place.instance):
        refused(place, BusyError, lambda: do_rekey(place.instance))


def test_one_key_for_both_is_refused(place: Place) -> None:
    refused(place, UsageError, lambda: do_rekey(place.instance, OLD, OLD))


def test_a_layer_that_was_emptied_is_refused(place: Place) -> None:
    shutil.rmtree(place.instance.at("run/mount"))
    refused(place, RollbackError, lambda: do_rekey(place.instance))


def test_a_layer_behind_a_link_is_refused(place: Place, tmp_path: Path) -> None:
    shutil.move(place.instance.at("run/mount"), tmp_path / "elsewhere")
    Path(place.instance.at("run/mount")).symlink_to(tmp_path / "elsewhere")
    before = digest_of(tmp_path / "elsewhere")
    error = refused(place, LedElsewhere, lambda: do_rekey(place.instance))
    assert "symbolic link" in error.found
    assert digest_of(tmp_path / "elsewhere") == before


def test_an_image_that_is_not_encrypted_is_refused(place: Place) -> None:
    forget_everything(place)
    do_build(place.instance, None)
    error = refused(place, UsageError, lambda: do_rekey(place.instance))
    assert "serdab build --image-key" in error.hint


def test_a_volume_under_a_key_that_comes_from_the_image_key_is_refused(
    place: Place, tmp_path: Path
) -> None:
    """A program's ``key=@data`` would be another key afterwards."""
    policy = {"keys": [{"name": "data", "source": "image"}]}
    configure(place.instance, lambda config: config.update(serdab={"runtime_mounts": policy}))
    do_build(place.instance, OLD)
    volume = tmp_path / "volume"
    watched = open_watched(
        NamedHome(volume), Watch("record"), key=Key(derive_named(OLD.raw(), "data"))
    )
    fs = Union(watched.volume, None)
    write(b"file", b"content")(fs, watched.volume)
    fs.close()
    watched.guard.close()
    error = refused(place, UsageError, lambda: do_rekey(place.instance))
    assert error.subject == str(volume)
    shutil.rmtree(volume)
    said: list[str] = []
    rekey(place.instance, RekeyRequest(signer(), old=OLD, new=NEW), say=said.append)
    assert any("data" in line and "will not open" in line for line in said)


def test_a_damaged_image_is_refused(place: Place) -> None:
    file = Path(place.instance.at(IMAGE), "image.sefs")
    raw = bytearray(file.read_bytes())
    raw[4096 + 1000] ^= 1
    file.write_bytes(raw)
    before = digest_of(Path(place.instance.path))
    with pytest.raises(VerificationError):
        do_rekey(place.instance)
    assert digest_of(Path(place.instance.path)) == before
