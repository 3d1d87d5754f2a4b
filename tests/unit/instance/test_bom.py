# SPDX-License-Identifier: Apache-2.0
"""copy-bom: what ends up in the tree, and every refusal."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from serdab.errors import Error, MeasurementMismatch, UsageError
from serdab.instance import ldcache
from serdab.instance.bom import Summary, copy_bom
from serdab.instance.owners import load_owners
from serdab.linux.dirfd import DirFd


class Workshop:
    """A directory with a BOM, sources beside it and a tree to fill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = path / "image"
        self.said: list[str] = []
        self.told: list[str] = []

    def source(self, name: str, content: str = "x", mode: int = 0o644) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(mode)
        return path

    def bom(self, text: str, name: str = "bom.yaml") -> Path:
        path = self.path / name
        path.write_text(text)
        return path

    def copy(self, text: str, *, dry_run: bool = False, include: tuple[str, ...] = ()) -> Summary:
        self.said.clear()
        return copy_bom(
            str(self.bom(text)),
            str(self.root),
            include_dirs=include,
            dry_run=dry_run,
            say=self.said.append,
            tell=self.told.append,
        )

    def names(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.root)) for path in self.root.rglob("*") if not path.is_dir()
        )


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


ONE_FILE = "targets:\n- target: /opt\n  copy:\n  - files: [one]\n"


class TestCopying:
    def test_base_makes_directories_only(self, shop: Workshop) -> None:
        shop.copy("includes: [base.yaml]\n")
        assert sorted(path.name for path in shop.root.iterdir()) == sorted(
            [
                "bin",
                "dev",
                "etc",
                "ext2",
                "host",
                "lib",
                "lib64",
                "opt",
                "proc",
                "root",
                "sbin",
                "sys",
                "tmp",
            ]
        )
        assert shop.names() == []

    def test_modes_and_times_are_the_sources_whatever_the_umask(self, shop: Workshop) -> None:
        source = shop.source("one", mode=0o4751)
        os.utime(source, (1, 1))
        old = os.umask(0o077)
        try:
            shop.copy(ONE_FILE)
        finally:
            os.umask(old)
        status = (shop.root / "opt" / "one").stat()
        assert stat.S_IMODE(status.st_mode) == 0o4751
        assert status.st_mtime == 1
        assert stat.S_IMODE((shop.root / "opt").stat().st_mode) == 0o755

    @pytest.mark.parametrize("when_s", [-5, 1 << 33])
    def test_times_that_few_expect_are_kept(self, shop: Workshop, when_s: int) -> None:
        source = shop.source("d/old")
        os.utime(source, (when_s, when_s))
        shop.copy("targets: [{target: /, copy: [{dirs: [d/]}]}]")
        assert (shop.root / "old").stat().st_mtime == source.stat().st_mtime == when_s

    def test_what_cannot_be_copied_is_told_in_few_lines(self, shop: Workshop) -> None:
        for number in range(20):
            os.mkfifo(shop.source("d/file").parent / f"fifo{number:02}")
        shop.copy("targets: [{target: /, copy: [{dirs: [d/]}]}]")
        assert shop.said[0] == f"{shop.path}/d/fifo00 is a FIFO: left out"
        assert shop.said[-1] == f"{shop.path}/bom.yaml: 12 more are left out"
        assert len(shop.said) == 9

    def test_holes_stay_holes(self, shop: Workshop) -> None:
        source = shop.source("one", "")
        with open(source, "r+b") as file:
            file.truncate(1 << 30)
            os.pwrite(file.fileno(), b"middle", 500 << 20)
        shop.copy(ONE_FILE)
        copied = shop.root / "opt/one"
        assert copied.stat().st_size == 1 << 30
        assert copied.stat().st_blocks << 9 <= 1 << 20
        with open(copied, "rb") as file:
            assert os.pread(file.fileno(), 8, (500 << 20) - 1) == b"\0middle\0"

    def test_a_second_run_changes_nothing(self, shop: Workshop) -> None:
        shop.source("one")
        shop.copy(ONE_FILE)
        before = (shop.root / "opt" / "one").stat()
        assert shop.copy(ONE_FILE).copied_bytes == 0
        after = (shop.root / "opt" / "one").stat()
        assert (before.st_ino, before.st_ctime_ns) == (after.st_ino, after.st_ctime_ns)

    def test_sources_are_relative_to_the_parent_of_the_root(self, shop: Workshop) -> None:
        shop.source("sub/one")
        shop.copy("targets:\n- target: /\n  copy:\n  - from: sub\n    files: [one]\n")
        assert shop.names() == ["one"]

    def test_a_from_alone_copies_all_that_is_in_it(self, shop: Workshop) -> None:
        shop.source("sub/one")
        shop.source("sub/two/three")
        shop.copy("targets:\n- target: /a\n  copy:\n  - from: sub\n")
        assert shop.names() == ["a/one", "a/two/three"]

    def test_a_trailing_slash_copies_the_contents(self, shop: Workshop) -> None:
        shop.source("sub/one")
        shop.copy(
            "targets:\n- target: /a\n  copy:\n  - dirs: [sub/]\n- target: /b\n"
            "  copy:\n  - dirs: [sub]\n"
        )
        assert shop.names() == ["a/one", "b/sub/one"]

    def test_files_follow_links_and_can_be_renamed(self, shop: Workshop) -> None:
        shop.source("real", "content")
        (shop.path / "link").symlink_to("real")
        shop.copy(
            "targets:\n- target: /\n  copy:\n  - files:\n    - name: link\n      rename: other\n"
        )
        assert shop.names() == ["other"]
        assert not (shop.root / "other").is_symlink()

    def test_links_in_directories_stay_unless_they_leave(self, shop: Workshop) -> None:
        shop.source("outside/file", "far")
        shop.source("sub/one")
        (shop.path / "sub" / "near").symlink_to("one")
        (shop.path / "sub" / "far").symlink_to("../outside/file")
        (shop.path / "sub" / "absolute").symlink_to(shop.path / "outside")
        (shop.path / "sub" / "nowhere").symlink_to("none")
        shop.copy("targets:\n- target: /\n  copy:\n  - dirs: [sub]\n")
        assert (shop.root / "sub" / "near").readlink() == Path("one")
        assert (shop.root / "sub" / "far").read_text() == "far"
        assert not (shop.root / "sub" / "far").is_symlink()
        assert (shop.root / "sub" / "absolute" / "file").read_text() == "far"
        assert (shop.root / "sub" / "nowhere").is_symlink()
        assert any("nowhere points nowhere" in line for line in shop.said)

    def test_a_link_to_its_own_parent_does_not_go_on_for_ever(self, shop: Workshop) -> None:
        shop.source("sub/one")
        (shop.path / "sub" / "up").symlink_to(shop.path)
        shop.copy("targets:\n- target: /\n  copy:\n  - dirs: [sub]\n")
        assert shop.names() == ["sub/one"]

    def test_excludes_hold_in_directories_only(self, shop: Workshop) -> None:
        shop.source("sub/a.pyc")
        shop.source("sub/keep")
        shop.source("sub/.git/config")
        shop.source("b.pyc")
        shop.copy(
            "excludes: ['*.pyc', .git]\ntargets:\n- target: /\n  copy:\n"
            "  - dirs: [sub]\n    files: [b.pyc]\n"
        )
        assert shop.names() == ["b.pyc", "sub/keep"]

    def test_names_are_the_words_that_stand_there(self, shop: Workshop) -> None:
        for name in ("yes", "010", "1.0", "null"):
            shop.source(name)
        shop.copy("targets:\n- target: /\n  copy:\n  - files: [yes, 010, 1.0, null]\n")
        assert shop.names() == ["010", "1.0", "null", "yes"]

    def test_old_links_are_replaced_and_files_are_not(self, shop: Workshop) -> None:
        text = "targets:\n- target: /\n  createlinks:\n  - src: {}\n    linkname: link\n"
        shop.copy(text.format("one"))
        shop.copy(text.format("two"))
        assert (shop.root / "link").readlink() == Path("two")
        (shop.root / "link").unlink()
        (shop.root / "link").write_text("")
        with pytest.raises(Error, match="in the way"):
            shop.copy(text.format("three"))

    def test_a_link_in_the_tree_never_leads_to_the_host(self, shop: Workshop) -> None:
        shop.source("one")
        outside = shop.path / "host-opt"
        outside.mkdir()
        shop.root.mkdir()
        (shop.root / "opt").symlink_to(outside)
        shop.copy(ONE_FILE)
        assert list(outside.iterdir()) == []
        assert (shop.root / str(outside).lstrip("/") / "one").exists()

    def test_a_file_replaces_a_link_instead_of_writing_through_it(self, shop: Workshop) -> None:
        shop.source("one", "new")
        victim = shop.source("victim", "old")
        (shop.root / "opt").mkdir(parents=True)
        (shop.root / "opt" / "one").symlink_to(victim)
        shop.copy(ONE_FILE)
        assert victim.read_text() == "old"
        assert (shop.root / "opt" / "one").read_text() == "new"

    def test_links_that_lead_round_in_circles_end(self, shop: Workshop) -> None:
        shop.source("a/one")
        shop.source("b/two")
        (shop.path / "a" / "b").symlink_to(shop.path / "b")
        (shop.path / "b" / "a").symlink_to(shop.path / "a")
        shop.copy("targets:\n- target: /\n  copy:\n  - dirs: [a]\n")
        assert shop.names() == ["a/b/two", "a/one"]

    def test_declared_owners_are_noted_beside_the_tree(self, shop: Workshop) -> None:
        shop.source("one")
        text = "targets:\n- target: /home/me\n{}  mkdirs: [d]\n  copy:\n  - files: [one]\n"
        shop.copy(text.format("  owner: 1000:100\n"))
        owned = {"home/me", "home/me/d", "home/me/one"}
        beside = DirFd.at(str(shop.root.parent))
        assert load_owners(beside, shop.root.name) == dict.fromkeys(owned, (1000, 100))
        shop.copy(text.format(""))
        assert load_owners(beside, shop.root.name) == {}
        assert not (shop.path / "image.owners").exists()
        beside.close()
        for bad in ("me:me", "1", "-1:0", "4294967295:0"):
            with pytest.raises(UsageError, match="owner"):
                shop.copy(text.format(f"  owner: '{bad}'\n"))

    def test_dot_dot_stays_in_the_tree(self, shop: Workshop) -> None:
        shop.source("one")
        shop.copy("targets:\n- target: /../../x\n  mkdirs: [../../y]\n  copy:\n  - files: [one]\n")
        assert shop.names() == ["x/one"]
        assert (shop.root / "y").is_dir()

    def test_a_dry_run_tells_all_and_does_nothing(self, shop: Workshop) -> None:
        shop.source("one")
        shop.copy("includes: [base.yaml]\n" + ONE_FILE, dry_run=True)
        assert any(line.startswith("file /opt/one") for line in shop.told)
        assert "directory /bin" in shop.told
        assert not shop.root.exists()

    def test_variables_are_expanded(self, shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WHERE", "sub")
        monkeypatch.delenv("NOWHERE", raising=False)
        shop.source("sub/one")
        shop.source("$NOWHERE")
        shop.copy(
            "targets:\n- target: /${WHERE}\n  copy:\n  - from: $WHERE\n    files: [one]\n"
            "  - files: [$NOWHERE]\n"
        )
        assert shop.names() == ["sub/$NOWHERE", "sub/one"]
        assert len([line for line in shop.said if "NOWHERE is not set" in line]) == 1


class TestIncludes:
    def test_the_last_listed_file_wins(self, shop: Workshop) -> None:
        shop.source("a/one", "a")
        shop.source("b/one", "b")
        shop.bom("targets:\n- target: /\n  copy:\n  - from: b\n    files: [one]\n", "b.yaml")
        shop.copy(
            "includes: [b.yaml]\ntargets:\n- target: /\n  copy:\n  - from: a\n    files: [one]\n"
        )
        assert (shop.root / "one").read_text() == "b"

    def test_they_are_found_beside_the_bom_then_in_the_directories(self, shop: Workshop) -> None:
        (shop.path / "more").mkdir()
        (shop.path / "more" / "extra.yaml").write_text("targets: [{target: /extra}]\n")
        shop.copy("includes: [extra.yaml]\n", include=(str(shop.path / "more"),))
        assert (shop.root / "extra").is_dir()
        with pytest.raises(UsageError, match="included BOM is missing"):
            shop.copy("includes: [none.yaml]\n")

    def test_circles_end(self, shop: Workshop) -> None:
        shop.bom("includes: [bom.yaml]\n", "other.yaml")
        with pytest.raises(UsageError, match="circles"):
            shop.copy("includes: [other.yaml]\n")


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("targts: []", "targts"),
            ("targets: [{target: /, mkdir: [x]}]", "targets[0].mkdir"),
            ("targets: [{mkdirs: [x]}]", "targets[0].target"),
            ("targets: [{target: /, mkdirs: x}]", "targets[0].mkdirs"),
            ("targets: [{target: /, createlinks: [{src: a}]}]", "createlinks[0].linkname"),
            ("targets: [{target: /, copy: [{files: [{nam: a}]}]}]", "files[0].nam"),
            ("targets: [{target: /, copy: [{files: [{name: a, hash: xx}]}]}]", "files[0].hash"),
            ("targets: [{target: /, copy: [{files: [[a]]}]}]", "files[0]"),
            ("targets: [{target: /, target: /x}]", "targets[0].target: "),
            ("targets: [{target: /, copy: [{from: /, from: /x}]}]", "targets[0].copy[0].from: "),
            ("includes: [a]\nincludes: [b]", "found the same field again in line 2"),
            ("excludes: ['+ x']", "excludes"),
            ("targets: {", "YAML"),
            ("- a\n- b", "not a BOM"),
        ],
    )
    def test_name_the_field(self, shop: Workshop, text: str, words: str) -> None:
        with pytest.raises(UsageError) as caught:
            shop.copy(text)
        assert words in str(caught.value)
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize(
        ("text", "near"),
        [
            ("target: []", "targets"),
            ("targets: [{target: /, copi: [{from: /}]}]", "copy"),
            ("targets: [{target: /, createlink: [{src: a}]}]", "createlinks"),
        ],
    )
    def test_a_slip_gets_a_suggestion(self, shop: Workshop, text: str, near: str) -> None:
        with pytest.raises(UsageError) as caught:
            shop.copy(text)
        assert caught.value.hint == f"did you mean {near}?"

    def test_a_missing_source_is_named(self, shop: Workshop) -> None:
        with pytest.raises(UsageError) as caught:
            shop.copy(ONE_FILE)
        assert caught.value.subject == str(shop.path / "one")
        assert (caught.value.expected, caught.value.found) == ("a file", "nothing")
        with pytest.raises(UsageError):
            shop.copy("targets: [{target: /, copy: [{dirs: [none]}]}]")

    def test_all_that_is_missing_is_named_at_once_and_nothing_copied(self, shop: Workshop) -> None:
        shop.source("there")
        with pytest.raises(UsageError) as caught:
            shop.copy("targets: [{target: /, copy: [{files: [there, one], dirs: [none, there]}]}]")
        assert caught.value.subject.split("; ") == [
            f"{shop.path}/none: a directory expected, nothing found",
            f"{shop.path}/there: a directory expected, something else found",
            f"{shop.path}/one: a file expected, nothing found",
        ]
        assert caught.value.found == "3 that are not"
        for name in ("none", "there", "one"):
            assert f"named as {name} in " in caught.value.hint
        assert shop.names() == []

    def test_a_wrong_hash_names_the_right_one(self, shop: Workshop) -> None:
        source = shop.source("one")
        right = hashlib.sha256(source.read_bytes()).hexdigest().upper()
        text = "targets:\n- target: /\n  copy:\n  - files:\n    - name: one\n      hash: {}\n"
        with pytest.raises(MeasurementMismatch) as caught:
            shop.copy(text.format("AB" * 32))
        assert caught.value.found == right
        assert caught.value.exit_code == 3
        assert shop.names() == []
        shop.copy(text.format(right))
        assert shop.names() == ["one"]


def compile_(shop: Workshop, *command: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]}")
    subprocess.run(command, cwd=shop.path, check=True)


class TestLibraries:
    def test_programs_of_the_system_run_in_the_tree(self, shop: Workshop) -> None:
        text = "includes: [base.yaml]\ntargets:\n- target: /bin\n  copy:\n  - from: /bin\n"
        shop.copy(text + "    files: [bash, ls, cat]\n")
        loader = next(name for name in shop.names() if name.startswith("lib64/ld-linux"))
        listed = subprocess.run(
            [
                shop.root / loader,
                "--inhibit-cache",
                "--library-path",
                ":".join(
                    str(shop.root / part) for part in ("lib/x86_64-linux-gnu", "lib", "usr/lib")
                ),
                shop.root / "bin/bash",
                "-c",
                "echo works",
            ],
            capture_output=True,
            check=True,
        )
        assert listed.stdout == b"works\n"

    @pytest.mark.root
    @pytest.mark.skipif(os.geteuid() != 0, reason="chroot(2) is for root")
    def test_a_library_in_an_odd_place_is_found_through_the_cache(self, shop: Workshop) -> None:
        (shop.path / "odd").mkdir()
        shop.source("a.c", "int answer(void) { return 42; }\n")
        shop.source("m.c", "int answer(void); int main(void) { return answer() != 42; }\n")
        compile_(shop, "gcc", "-shared", "-fPIC", "-o", "odd/libanswer.so", "a.c")
        compile_(shop, "gcc", "-o", "main", "m.c", "-Lodd", "-lanswer", "-Wl,-rpath,$ORIGIN/odd")
        shop.copy("targets:\n- target: /bin\n  copy:\n  - files: [main]\n")
        # In the tree $ORIGIN/odd is /bin/odd, where nothing is.
        inside = f"{shop.path}/odd/libanswer.so"
        assert inside.lstrip("/") in shop.names()
        cache = ldcache.parse((shop.root / "etc/ld.so.cache").read_bytes())
        assert ("libanswer.so", inside, 0x303) in cache
        subprocess.run(["chroot", shop.root, "/bin/main"], check=True)

    @pytest.mark.root
    @pytest.mark.skipif(os.geteuid() != 0, reason="chroot(2) is for root")
    def test_a_musl_program_runs_in_the_tree(self, shop: Workshop) -> None:
        shop.source("m.c", "int main(void) { return 0; }\n")
        compile_(shop, "musl-gcc", "-o", "main", "m.c")
        compile_(shop, "musl-gcc", "-static", "-o", "static", "m.c")
        shop.copy("targets:\n- target: /bin\n  copy:\n  - files: [main, static]\n")
        assert len(shop.names()) == 3
        subprocess.run(["chroot", shop.root, "/bin/main"], check=True)
        subprocess.run(["chroot", shop.root, "/bin/static"], check=True)

    def missing(self, shop: Workshop) -> None:
        (shop.path / "odd").mkdir(exist_ok=True)
        shop.source("a.c", "int answer(void) { return 42; }\n")
        shop.source("m.c", "int answer(void); int main(void) { return answer(); }\n")
        compile_(shop, "gcc", "-shared", "-fPIC", "-o", "odd/libanswer.so", "a.c")
        compile_(shop, "gcc", "-o", "odd/main", "m.c", "-Lodd", "-lanswer")
        (shop.path / "odd" / "libanswer.so").rename(shop.path / "libanswer.so")

    def test_what_a_listed_program_lacks_is_an_error(self, shop: Workshop) -> None:
        self.missing(shop)
        text = "targets:\n- target: /bin\n  copy:\n  - files: [{name: odd/main, autodep: %s}]\n"
        with pytest.raises(Error, match="libraries are missing") as caught:
            shop.copy(text % "true")
        assert "libanswer.so" in caught.value.subject
        assert caught.value.exit_code == 1
        shop.copy(text % "false")

    def test_what_a_copied_directory_lacks_is_a_warning(self, shop: Workshop) -> None:
        self.missing(shop)
        shop.copy("targets:\n- target: /\n  copy:\n  - dirs: [odd]\n")
        assert any("libanswer.so" in line for line in shop.said)

    def test_what_comes_along_and_is_loaded_by_path_is_no_warning(self, shop: Workshop) -> None:
        self.missing(shop)
        (shop.path / "odd/server").mkdir()
        (shop.path / "libanswer.so").rename(shop.path / "odd/server/libanswer.so")
        shop.copy("targets:\n- target: /\n  copy:\n  - dirs: [odd]\n")
        assert shop.said == []

    def test_who_lacks_one_library_is_told_in_one_line(self, shop: Workshop) -> None:
        self.missing(shop)
        for name in ("second", "third"):
            shutil.copy(shop.path / "odd/main", shop.path / "odd" / name)
        shop.copy("targets:\n- target: /\n  copy:\n  - dirs: [odd]\n")
        assert len(shop.said) == 1
        assert shop.said[0].startswith("warning: libanswer.so (wanted by ")
        assert shop.said[0].endswith(" and 2 more) was not found")

    def test_what_the_tree_itself_has_is_not_missing(self, shop: Workshop) -> None:
        self.missing(shop)
        shop.copy(
            "targets:\n- target: /bin\n  copy:\n  - files: [odd/main]\n"
            "- target: /usr/lib\n  copy:\n  - files: [libanswer.so]\n"
        )

    def test_a_listed_file_beats_a_library_that_was_found(self, shop: Workshop) -> None:
        shop.source("libc.so.6", "mine")
        found = subprocess.run(["ldd", "/bin/cat"], capture_output=True, text=True, check=True)
        path = next(line.split()[2] for line in found.stdout.splitlines() if "libc.so.6" in line)
        shop.copy(
            f"targets:\n- target: /bin\n  copy:\n  - from: /bin\n    files: [cat]\n"
            f"- target: {os.path.dirname(path)}\n  copy:\n  - files: [libc.so.6]\n"
        )
        assert (shop.root / path.lstrip("/")).read_text() == "mine"


def run_with_proc(shop: Workshop, program: str) -> int:
    """Run a program of the tree with a /proc, without which no loader knows $ORIGIN."""
    (shop.root / "proc").mkdir(exist_ok=True)
    script = 'mount --rbind /proc "$1/proc" && exec chroot "$1" "$2"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(shop.root), program]
    return subprocess.run(command, check=False).returncode


class TestScripts:
    def test_the_interpreter_comes_along_with_its_libraries(self, shop: Workshop) -> None:
        shop.source("script", "#!/bin/bash\n", 0o755)
        shop.copy("targets:\n- target: /opt\n  copy:\n  - files: [script]\n")
        assert "bin/bash" in shop.names()
        assert any(name.startswith("lib64/ld-linux") for name in shop.names())

    def test_one_that_is_missing_everywhere_is_an_error(self, shop: Workshop) -> None:
        shop.source("script", "#!/opt/none/sh\n", 0o755)
        with pytest.raises(Error, match="/opt/none/sh"):
            shop.copy("targets:\n- target: /opt\n  copy:\n  - files: [script]\n")

    def test_env_is_looked_through(self, shop: Workshop) -> None:
        shop.source("script", "#!/usr/bin/env no-such-program\n", 0o755)
        with pytest.raises(Error, match="no-such-program"):
            shop.copy("targets:\n- target: /opt\n  copy:\n  - files: [script]\n")
        shop.source("script", "#!/usr/bin/env bash\n", 0o755)
        shop.copy("targets:\n- target: /opt\n  copy:\n  - files: [script]\n")
        assert {"usr/bin/env"} < set(shop.names())

    @pytest.mark.root
    @pytest.mark.skipif(os.geteuid() != 0, reason="chroot(2) is for root")
    def test_one_behind_links_keeps_its_place_and_its_libraries(self, shop: Workshop) -> None:
        """A JVM, say: /usr/bin/java is a link to a link, and the libraries lie beside the file."""
        shop.source("a.c", "int answer(void) { return 42; }\n")
        shop.source("m.c", "int answer(void); int main(void) { return answer(); }\n")
        library, real = shop.path / "jre/lib/liba.so", shop.path / "jre/bin/tool"
        for path in (library, real):
            path.parent.mkdir(parents=True)
        shared = ["-shared", "-fPIC", "-Wl,-soname,$ORIGIN/../lib/liba.so"]
        compile_(shop, "gcc", *shared, "-o", str(library), "a.c")
        compile_(shop, "gcc", "-o", str(real), "m.c", str(library))
        (shop.path / "middle").symlink_to("jre/bin/tool")
        first = shop.path / "tool"
        first.symlink_to(shop.path / "middle")
        shop.source("script", f"#!{first}\n", 0o755)
        shop.copy("targets: [{target: /bin, copy: [{files: [script]}]}]")
        inside = shop.root / str(first)[1:]
        assert os.readlink(inside) == str(shop.path / "middle")
        assert os.readlink(inside.parent / "middle") == "jre/bin/tool"
        assert run_with_proc(shop, str(first)) == 42

    @pytest.mark.root
    @pytest.mark.skipif(os.geteuid() != 0, reason="chroot(2) is for root")
    def test_a_library_asked_for_by_its_place_lies_beside_the_program(self, shop: Workshop) -> None:
        shop.source("a.c", "int answer(void) { return 42; }\n")
        shop.source("m.c", "int answer(void); int main(void) { return answer(); }\n")
        library = shop.path / "liba.so"
        compile_(
            shop,
            "gcc",
            "-shared",
            "-fPIC",
            "-Wl,-soname,$ORIGIN/liba.so",
            "-o",
            str(library),
            "a.c",
        )
        compile_(shop, "gcc", "-o", "main", "m.c", str(library))
        shop.copy("targets: [{target: /opt/x, copy: [{files: [main]}]}]")
        assert (shop.root / "opt/x/liba.so").exists()
        assert run_with_proc(shop, "/opt/x/main") == 42

    def test_a_script_may_be_run_by_a_script_even_by_itself(self, shop: Workshop) -> None:
        inner = shop.source("inner", "#!/bin/cat\n", 0o755)
        itself = shop.path / "itself"
        shop.source("itself", f"#!{itself}\n", 0o755)
        shop.source("outer", f"#!{inner}\n", 0o755)
        shop.source("other", f"#!{itself}\n", 0o755)
        shop.copy("targets: [{target: /, copy: [{files: [outer, other]}]}]")
        assert {"bin/cat", str(inner)[1:], str(itself)[1:]} <= set(shop.names())
