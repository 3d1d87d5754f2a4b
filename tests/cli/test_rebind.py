# SPDX-License-Identifier: Apache-2.0
"""An instance built by a Serdab of format version 1 goes on under a newer one, nothing lost."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from serdab.errors import LayerMismatch
from serdab.instance.layout import Instance
from serdab.instance.measurements import read_measurements
from serdab.keys import Key
from serdab.libos.volumekey import volume_key
from serdab.sefs.image import open_image
from serdab.sefs.imageformat import HEADER_BYTES, parse_header
from serdab.sefs.volume import Volume, open_volume
from serdab.trust.platform import current
from serdab.trust.records import Record, remember_path, store_record
from serdab.vfs.union import Union
from tests.cli.test_rekey import CHANGES, LISTING, fill, refusal
from tests.harness.command import Command, describe
from tests.harness.instances import BuiltInstance, MakeInstance

pytestmark = [pytest.mark.fuse, pytest.mark.userns]
IMAGE = "build/mount/__ROOT/image.sefs"


_AS_BEFORE = """
import sys
from serdab.cli.main import main
from tests.harness.version1 import building_version_1
with building_version_1():
    sys.exit(main())
"""


def build_as_before(built: BuiltInstance) -> None:
    """Build as a Serdab did that made format version 1."""
    path = f"{built.command.env['PYTHONPATH']}:{Path(__file__).parents[2]}"
    command = Command(
        {**built.command.env, "PYTHONPATH": path}, (*built.command.prefix[:-2], "-c", _AS_BEFORE)
    )
    command.ok("-C", built.path, "build", "--force", *keyed(built))
    assert version(built) == 1


def version(built: BuiltInstance) -> int:
    return parse_header((built.path / IMAGE).read_bytes()[:HEADER_BYTES]).version


def keyed(built: BuiltInstance) -> tuple[str, ...]:
    return () if built.key is None else ("--image-key", str(built.key))


def build_anew(built: BuiltInstance) -> str:
    """Build as after an upgrade: the digest of the code is another one, so all is sealed anew."""
    done = built.command.run("-C", built.path, "build", "--force", *keyed(built))
    assert done.returncode == 0, describe(done)
    assert version(built) == 2
    return done.stderr.decode()


def rebind(built: BuiltInstance) -> str:
    return built.command.ok("-C", built.path, "rebind", *keyed(built))


def listing(built: BuiltInstance, *options: str) -> str:
    done = built.command.run(
        "-C", built.path, "run", *options, *keyed(built), "/bin/sh", "-c", LISTING
    )
    assert done.returncode == 0, describe(done)
    return done.stdout.decode()


def written(built: BuiltInstance) -> str:
    """Make an instance of version 1 with a layer that holds all that a layer may."""
    build_as_before(built)
    done = built.run("/bin/sh", "-c", CHANGES)
    assert done.returncode == 0, describe(done)
    return listing(built)


def check_the_upgrade(built: BuiltInstance) -> None:
    before = written(built)
    assert "`serdab rebind`" in build_anew(built)
    refused = built.run("/bin/true")
    assert refused.returncode == 125
    assert b"`serdab rebind`" in refused.stderr
    assert listing(built, "--previous") == before
    kept = list((built.path / "build/previous").iterdir())
    assert len(kept) == 1
    assert rebind(built) == "rebound   run/mount/__ROOT\n"
    assert listing(built) == before
    assert not list((built.path / "build/previous").iterdir())
    assert rebind(built) == "unchanged run/mount/__ROOT\n"
    built.command.ok("-C", built.path, "fsck", *keyed(built))


def test_a_layer_over_version_1_goes_on(make_instance: MakeInstance) -> None:
    check_the_upgrade(make_instance(fill=fill))


def test_over_an_image_that_is_not_encrypted_too(make_instance: MakeInstance) -> None:
    check_the_upgrade(make_instance(fill=fill, encrypted=False))


def test_an_image_of_version_1_boots_as_it_is(make_instance: MakeInstance) -> None:
    built = make_instance(fill=fill)
    before = written(built)
    assert rebind(built) == "unchanged run/mount/__ROOT\n"
    assert version(built) == 1
    assert listing(built) == before


def test_the_state_before_is_an_older_one_and_a_pin_goes_on(
    make_instance: MakeInstance, tmp_path: Path
) -> None:
    built = make_instance(fill=fill)
    pin = ("--pin-file", str(tmp_path / "pin"))
    written(built)
    listing(built, *pin)
    build_anew(built)
    kept = next((built.path / "build/previous").iterdir())
    shutil.copytree(built.path / "run/mount", tmp_path / "mount")
    shutil.copytree(kept, tmp_path / kept.name)
    rebind(built)
    listing(built, *pin)
    after = tmp_path / "after"
    (built.path / "run/mount").rename(after)
    shutil.copytree(tmp_path / "mount", built.path / "run/mount")
    shutil.copytree(tmp_path / kept.name, kept)
    for options in ((), pin):
        old = built.command.run(
            "--json", "-C", built.path, "run", "--previous", *options, *keyed(built), "/bin/true"
        )
        assert old.returncode == 125
        assert json.loads(old.stderr.splitlines()[-1])["error"] == "rollback"
    refusal(built.command.run("-C", built.path, "rebind", *keyed(built)), 3)
    shutil.rmtree(built.path / "run/mount")
    after.rename(built.path / "run/mount")
    listing(built, *pin)


def test_another_tree_is_refused_and_the_layer_is_what_it_was(make_instance: MakeInstance) -> None:
    built = make_instance(fill=fill)
    before = written(built)
    (built.path / "image/big/one").write_bytes(b"another content")
    build_anew(built)
    anchor = (built.path / "run/mount/__ROOT/anchor").read_bytes()
    done = built.command.run("-C", built.path, "rebind", *keyed(built))
    assert "does not hold" in refusal(done, 3)
    assert (built.path / "run/mount/__ROOT/anchor").read_bytes() == anchor
    assert listing(built, "--previous") == before


def test_what_an_init_put_above_the_image_is_bound_too(
    make_instance: MakeInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = make_instance()
    build_as_before(built)
    assert built.run("/bin/sh", "-c", "echo x > /root/x").returncode == 0
    assert built.key is not None
    image_key = Key.parse(built.key.read_text())
    monkeypatch.setenv("XDG_STATE_HOME", built.command.env["XDG_STATE_HOME"])
    measured = read_measurements(Instance.open(str(built.path)))
    made = volume_key(
        measured.config, image_key.raw(), platform=current(), mrsigner=measured.mrsigner,
        mrenclave=measured.descriptor.mrenclave(),
    )  # fmt: skip
    layer, sealed = built.path / "second", built.path / Path(IMAGE).parent
    layer.mkdir()

    def opened() -> tuple[Union, Volume]:
        lower = open_image(sealed, key=image_key, expected_mac=None)
        volume = open_volume(layer, key=Key(made.key), lower=lower, create=True, source=made.source)
        return Union(volume, lower), volume

    fs, volume = opened()
    fs.mkdir(1, b"made", 0o40755, 0, 0)
    fs.close()
    fs, volume = opened()
    assert volume.position is not None
    conf_mac = measured.descriptor.conf_mac.value
    store_record(
        Record(volume.position, root_mac=volume.root_mac, conf_mac=conf_mac, path=str(layer))
    )
    remember_path(str(layer), volume.uuid)
    fs.close()
    build_anew(built)
    with pytest.raises(LayerMismatch):
        opened()
    assert rebind(built) == f"rebound   run/mount/__ROOT\nrebound   {layer}\n"
    assert not list((built.path / "build/previous").iterdir())
    fs, volume = opened()
    assert fs.lookup(1, b"made").mode == 0o40755
    fs.close()


def test_a_new_key_makes_version_2_of_both(make_instance: MakeInstance, tmp_path: Path) -> None:
    built = make_instance(fill=fill)
    before = written(built)
    built.command.ok("gen-image-key", tmp_path / "new")
    built.command.ok("-C", built.path, "rekey", *keyed(built), "--new-image-key", tmp_path / "new")
    assert version(built) == 2
    assert listing(replace(built, key=tmp_path / "new")) == before


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--image-key", "nowhere"), 2),
        ((), 4),
    ],
)
def test_without_the_key_nothing_is_done(
    make_instance: MakeInstance, words: tuple[str, ...], code: int
) -> None:
    built = make_instance()
    refusal(built.command.run("-C", built.path, "rebind", *words), code)
