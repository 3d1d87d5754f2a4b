# SPDX-License-Identifier: Apache-2.0
"""A program inside goes for what the next verb on the host would obey, through /host.

Config, sources, owners files, staging directories, what is built, the writable layer: whether they
are there or not yet, by every call, by a second name, and while the host replaces them. Afterwards
the tree is what it was, and nothing that the program wrote is signed.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.command import Started, describe
from tests.harness.cprogram import CompileC
from tests.sandbox.conftest import Box, Place, place, probe_program

__all__ = ["place", "probe_program"]

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

THERE = ("Occlum.json", "image", "initfs")
NOT_THERE = (
    "image.owners",
    "initfs.owners",
    "Occlum.json.tmp",
    ".build-staging",
    ".build-staging-old",
    ".rekey-staging",
    ".rekey-staging-old",
    "pack.tar.gz.new-17",
    "occlum.JSON",
    "IMAGE",
)
EMPTY = ("build", "run")
REFUSED = {"ENOENT", "EBUSY", "EEXIST", "EISDIR", "ENOTDIR", "EROFS"}


@pytest.fixture(scope="module")
def meddler(compile_c: CompileC) -> bytes:
    source = (Path(__file__).parent / "meddler.c").read_text()
    return compile_c(source, flags=("-static", "-D_GNU_SOURCE")).read_bytes()


MakeBox = Callable[..., Box]


@pytest.fixture
def make_box(place: Place, probe_program: Path, meddler: bytes) -> MakeBox:
    def make(change: Callable[[dict[str, object]], None] | None = None) -> Box:
        return place.build(probe_program, change, files={"/bin/meddler": meddler})

    return make


@pytest.fixture(scope="module")
def shared(place: Place, probe_program: Path, meddler: bytes) -> Box:
    """One instance for the tests that leave it as it was."""
    return place.build(probe_program, files={"/bin/meddler": meddler})


def tree(path: Path, *, but: tuple[str, ...] = ("run",)) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of everything below a directory."""
    out = {}
    for folder, directories, names in os.walk(path):
        if Path(folder) == path:
            directories[:] = [name for name in directories if name not in but]
        for name in (*directories, *names):
            entry = Path(folder, name)
            mode = entry.lstat().st_mode
            if entry.is_symlink():
                content = os.fsencode(os.readlink(entry))
            else:
                content = b"" if entry.is_dir() else entry.read_bytes()
            out[str(entry.relative_to(path))] = (mode, content)
    return out


def measurements(box: Box) -> dict[str, object]:
    fields: dict[str, object] = json.loads(box.command.ok("--json", "-C", box.path, "build"))
    return fields


def config_of(box: Box, **changes: object) -> None:
    path = box.path / "Occlum.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@contextmanager
def at_work(box: Box, *argv: str, tells: bytes) -> Iterator[Started]:
    """A program inside that has told, and waits for a line."""
    with box.command.popen(
        "-C", box.path, "run", "/bin/meddler", *argv, stdin=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == tells
        yield process


def go_on(process: Started) -> list[str]:
    """Let it go on; return its lines."""
    out, err = process.communicate(b"\n", timeout=60)
    assert process.returncode == 0, err
    return out.decode().splitlines()


class TestNames:
    def test_nothing_is_changed_made_or_moved_at_any_of_them(self, shared: Box) -> None:
        before, first = tree(shared.path), measurements(shared)
        out = shared.out("/bin/meddler", "make", "/host", *THERE, *NOT_THERE, *EMPTY)
        answers = [tuple(line.split()) for line in out.splitlines()]
        assert len(answers) == 13 * (len(THERE) + len(NOT_THERE) + len(EMPTY))
        done = {(name, act) for name, act, answer in answers if answer == "done"}
        assert done == {(name, "stat") for name in EMPTY}
        assert {answer for _, _, answer in answers} - {"done"} <= REFUSED
        making = {"mkdir", "symlink", "mkfifo", "link", "rename", "rename-dir", "create"}
        refused = {answer for name, act, answer in answers if act in making and name not in EMPTY}
        assert refused == {"EBUSY"}
        assert tree(shared.path) == before
        second = measurements(shared)
        assert {**second, "sealed": []} == {**first, "sealed": []}

    def test_they_are_not_listed(self, shared: Box) -> None:
        (shared.path / "image.owners").write_text('{"format": 1, "owners": []}')
        try:
            assert shared.out("/bin/ls", "-A", "/host").split() == ["build", "run"]
        finally:
            (shared.path / "image.owners").unlink()

    def test_a_hard_link_of_the_host_leads_to_none_of_them(self, shared: Box) -> None:
        (shared.path / "share").mkdir()
        os.link(shared.path / "Occlum.json", shared.path / "share/conf")
        try:
            out = shared.out("/bin/meddler", "make", "/host/share", "conf")
            answers = dict(line.split()[1:] for line in out.splitlines())
            assert "done" not in answers.values()
            assert shared.out("/bin/ls", "-A", "/host/share") == ""
        finally:
            (shared.path / "share/conf").unlink()
            (shared.path / "share").rmdir()

    def test_the_rest_is_passed_both_ways_as_before(self, make_box: MakeBox) -> None:
        box = make_box()
        assert box.out("/bin/meddler", "pass", "/host") == "ok"
        assert (box.path / "b").read_text() == "Conte"
        assert (box.path / "b").stat().st_nlink == 2
        assert (box.path / "b").stat().st_uid == box.path.stat().st_uid
        assert os.readlink(box.path / "work/l") == "b"


class TestReplacedOnTheHost:
    def test_a_build_beside_a_program_leaves_build_empty_and_unwritable(
        self, make_box: MakeBox
    ) -> None:
        box = make_box()
        with at_work(
            box, "lock", "/host/.", "/host/build", "/host/run", tells=b"locked"
        ) as process:
            (box.path / "image/new").write_text("new")
            # The program's locks are not the host's: this build does not wait, nor fail.
            assert measurements(box)["sealed"] == ["image"]
            assert go_on(process) == []
        script = "ls -A /host/build; echo x > /host/build/x || echo refused"
        box.command.ok("-C", box.path, "start")
        try:
            (box.path / "image/new").write_text("newer")
            box.command.ok("-C", box.path, "build")
            done = box.command.run("-C", box.path, "exec", "/bin/sh", "-c", script)
            assert done.stdout == b"refused\n", describe(done)
            done = box.command.run("-C", box.path, "exec", "/bin/ls", "-A", "/host")
            assert done.stdout.split() == [b"build", b"run"], describe(done)
        finally:
            box.command.ok("-C", box.path, "stop", "-t", "0")

    def test_what_the_host_moves_to_a_name_takes_nothing_from_who_has_it_open(
        self, make_box: MakeBox
    ) -> None:
        box = make_box()
        conf = (box.path / "Occlum.json").read_bytes()
        owner = box.path.stat()
        # An editor's way: a new file beside the old one; and a tree prepared beside image/.
        (box.path / "edited").write_bytes(conf)
        (box.path / "tree/etc").mkdir(parents=True)
        (box.path / "tree/etc/motd").write_text("fine")
        made = [box.path / name for name in ("edited", "tree", "tree/etc", "tree/etc/motd")]
        for path in made:
            os.chown(path, owner.st_uid, owner.st_gid)
        held = ("/host/edited", "/host/tree/etc", "/host/tree/etc/motd")
        with at_work(box, "hold", *held, tells=b"open") as process:
            os.rename(box.path / "edited", box.path / "Occlum.json")
            os.rename(box.path / "initfs", box.path.parent / "initfs")
            os.rename(box.path / "tree", box.path / "initfs")
            assert go_on(process) == [f"{path} EPERM" for path in held]
        assert (box.path / "Occlum.json").read_bytes() == conf
        assert os.listdir(box.path / "initfs/etc") == ["motd"]
        assert (box.path / "initfs/etc/motd").read_text() == "fine"

    def test_a_key_moved_over_a_key_stays_unreadable(self, make_box: MakeBox) -> None:
        def name_a_key(config: dict[str, object]) -> None:
            keys = [{"name": "data", "source": "/PLACE"}]
            config["serdab"] = {"runtime_mounts": {"keys": keys}}

        box = make_box(name_a_key)
        key = box.path / "data.key"
        keys = [{"name": "data", "source": str(key)}]
        config_of(box, serdab={"runtime_mounts": {"keys": keys}})
        box.command.ok("gen-image-key", key)
        box.command.ok("-C", box.path, "build")
        box.command.ok("-C", box.path, "start")
        read = ("-C", box.path, "exec", "/bin/cat", "/host/data.key")
        try:
            for number in range(3):
                assert box.command.run(*read).returncode == 1
                new = box.path.parent / f"new{number}.key"
                box.command.ok("gen-image-key", new)
                os.rename(new, key)
            done = box.command.run(*read)
            assert (done.returncode, done.stdout) == (1, b""), describe(done)
            done = box.command.run("-C", box.path, "exec", "/bin/ls", "-A", "/host")
            assert done.stdout.split() == [b"build", b"run"], describe(done)
        finally:
            box.command.ok("-C", box.path, "stop", "-t", "0")


class TestShownFromAbove:
    def test_a_parent_directory_hides_every_instance_below_it(self, make_box: MakeBox) -> None:
        def show_parent(config: dict[str, object]) -> None:
            mounts = config["mount"]
            assert isinstance(mounts, list)
            next(line for line in mounts if line["type"] == "hostfs")["source"] = ".."

        box = make_box(show_parent)
        other = box.path.parent / "other"
        box.command.ok("new", other)
        (box.path.parent / "plain/image").mkdir(parents=True)
        os.chown(box.path.parent / "plain/image", box.path.stat().st_uid, box.path.stat().st_gid)
        before = tree(box.path), tree(other)
        for name in (box.path.name, "other"):
            out = box.out("/bin/meddler", "make", f"/host/{name}", *THERE, *NOT_THERE)
            assert [line for line in out.splitlines() if line.endswith("done")] == []
        script = "mv /host/other /host/x; mv /host/box /host/y; ls -A /host/other /host/plain"
        done = box.run("/bin/sh", "-c", script)
        assert done.stdout.split() == [b"/host/other:", b"run", b"/host/plain:", b"image"], (
            describe(done)
        )
        assert (tree(box.path), tree(other)) == before

    def test_nothing_becomes_an_instance(self, make_box: MakeBox) -> None:
        box = make_box()
        script = "cd /host; mkdir d; echo {} > d/Occlum.json; echo {} > f; mv f d/Occlum.json; ls d"
        done = box.run("/bin/sh", "-c", script)
        assert done.stdout == b"", describe(done)
        assert os.listdir(box.path / "d") == []


class TestShownOnRequest:
    def test_a_source_tree_is_read_only(self, make_box: MakeBox) -> None:
        def show_image(config: dict[str, object]) -> None:
            mounts = config["mount"]
            assert isinstance(mounts, list)
            mounts.append({"target": "/source", "type": "hostfs", "source": "image"})

        box = make_box(show_image)
        before = tree(box.path)
        script = "cat /source/bin/sh | /bin/busybox head -c 4; echo x > /source/x || echo refused"
        assert box.out("/bin/sh", "-c", script) == "\x7fELFrefused"
        assert tree(box.path) == before

    @pytest.mark.parametrize("source", ["build", "run", "image/bin"])
    def test_what_is_built_and_what_lies_deeper_is_refused(
        self, make_box: MakeBox, source: str
    ) -> None:
        box = make_box()
        mounts = json.loads((box.path / "Occlum.json").read_text())["mount"]
        config_of(box, mount=[*mounts, {"target": "/source", "type": "hostfs", "source": source}])
        box.command.ok("-C", box.path, "build")
        done = box.run("/bin/true")
        assert done.returncode == 125
        assert b"never shown to programs" in done.stderr, describe(done)


class TestNamedOnTheCommandLine:
    @pytest.mark.parametrize("where", ["", "share/", "link:"])
    def test_a_key_where_programs_write_is_refused(self, make_box: MakeBox, where: str) -> None:
        box = make_box()
        (box.path / "share").mkdir()
        outside = box.path.parent / "outside.key"
        box.command.ok("gen-image-key", outside)
        key = box.path / f"{where.rstrip(':')}x.key"
        if where == "link:":
            key.symlink_to(outside)
        else:
            key.write_bytes(outside.read_bytes())
        os.chown(key, box.path.stat().st_uid, -1, follow_symlinks=False)
        before = tree(box.path)
        for words, code in (
            (("build", "--image-key", key), 2),
            (("build", "--sign-key", key), 2),
            (("build", "--sign-key", outside, "--sign-tool", key), 2),
            (("rekey", "--image-key", outside, "--new-image-key", key), 2),
            (("rebind", "--image-key", key), 2),
            (("package", "--image-key", key), 2),
            (("mount", "--image-key", key, "/mnt"), 2),
            (("fsck", "--image-key", key), 2),
            (("start", "--image-key", key), 2),
            (("run", "--image-key", key, "/bin/true"), 125),
            (("run", "--pin-file", key, "/bin/true"), 125),
        ):
            done = box.command.run("-C", box.path, *words)
            assert done.returncode == code, describe(done)
            assert b"programs of this instance can read and replace" in done.stderr, describe(done)
            assert b"hint: move it" in done.stderr
        assert tree(box.path) == before

    def test_one_in_a_directory_that_a_mount_line_shows_is_refused(self, make_box: MakeBox) -> None:
        box = make_box()
        shown = box.path.parent / "shown"
        shown.mkdir()
        key = shown / "k"
        key.write_bytes(b"x")
        mounts = json.loads((box.path / "Occlum.json").read_text())["mount"]
        line = {"target": "/data", "type": "hostfs", "source": "../shown"}
        config_of(box, mount=[*mounts, line])
        done = box.command.run("-C", box.path, "build", "--image-key", key)
        assert done.returncode == 2
        assert str(key).encode() in done.stderr

    def test_one_beside_the_instance_or_in_a_hidden_place_is_not(self, make_box: MakeBox) -> None:
        box = make_box()
        key = box.path.parent / "k"
        box.command.ok("gen-image-key", key)
        box.command.ok("-C", box.path, "build", "--image-key", key)
        done = box.command.run("build", "--image-key", "../k", cwd=box.path)
        assert done.returncode == 0, describe(done)

    def test_a_bom_there_is_told_in_one_line(self, make_box: MakeBox) -> None:
        box = make_box()
        (box.path / "share.yaml").write_text("targets: []\n")
        outside = box.path.parent / "outside.yaml"
        outside.write_text("targets: []\n")
        root = box.path / "image"
        done = box.command.run("copy-bom", "-f", box.path / "share.yaml", "--root", root)
        assert done.returncode == 0, describe(done)
        lines = [line for line in done.stderr.splitlines() if b"programs of the instance" in line]
        assert len(lines) == 1
        done = box.command.run("copy-bom", "-f", outside, "--root", root)
        assert b"programs of the instance" not in done.stderr


class TestUsersDirectories:
    def test_the_user_s_settings_are_hidden_where_home_is_shown(
        self, place: Place, probe_program: Path
    ) -> None:
        home = Path(place.command.env["HOME"])

        def show_home(config: dict[str, object]) -> None:
            mounts = config["mount"]
            assert isinstance(mounts, list)
            mounts.append({"target": "/home", "type": "hostfs", "source": str(home)})

        box = place.build(probe_program, show_home)
        config = Path(place.command.env["XDG_CONFIG_HOME"])
        (config / "serdab").mkdir(parents=True, exist_ok=True)
        (config / "serdab/signers").write_text("")
        (config / "other").write_text("other")
        for path in (config, config / "serdab", config / "serdab/signers", config / "other"):
            os.chown(path, home.stat().st_uid, home.stat().st_gid)
        script = (
            "cd /home; ls -A config; cat config/serdab/signers; mkdir config/serdab;"
            " mv config c; ls state cache"
        )
        done = box.run("/bin/sh", "-c", script)
        assert sorted(done.stdout.split()) == [b"cache:", b"other", b"state:"], describe(done)
        assert os.listdir(config / "serdab") == ["signers"]
