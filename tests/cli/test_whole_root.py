# SPDX-License-Identifier: Apache-2.0
"""A root file system from elsewhere as image/: its devices, its owners, and trees that are no such.

As debootstrap(8) makes one, or as ``docker export`` writes it.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import stat
import tarfile
from pathlib import Path

import pytest

from serdab.config import parse_boot_config
from serdab.instance.ownersfrom import owners_of_file
from serdab.sefs.image import open_image
from serdab.vfs.api import ROOT_INO
from tests.harness.command import Command, describe
from tests.harness.instances import make_new

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


@pytest.fixture
def app(serdab: Command, tmp_path: Path) -> Path:
    """An instance with a program, not built yet."""
    path = tmp_path / "app"
    make_new(serdab, path)
    shutil.copy("/bin/busybox", path / "image/bin/sh")
    return path


def said(serdab: Command, app: Path, *args: str | Path) -> str:
    result = serdab.run("-C", app, "build", *args)
    assert result.returncode == 0, describe(result)
    return result.stderr.decode()


def add_sockets(directory: Path, count: int) -> None:
    here = os.getcwd()
    os.chdir(directory)  # a socket's path has 108 bytes
    try:
        for number in range(count):
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(f"s{number:02}")
    finally:
        os.chdir(here)


def test_what_cannot_be_sealed_is_left_out_and_said(serdab: Command, app: Path) -> None:
    add_sockets(app / "image/tmp", 20)
    os.mkfifo(app / "image/tmp/fifo")
    if os.geteuid() == 0:
        os.mknod(app / "image/dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    told = said(serdab, app)
    lines = [line for line in told.splitlines() if "left out" in line]
    if os.geteuid() == 0:
        assert lines.pop(0) == "serdab: image/dev/null is a device: left out"
    assert lines[0] == "serdab: image/tmp/s00 is a socket: left out"
    assert lines[-1].endswith(" more are left out")
    assert len(lines) <= 9
    listed = serdab.ok("-C", app, "run", "/bin/sh", "-c", "ls /tmp; echo > /dev/null")
    assert "s00" not in listed


def sealed_owner(app: Path, path: str) -> tuple[int, int]:
    config = parse_boot_config((app / "build/.Occlum_sys.json.protected").read_bytes())
    image = open_image(app / "build/mount/__ROOT", key=None, expected_mac=config.root_mac)
    try:
        ino = ROOT_INO
        for part in path.encode().split(b"/"):
            entry = image.dirent(ino, part)
            assert entry is not None
            ino = entry.ino
        inode = image.inode(ino)
        assert inode is not None
        return inode.uid, inode.gid
    finally:
        image.close()


def archive(path: Path, owners: dict[str, tuple[int, int]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, (uid, gid) in owners.items():
            entry = tarfile.TarInfo(name)
            entry.uid, entry.gid = uid, gid
            tar.addfile(entry, io.BytesIO())
    return path


MTREE = r"""#mtree
/set type=file uid=0 gid=0 mode=0644
.               type=dir uid=7
    bin         type=dir
        sh      uid=1000 \
                gid=1001
    ..
    odd\040name uid=5 gid=6
..
./tmp/x time=1.0 uid=8 gid=9
/unset uid
    none mode=0600
"""


class TestOwners:
    def test_of_an_archive_and_of_a_list(self, serdab: Command, app: Path, tmp_path: Path) -> None:
        packed = archive(tmp_path / "root.tar.gz", {"./": (9, 9), "./bin/sh": (1000, 1001)})
        said(serdab, app, "--owners", packed)
        assert sealed_owner(app, "bin/sh") == (1000, 1001)
        assert sealed_owner(app, "bin") == (0, 0)
        first = serdab.ok("-C", app, "print", "root-mac")
        serdab.ok("-C", app, "build", "--check", "--owners", packed)
        said(serdab, app, "--owners", packed)
        assert serdab.ok("-C", app, "print", "root-mac") == first
        said(serdab, app)  # it is an option of each build
        assert serdab.ok("-C", app, "print", "root-mac") != first
        listed = tmp_path / "root.mtree"
        listed.write_text(MTREE)
        said(serdab, app, "--owners", listed)
        assert sealed_owner(app, "bin/sh") == (1000, 1001)
        assert owners_of_file(str(listed)) == {
            "bin/sh": (1000, 1001),
            "odd name": (5, 6),
            "tmp/x": (8, 9),
        }

    @pytest.mark.root
    @pytest.mark.skipif(os.geteuid() != 0, reason="chown(2) is for root")
    def test_of_the_tree_itself_below_what_a_bom_declares(self, serdab: Command, app: Path) -> None:
        os.chown(app / "image/bin/sh", 1234, 4321)
        os.chown(app / "image/tmp", 33, 33)
        (app / "image.owners").write_text(
            json.dumps({"format": 1, "owners": [{"path": "/tmp", "uid": 1, "gid": 2}]})
        )
        said(serdab, app, "--owners", "tree")
        assert sealed_owner(app, "bin/sh") == (1234, 4321)
        assert sealed_owner(app, "tmp") == (1, 2)
        said(serdab, app)
        assert sealed_owner(app, "bin/sh") == (0, 0)

    @pytest.mark.parametrize(
        "content", [b"", b"text\n", b"#mtree\nx uid=1\n", b"#mtree\nx uid=-1 gid=0\n", None]
    )
    def test_refusals_say_what_was_expected(
        self, serdab: Command, app: Path, tmp_path: Path, content: bytes | None
    ) -> None:
        path = tmp_path / "owners"
        if content is not None:
            path.write_bytes(content)
        result = serdab.run("-C", app, "build", "--owners", path)
        assert result.returncode == 2, describe(result)
        assert b"a tar archive, or an mtree(5) list" in result.stderr
        assert os.fsencode(path) in result.stderr

    def test_a_cut_archive_is_refused(self, serdab: Command, app: Path, tmp_path: Path) -> None:
        packed = archive(tmp_path / "t.gz", {f"{number}": (1, 1) for number in range(300)})
        packed.write_bytes(packed.read_bytes()[:-100])
        result = serdab.run("-C", app, "build", "--owners", packed)
        assert result.returncode == 2, describe(result)


def test_a_program_for_another_machine_is_told_before_it_is_run(
    serdab: Command, app: Path, tmp_path: Path
) -> None:
    raw = bytearray((app / "image/bin/sh").read_bytes())
    raw[18:20] = (243).to_bytes(2, "little")
    foreign = app / "image/bin/foreign"
    foreign.write_bytes(raw)
    foreign.chmod(0o755)
    line = "/bin/foreign will not start: for RISC-V, and this is "
    assert line in said(serdab, app)
    bom = tmp_path / "bom.yaml"
    bom.write_text(
        f"targets: [{{target: /bin, copy: [{{from: {app}/image/bin, files: [foreign]}}]}}]"
    )
    copied = serdab.run("copy-bom", "-f", bom, "--root", tmp_path / "tree")
    assert line in copied.stderr.decode()
    result = serdab.run("-C", app, "run", "/bin/foreign")
    assert result.returncode == 126, describe(result)
    assert b"nor a program for this machine" in result.stderr


def test_a_tree_that_nobody_filled_is_told(serdab: Command, tmp_path: Path) -> None:
    app = tmp_path / "app"
    make_new(serdab, app)
    assert f"warning: {app}/image holds no file" in said(serdab, app)
    (app / "image/etc/x").touch()
    assert "holds no file" not in said(serdab, app)


def test_where_a_directory_with_a_longer_name_lands_is_told(
    serdab: Command, tmp_path: Path
) -> None:
    (tmp_path / "etc/ssl/certs").mkdir(parents=True)
    (tmp_path / "etc/ssl/certs/a").touch()
    bom = tmp_path / "bom.yaml"
    bom.write_text(
        f"targets: [{{target: /etc, copy: [{{from: {tmp_path}/etc, dirs: [ssl/certs]}}]}}]"
    )
    result = serdab.run("copy-bom", "-f", bom, "--root", tmp_path / "tree")
    assert (tmp_path / "tree/etc/certs/a").exists()
    assert b"ssl/certs lands at /etc/certs" in result.stderr
    assert b"target: /etc/ssl keeps its place" in result.stderr
