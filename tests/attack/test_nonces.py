# SPDX-License-Identifier: Apache-2.0
"""No (key, nonce) pair seals two inputs: not after kill -9, not after a rollback of everything.

The auditor (``tests.harness.nonces``) watches the whole suite; here are the cases that must be
among what it sees, in this process and in real ones that are killed.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serdab.crypto.aead import RecordCipher
from serdab.keys import Key
from serdab.sefs.image import open_image
from serdab.sefs.imagebuild import ImageOptions, build_image
from serdab.sefs.page import dump_page
from serdab.sefs.segment import TABLE_AAD, page_aad
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union
from tests.attack.sealedvolume import SealedVolume, open_host
from tests.harness.command import Command
from tests.harness.instances import MakeInstance
from tests.harness.nonces import LEDGER, Ledger, _digest, _install

KEY = Key(b"key of an audit!")


def write_on(fs: Union, text: bytes) -> None:
    folder = fs.lookup(ROOT_INO, b"folder")
    for name in (b"chunk", b"chunks", b"inline"):
        inode = fs.lookup(folder.ino, name)
        fs.write(inode.ino, 0, memoryview(text * 900), kill_suidgid=False)
        fs.syncfs()


def test_a_repeat_is_found() -> None:
    ledger = Ledger()
    with pytest.MonkeyPatch.context() as patch:
        _install(ledger, patch)
        cipher = RecordCipher(os.urandom(28))
        cipher.seal(1, b"one", b"beside")
        cipher.seal(1, b"one", b"beside")
        cipher.seal(2, b"two", b"beside")
        assert not ledger.repeats
        # Not sealed through the ledger of the session: this is its own violation.
        ledger.note(b"pair", b"content", "here")
        ledger.note(b"pair", b"other content", "there")
        # One plaintext as two kinds of records is two inputs.
        ledger.note(b"another pair", _digest(b"plain", page_aad(0)), "here")
        ledger.note(b"another pair", _digest(b"plain", TABLE_AAD), "as a table")
    assert ledger.repeats == ["there", "as a table"]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
def test_the_whole_directory_rolled_back_and_written_on(closed: bool, version: int) -> None:
    volume = SealedVolume(closed=closed, version=version)
    before = len(LEDGER.seen)
    for turn in range(6):
        host = volume.copy()  # the same old state, again and again
        fs = open_host(host, read_only=False)
        write_on(fs, b"%d" % turn)
        if turn % 2:
            fs.close()
        middle = copy.deepcopy(host)
        middle.close()
        fs = open_host(middle, read_only=False)
        write_on(fs, b"once more %d" % turn)
    assert len(LEDGER.seen) > before
    assert not LEDGER.repeats


def test_two_images_that_differ_in_one_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    noise = random.Random(5)
    for number in range(12):
        (source / f"{number}").write_bytes(noise.randbytes(3000 * number))
    options = ImageOptions(chunk_size=4096, page_size=4096)
    first = build_image(source, tmp_path / "one", key=KEY, options=options)
    (source / "5").write_bytes(noise.randbytes(15_000))
    second = build_image(source, tmp_path / "two", key=KEY, options=options)
    (source / "5").write_bytes(noise.randbytes(15_000))
    os.utime(source / "6", (5, 5))
    third = build_image(source, tmp_path / "three", key=KEY, options=options)
    for level in (0, 1, 19):
        build_image(
            source, tmp_path / f"level {level}", key=KEY,
            options=ImageOptions(chunk_size=4096, page_size=4096, zstd_level=level),
        )  # fmt: skip
    assert len({first.root_mac, second.root_mac, third.root_mac}) == 3
    assert not LEDGER.repeats


@pytest.mark.parametrize("zstd_level", [0, 3])
def test_pages_and_file_data_of_the_same_bytes(tmp_path: Path, zstd_level: int) -> None:
    """An image without a data pack, and another whose only record holds the page of the first.

    Nothing else is in what the identifiers of both runs are made of but what kind of run it is.
    """
    options = ImageOptions(chunk_size=4096, page_size=4096, zstd_level=zstd_level)
    small, file = tmp_path / "small", tmp_path / "file"
    small.mkdir()
    file.mkdir()
    (small / "name").write_bytes(random.Random(3).randbytes(2048))
    (small / "other").write_bytes(b"inline" * 200)
    plain = build_image(small, tmp_path / "plain", key=None, options=options)
    image = open_image(tmp_path / "plain", key=None, expected_mac=plain.root_mac)
    page = dump_page(0, list(image.tree.scan(b"", b"\xff")))
    image.close()
    assert len(page) > options.chunk_size // 2, "it would share a record"
    (file / "page").write_bytes(page)
    ledger = Ledger()
    with pytest.MonkeyPatch.context() as patch:
        _install(ledger, patch)
        build_image(small, tmp_path / "one", key=KEY, options=options)
        kinds = len(ledger.seen)
        build_image(file, tmp_path / "two", key=KEY, options=options)
    assert kinds == 1
    assert len(ledger.seen) == 3, "a (key, nonce) pair of the first image came back"
    assert not ledger.repeats


_WRITER = """
import os, sys
from pathlib import Path
from serdab.keys import Key
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.volume import open_volume
from serdab.vfs.union import Union
limits = VolumeLimits(items=40, dirty_bytes=20000, segment_bytes=100000, log_bytes=60000)
fs = Union(open_volume(Path(sys.argv[1]), key=Key(b"key of an audit!"), create=True,
                       chunk_size=4096, limits=limits), None)
print("mounted", flush=True)
for number in range(10**9):
    name = b"%d" % (number % 20)
    try:
        ino = fs.lookup(1, name).ino
    except OSError:
        ino = fs.mknod(1, name, 0o100600, 0, 0, 0).ino
    fs.write(ino, number % 3 * 100, memoryview(os.urandom(200 * (number % 40))), kill_suidgid=False)
    if number % 5 == 0:
        fs.syncfs()
"""


def test_processes_that_are_killed_and_rolled_back(
    audited_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    """A copy that audits itself writes, is killed at any instant, writes on from an older state."""
    sources, notes = audited_sources
    volume, old = tmp_path / "volume", tmp_path / "old"
    volume.mkdir()
    rng = random.Random(11)
    for turn in range(8):
        if turn % 3 == 2:  # everything as it was two sessions ago
            shutil.rmtree(volume)
            shutil.copytree(old, volume)
        elif turn % 3 == 0:
            shutil.rmtree(old, ignore_errors=True)
            shutil.copytree(volume, old)
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, volume],
            env={**os.environ, "PYTHONPATH": os.fspath(sources)}, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert writer.stdout is not None
        try:
            assert writer.stdout.readline() == b"mounted\n"
            # Until it has sealed a random number of records: no clock decides.
            wanted, seen = rng.randrange(5, 400), 0
            while seen < wanted and writer.poll() is None:
                seen = sum(
                    file.stat().st_size // 32
                    for file in notes.iterdir()
                    if file.name.startswith(f"{writer.pid}-")
                )
            assert writer.poll() is None
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            writer.stdout.close()
    ledger = Ledger()
    assert ledger.join(notes, "here") > 100
    assert not ledger.repeats


@pytest.mark.fuse
@pytest.mark.userns
def test_the_real_command_through_builds_and_boots(
    audited_sources: tuple[Path, Path], make_instance: MakeInstance, serdab: Command
) -> None:
    """Builder, kernel process and fs servers, all of them running the copy that audits itself."""
    sources, notes = audited_sources
    serdab.env["PYTHONPATH"] = os.fspath(sources)
    instance = make_instance(files={"/etc/changing": b"one" * 5000})
    entries = len(list(notes.iterdir()))
    assert entries, "the builder noted nothing"
    for turn in range(2):
        result = instance.run("/bin/cp", "/etc/changing", f"/root/copy {turn}")
        assert result.returncode == 0, result.stderr.decode()
    assert len(list(notes.iterdir())) > entries, "no fs server noted anything"
    (instance.path / "image/etc/changing").write_bytes(b"two" * 5000)
    assert instance.key is not None
    serdab.ok("-C", instance.path, "build", "--image-key", instance.key)
    ledger = Ledger()
    assert ledger.join(notes, "here") > 10
    assert not ledger.repeats
