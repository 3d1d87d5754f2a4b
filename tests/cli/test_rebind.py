# SPDX-License-Identifier: Apache-2.0
"""An instance built by a Serdab of format version 1 goes on under a newer one, nothing lost."""

from __future__ import annotations

import json
import os
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


def rebind(built: BuiltInstance, *options: str) -> str:
    return built.command.ok("-C", built.path, "rebind", *options, *keyed(built))


def listing(built: BuiltInstance, *options: str) -> str:
    done = built.command.run(
        "-C", built.path, "run", *options, *keyed(built), "/bin/sh", "-c", LISTING
    )
    assert done.returncode == 0, describe(done)
    return done.stdout.decode()


def refused_as(built: BuiltInstance, *options: str) -> str:
    """Return the kind of refusal that a boot meets."""
    done = built.command.run(
        "--json", "-C", built.path, "run", *options, *keyed(built), "/bin/true"
    )
    assert done.returncode == 125, describe(done)
    kind: str = json.loads(done.stderr.splitlines()[-1])["error"]
    return kind


def test_a_layer_over_version_1_goes_on(make_instance: MakeInstance, tmp_path: Path) -> None:
    """All that a layer may hold; as it is, after the build, after the step, rolled back after it.

    One test, for what it shows is one way: a dozen boots and builds.
    """
    built = make_instance(fill=fill)
    build_as_before(built)
    assert built.run("/bin/sh", "-c", CHANGES).returncode == 0
    pin = ("--pin-file", str(tmp_path / "pin"))
    before = listing(built, *pin)
    assert rebind(built) == "unchanged run/mount/__ROOT\n"  # and an image of version 1 boots
    assert "`serdab rebind`" in build_anew(built)
    assert refused_as(built) == "layer"
    assert listing(built, "--previous") == before
    (kept,) = (built.path / "build/previous").iterdir()
    shutil.copytree(built.path / "run/mount", tmp_path / "mount")
    shutil.copytree(kept, tmp_path / kept.name)
    pinned = (tmp_path / "pin").read_bytes()
    assert rebind(built, *pin) == "rebound   run/mount/__ROOT\n"
    assert (tmp_path / "pin").read_bytes() != pinned
    assert not list((built.path / "build/previous").iterdir())
    assert listing(built, *pin) == before
    assert rebind(built) == "unchanged run/mount/__ROOT\n"
    built.command.ok("-C", built.path, "fsck", *keyed(built))
    # The state before is an older one from then on, for the record and for the pin.
    shutil.rmtree(built.path / "run/mount")
    shutil.copytree(tmp_path / "mount", built.path / "run/mount")
    shutil.copytree(tmp_path / kept.name, kept)
    for options in ((), pin):
        assert refused_as(built, "--previous", *options) == "rollback"
    refusal(built.command.run("-C", built.path, "rebind", *keyed(built)), 3)


def small(make_instance: MakeInstance, *, encrypted: bool) -> BuiltInstance:
    """Make an instance of version 1 whose layer holds one file."""
    built = make_instance(files={"/etc/motd": b"hello\n"}, encrypted=encrypted)
    build_as_before(built)
    assert built.run("/bin/sh", "-c", "echo x > /root/x").returncode == 0
    return built


def test_another_tree_is_refused_and_the_layer_is_what_it_was(make_instance: MakeInstance) -> None:
    """And where it is the same again, the step is done: here of an image without a key."""
    built = small(make_instance, encrypted=False)
    motd = built.path / "image/etc/motd"
    status = motd.stat()
    motd.write_bytes(b"jello\n")
    build_anew(built)
    anchor = (built.path / "run/mount/__ROOT/anchor").read_bytes()
    done = built.command.run("-C", built.path, "rebind")
    assert "does not hold" in refusal(done, 3)
    assert (built.path / "run/mount/__ROOT/anchor").read_bytes() == anchor
    motd.write_bytes(b"hello\n")
    os.utime(motd, ns=(status.st_atime_ns, status.st_mtime_ns))
    build_anew(built)
    assert rebind(built) == "rebound   run/mount/__ROOT\n"
    assert built.run("/bin/cat", "/root/x", "/etc/motd").stdout == b"x\nhello\n"


def test_what_an_init_put_above_the_image_is_bound_too(
    make_instance: MakeInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the layer of the configuration holds nothing, and alone keeps no image."""
    built = make_instance()
    build_as_before(built)
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
    assert rebind(built) == f"rebound   {layer}\n"
    assert not list((built.path / "build/previous").iterdir())
    fs, volume = opened()
    assert fs.lookup(1, b"made").mode == 0o40755
    fs.close()


def test_a_new_key_makes_version_2_of_both(make_instance: MakeInstance, tmp_path: Path) -> None:
    built = small(make_instance, encrypted=True)
    refusal(built.command.run("-C", built.path, "rebind"), 4)
    built.command.ok("gen-image-key", tmp_path / "new")
    built.command.ok("-C", built.path, "rekey", *keyed(built), "--new-image-key", tmp_path / "new")
    assert version(built) == 2
    anew = replace(built, key=tmp_path / "new")
    assert anew.run("/bin/cat", "/root/x", "/etc/motd").stdout == b"x\nhello\n"
