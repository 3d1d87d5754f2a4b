# SPDX-License-Identifier: Apache-2.0
"""``serdab.image`` decides how the image is stored: told by a build, kept by a new key."""

from __future__ import annotations

import json
from pathlib import Path

from serdab.sefs.imageformat import HEADER_BYTES, Header, parse_header
from tests.harness.command import Command, describe
from tests.harness.instances import BuiltInstance, MakeInstance


def change(built: BuiltInstance, **form: str) -> None:
    path = built.path / "Occlum.json"
    config = json.loads(path.read_text())
    config.setdefault("serdab", {})["image"] = form
    path.write_text(json.dumps(config))


def build(built: BuiltInstance, *options: object) -> str:
    done = built.command.run("-C", built.path, "build", *map(str, options))
    assert done.returncode == 0, describe(done)
    return done.stderr.decode()


def image(built: BuiltInstance) -> Path:
    return built.path / "build/mount/__ROOT/image.sefs"


def header(built: BuiltInstance) -> Header:
    return parse_header(image(built).read_bytes()[:HEADER_BYTES])


def test_a_build_obeys_and_tells_and_another_makes_the_same_bytes(
    make_instance: MakeInstance, serdab: Command, tmp_path: Path
) -> None:
    built = make_instance(files={"/etc/text": b"a line of text\n" * 9000})
    assert built.key is not None
    key = ("--image-key", built.key)
    before = image(built).read_bytes()
    change(built, compression="none", padding="256KB")
    said = build(built, *key)
    assert "configuration: 1 changed: serdab\n" in said
    assert "image: the same files, sealed anew" in said
    made = header(built)
    assert (made.compression, made.padding, made.builder) == (0, 256 << 10, "")
    assert made.total_size % (256 << 10) == 0
    raw = image(built).read_bytes()
    build(built, "--force", *key)
    assert image(built).read_bytes() == raw
    # A new key keeps the form; what a build makes then is the same again.
    serdab.ok("gen-image-key", tmp_path / "new")
    built.command.ok(
        "-C", built.path, "rekey", "--image-key", built.key, "--new-image-key", tmp_path / "new"
    )
    raw = image(built).read_bytes()
    assert header(built).padding == 256 << 10
    build(built, "--force", "--image-key", tmp_path / "new")
    assert image(built).read_bytes() == raw
    change(built)
    said = build(built, *key)
    assert "2 changed: serdab.image.compression, serdab.image.padding" in said
    assert image(built).read_bytes() == before


def test_padding_without_a_key_is_accepted_with_a_line(make_instance: MakeInstance) -> None:
    built = make_instance(encrypted=False)
    change(built, padding="1MB")
    assert "serdab.image.padding: accepted, changes nothing here" in build(built)
    assert header(built).padding == 0


def test_another_padding_is_refused(make_instance: MakeInstance) -> None:
    built = make_instance(encrypted=False)
    change(built, padding="3MB")
    done = built.command.run("-C", built.path, "build")
    assert done.returncode == 2
    assert b"serdab.image.padding" in done.stderr
