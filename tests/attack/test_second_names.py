# SPDX-License-Identifier: Apache-2.0
"""The host has a second name, by mistake, for what programs must not see: a hard link, a mount.

Of keys, of the user's state, of what was built, of a part of a source tree, of the instance itself;
where programs see it, or on the way to what the command line or the configuration names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from serdab.linux.mounts import MountFlag, UmountFlag, mount, umount
from tests.attack.test_later_verbs import config_of
from tests.harness.command import describe
from tests.sandbox.conftest import Box, Place, place, probe_program

__all__ = ["place", "probe_program"]

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

Bind = Callable[[Path, Path], None]


@pytest.fixture
def bind() -> Iterator[Bind]:
    with ExitStack() as stack:

        def mounted(source: Path, target: Path) -> None:
            if source.is_dir():
                target.mkdir(exist_ok=True)
            else:
                target.touch()
            mount(os.fspath(source), os.fspath(target), "", MountFlag.BIND, "")
            stack.callback(umount, os.fspath(target), UmountFlag.DETACH)

        yield mounted


@pytest.fixture
def box(place: Place, probe_program: Path) -> Box:
    return place.build(probe_program)


def own(box: Box, path: Path) -> None:
    status = box.path.stat()
    os.chown(path, status.st_uid, status.st_gid)


def test_what_is_hidden_has_no_second_name_inside(box: Box, bind: Bind) -> None:
    """Neither below the directory that is shown, nor from elsewhere; while programs run, too."""
    state = Path(box.command.env["XDG_STATE_HOME"]) / "serdab"
    record = next(path for path in state.rglob("*") if path.is_file())
    key = box.path.parent / "named.key"
    box.command.ok("gen-image-key", key)
    share = box.path / "share"
    share.mkdir()
    own(box, share)
    keys = [{"name": "data", "source": str(key)}]
    config_of(box, serdab={"runtime_mounts": {"keys": keys}})
    box.command.ok("-C", box.path, "build")
    os.link(record, share / "record")
    os.link(key, share / "key")
    os.link(box.path / "build/lib/libserdab.signed.json", share / "signed")
    (box.path.parent / "ordinary").touch()
    own(box, box.path.parent / "ordinary")
    bind(state, share / "state")
    bind(box.path.parent, share / "around")
    box.command.ok("-C", box.path, "start")
    try:
        bind(box.path / "image/bin", share / "late")
        script = """
        cd /host/share
        for name in record key signed state/* late/busybox; do
            cat "$name" >/dev/null 2>&1 && echo "read $name"
            (echo evil >>"$name") 2>/dev/null && echo "wrote $name"
        done
        ls -A around
        cat around/named.key around/state/serdab/* && echo "read around"
        """
        done = box.command.run("-C", box.path, "exec", "/bin/sh", "-c", script)
    finally:
        box.command.ok("-C", box.path, "stop", "-t", "0")
    said = done.stdout.decode()
    # What a program made: a pattern that matches nothing is a name like any other.
    assert "read" not in said.replace("record", ""), describe(done)
    assert "wrote" not in said, describe(done)
    assert "named.key" not in said, describe(done)
    assert "ordinary" in said, describe(done)


def test_a_mount_of_a_part_of_it_is_no_host_directory(box: Box) -> None:
    share = box.path / "share"
    share.mkdir()
    own(box, share)
    config = json.loads((box.path / "Occlum.json").read_text())
    next(line for line in config["mount"] if line["type"] == "hostfs")["source"] = "share"
    (box.path / "Occlum.json").write_text(json.dumps(config))
    box.command.ok("-C", box.path, "build")
    state = Path(box.command.env["XDG_STATE_HOME"]) / "serdab/part"
    state.mkdir()
    own(box, state)
    for source in (state, box.path / "image/bin", box.path / "build/lib"):
        mount(os.fspath(source), os.fspath(share), "", MountFlag.BIND, "")
        try:
            done = box.command.run("-C", box.path, "run", "/bin/true")
        finally:
            umount(os.fspath(share), UmountFlag.DETACH)
        assert done.returncode == 125, describe(done)
        assert b"never shown to programs" in done.stderr, describe(done)


def test_a_key_is_refused_by_whatever_mount_it_is_named(box: Box, bind: Bind) -> None:
    """Of the whole instance, of a part; of a directory elsewhere, where programs see it."""
    place = box.path.parent
    for path in (place / "elsewhere", box.path / "share", box.path / "inner"):
        path.mkdir()
        own(box, path)
    bind(box.path, place / "whole")
    bind(box.path / "share", place / "part")
    bind(place / "elsewhere", box.path / "inner")
    box.command.ok("gen-image-key", place / "outside.key")
    config = json.loads((box.path / "Occlum.json").read_text())
    for folder in (place / "whole/share", place / "part", place / "elsewhere"):
        key, link = folder / "k", folder / "lnk"
        key.write_bytes((place / "outside.key").read_bytes())
        own(box, key)
        if not link.is_symlink():
            link.symlink_to(place / "outside.key")
            os.chown(link, box.path.stat().st_uid, -1, follow_symlinks=False)
        for words, code in (
            (("build", "--image-key", key), 2),
            (("build", "--image-key", link), 2),
            (("run", "--pin-file", folder / "new", "/bin/true"), 125),
        ):
            done = box.command.run("-C", box.path, *words)
            assert done.returncode == code, describe(done)
            assert b"programs of this instance can read and replace" in done.stderr, describe(done)
        # And what is named in the configuration, which nobody asks about before.
        names = [{"name": name, "source": str(folder / name)} for name in ("k", "lnk")]
        config["serdab"] = {"runtime_mounts": {"keys": names}}
        (box.path / "Occlum.json").write_text(json.dumps(config))
        box.command.ok("-C", box.path, "build")
        done = box.command.run("-C", box.path, "run", "/bin/true")
        for name in ("k", "lnk"):
            said = f"the key named {name} cannot be read".encode()
            assert said in done.stderr, describe(done)


def test_a_key_beside_the_instance_is_still_one(box: Box, bind: Bind) -> None:
    """What only looks like it: a mount of something else, a link of the user's own."""
    place = box.path.parent
    (place / "keys").mkdir()
    own(box, place / "keys")
    bind(place / "keys", place / "mounted")
    box.command.ok("gen-image-key", place / "mounted/k")
    (place / "lnk").symlink_to("mounted/k")
    os.chown(place / "lnk", box.path.stat().st_uid, -1, follow_symlinks=False)
    for key in ("keys/k", "mounted/k", "lnk"):
        box.command.ok("-C", box.path, "build", "--image-key", place / key)
    box.command.ok("-C", box.path, "run", "--image-key", place / "mounted/k", "/bin/true")
    if not box.is_root:
        # One that is closed to them is for whoever opens it to refuse.
        (place / "closed").mkdir(mode=0o700)
        done = box.command.run("-C", box.path, "build", "--image-key", place / "closed/k")
        assert done.returncode == 2, describe(done)
        assert b"the image key cannot be read" in done.stderr, describe(done)
