# SPDX-License-Identifier: Apache-2.0
"""What is found for a program is what its loader loads: both are asked, of files of each kind."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from serdab.instance.elf import Program, read_program
from serdab.instance.libraries import Libraries
from serdab.instance.shebang import split_string
from tests.harness.sampling import WHOLE

GLIBC: Final = "/lib64/ld-linux-x86-64.so.2"
MUSL: Final = "/lib/ld-musl-x86_64.so.1"
PLACES: Final = ("/usr", "/opt")
#: One in so many of the ELF files of this machine, chosen by the hash of their path.
ONE_IN: Final = 80

pytestmark = pytest.mark.skipif(
    not os.path.exists(GLIBC) or shutil.which("gcc") is None,
    reason="needs gcc and the loader of x86-64",
)


def program(path: Path | str) -> Program:
    found = read_program(str(path))
    assert isinstance(found, Program)
    return found


def make(path: Path, *flags: str | Path, needs: tuple[Path, ...] = (), musl: bool = False) -> Path:
    """Link an empty library, or with ``-pie`` a program, without a C library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = [] if "-pie" in flags else ["-shared", f"-Wl,-soname,{path.name}"]
    loader = f"-Wl,--dynamic-linker={MUSL if musl else GLIBC}"
    linked = ["-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined", "-Wl,-e,0", loader]
    command = ["gcc", "-nostdlib", "-fPIC", *kind, "-o", str(path), "-x", "c", "/dev/null"]
    subprocess.run([*command, "-x", "none", *linked, *flags, *needs], check=True)
    return path


def loaded(path: Path | str, *, by_kernel: bool = False) -> tuple[set[str], set[str]]:
    """Return what the loader of a file loads, by path, and the names that it does not find."""
    elf = program(path)
    if elf.is_musl:
        command, env = [MUSL, "--list", path], {}
    else:
        # Started by name a loader never runs the program, whatever is set-user-ID.
        command = [path] if by_kernel else [GLIBC, path]
        env = {"LD_TRACE_LOADED_OBJECTS": "1"}
    done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, check=False)
    found, missing = set(), set()
    for line in done.stdout.splitlines():
        name, _, place = line.strip().rsplit(" (0x", 1)[0].partition(" => ")
        if place == "not found":
            missing.add(name)
        elif name != "linux-vdso.so.1" and "statically" not in name:
            found.add(os.path.normpath(place or name))
    for line in done.stderr.splitlines():
        if line.startswith("Error loading shared library "):
            missing.add(line.removeprefix("Error loading shared library ").split(": ")[0])
    return found - _loaders(elf), missing


def _loaders(elf: Program) -> set[str]:
    return {
        elf.interpreter,
        GLIBC,
        MUSL,
        os.path.realpath(GLIBC),
        "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        "ldd",
    }


def found(path: Path | str, at: str = "") -> tuple[set[str], set[str]]:
    """Return the same as we find it, without variants."""
    libraries, missing = Libraries().closure(program(path), at=at)
    paths = {os.path.normpath(one.path) for one in libraries if not one.is_variant}
    return paths - _loaders(program(path)), {name for name, _ in missing}


def dynamic_files() -> Iterator[str]:
    """Yield the dynamically linked files of this machine and processor, or some of them."""
    for place in PLACES:
        for directory, _, names in os.walk(place):
            for name in names:
                path = os.path.join(directory, name)
                digest = hashlib.sha256(os.fsencode(path)).digest()
                if not WHOLE and int.from_bytes(digest[:4], "big") % ONE_IN:
                    continue
                if stat.S_ISREG(os.lstat(path).st_mode) and _is_dynamic(path):
                    yield path


def _is_dynamic(path: str) -> bool:
    try:
        elf = read_program(path)
    except (ValueError, PermissionError):
        return False  # files of debuggers, whose tables are empty; what a user may run, not read
    if not isinstance(elf, Program) or not elf.needed:
        return False
    return (elf.machine, elf.bits) == ("EM_X86_64", 64)


@pytest.mark.sampled
def test_on_the_files_of_this_machine_nothing_differs() -> None:
    libraries = list(dynamic_files())
    assert len(libraries) > 5
    differing = {path: (loaded(path), found(path)) for path in libraries}
    assert {path: both for path, both in differing.items() if both[0] != both[1]} == {}


class TestOrigin:
    def test_of_a_program_named_by_a_link_it_is_where_the_file_lies(self, tmp_path: Path) -> None:
        library = make(tmp_path / "jre/lib/liba.so")
        make(tmp_path / "jre/bin/java", "-pie", "-Wl,-rpath,$ORIGIN/../lib", needs=(library,))
        link = tmp_path / "java"
        link.symlink_to("jre/bin/java")
        assert found(link) == loaded(link, by_kernel=True) == ({str(library)}, set())

    def test_of_a_library_behind_a_link_it_is_where_it_was_found(self, tmp_path: Path) -> None:
        deep = make(tmp_path / "lib/libdeep.so")
        real = make(tmp_path / "real/liba.so", "-Wl,-rpath,$ORIGIN", needs=(deep,))
        (tmp_path / "lib/liba.so").symlink_to("../real/liba.so")
        path = make(tmp_path / "main", "-pie", f"-Wl,-rpath,{tmp_path}/lib", needs=(real,))
        assert found(path) == loaded(path)
        assert found(path)[0] == {str(tmp_path / "lib/liba.so"), str(deep)}

    def test_in_the_name_of_a_library_and_of_one_that_is_missing(self, tmp_path: Path) -> None:
        first = make(tmp_path / "lib/liba.so", "-Wl,-soname,$ORIGIN/lib/liba.so")
        gone = make(tmp_path / "libb.so", "-Wl,-soname,${ORIGIN}/libb.so")
        path = make(tmp_path / "main", "-pie", needs=(first, gone))
        gone.unlink()
        assert found(path)[0] == loaded(path)[0] == {str(first)}
        assert found(path)[1] == {"${ORIGIN}/libb.so"}
        assert loaded(path)[1] == {str(gone)}


@pytest.mark.parametrize("token", ["$LIB", "${LIB}", "$LIBRARY", "$PLATFORM"])
def test_tokens_are_those_of_the_loader(tmp_path: Path, token: str) -> None:
    there = subprocess.run(
        [GLIBC, "--list-diagnostics"], capture_output=True, text=True, check=True
    ).stdout
    values = dict(line.split("=", 1) for line in there.splitlines() if "=" in line)
    place = {
        "$LIB": values["dl_dst_lib"],
        "${LIB}": values["dl_dst_lib"],
        "$PLATFORM": values["dl_platform"],
    }.get(token, '"$LIBRARY"')
    library = make(tmp_path / place.strip('"') / "liba.so")
    path = make(tmp_path / "main", "-pie", f"-Wl,-rpath,{tmp_path}/{token}", needs=(library,))
    libraries, missing = Libraries().closure(program(path))
    assert loaded(path) == ({str(library)}, set())
    assert ([one.path for one in libraries], missing) == ([str(library)], [])


class TestPaths:
    @pytest.mark.parametrize("first", ["--enable-new-dtags", "--disable-new-dtags"])
    @pytest.mark.parametrize("second", ["--enable-new-dtags", "--disable-new-dtags"])
    def test_rpath_is_inherited_and_runpath_is_not(
        self, tmp_path: Path, first: str, second: str
    ) -> None:
        deep = make(tmp_path / "one/libdeep.so")
        empty = tmp_path / "two"
        middle = make(tmp_path / "one/libmiddle.so", f"-Wl,-rpath,{empty},{second}", needs=(deep,))
        path = make(
            tmp_path / "main", "-pie", f"-Wl,-rpath,{tmp_path}/one,{first}", needs=(middle,)
        )
        assert found(path) == loaded(path)

    @pytest.mark.parametrize("soname", ["libother.so", "liba.so"])
    def test_a_library_is_known_by_each_of_its_names(self, tmp_path: Path, soname: str) -> None:
        real = make(tmp_path / "a/liba.so", f"-Wl,-soname,{soname}")
        (tmp_path / "b").mkdir()
        os.link(real, tmp_path / "b/libsame.so")
        second = make(tmp_path / "c/libc1.so", "-Wl,-rpath,$ORIGIN/../b", "-Wl,-soname,libc1.so")
        subprocess.run(["cp", real, tmp_path / "x.so"], check=True)
        path = make(
            tmp_path / "main", "-pie", f"-Wl,-rpath,{tmp_path}/a:{tmp_path}/c", needs=(real, second)
        )
        (tmp_path / "a" / soname).touch()
        if soname != "liba.so":
            (tmp_path / "a" / soname).unlink()
            os.link(real, tmp_path / "a" / soname)
        assert found(path) == loaded(path)

    def test_only_named_directories_where_a_file_wants_that(self, tmp_path: Path) -> None:
        libc = Path("/lib/x86_64-linux-gnu/libz.so.1")
        if not libc.exists():
            pytest.skip("no zlib")
        path = make(tmp_path / "main", "-pie", "-Wl,-z,nodefaultlib", needs=(libc,))
        assert found(path)[1] == loaded(path)[1] == {"libz.so.1"}


class TestOtherEntries:
    def test_filters_are_loaded_and_auxiliaries_if_they_are_there(self, tmp_path: Path) -> None:
        make(tmp_path / "libfull.so")
        make(tmp_path / "libfast.so")
        library = make(
            tmp_path / "liba.so",
            f"-Wl,-rpath,{tmp_path}",
            *("-Wl,-F,libfull.so", "-Wl,-f,libfast.so", "-Wl,-f,libgone.so"),
        )
        path = make(tmp_path / "main", "-pie", f"-Wl,-rpath,{tmp_path}", needs=(library,))
        assert found(path)[0] == loaded(path)[0]
        assert found(path)[0] == {str(tmp_path / f"lib{name}.so") for name in ("full", "fast", "a")}
        # It tells of the one that is missing, and starts the program.
        assert (found(path)[1], loaded(path)[1]) == (set(), {"libgone.so"})

    @pytest.mark.parametrize("flag", ["--audit", "--depaudit"])
    def test_audit_libraries_come_along_with_theirs(self, tmp_path: Path, flag: str) -> None:
        deep = make(tmp_path / "libdeep.so")
        audit = make(tmp_path / "libaudit.so", f"-Wl,-rpath,{tmp_path}", needs=(deep,))
        path = make(tmp_path / "main", "-pie", f"-Wl,{flag},{audit}:/nowhere/lib.so")
        assert found(path) == ({str(audit), str(deep)}, set())


def test_of_each_kind_of_processor_its_library_is_found(tmp_path: Path) -> None:
    deep = make(tmp_path / "libdeep.so")
    plain = make(tmp_path / "liba.so")
    levels = [f"x86-64-v{level}" for level in (2, 3, 4)]
    for level in levels:
        make(
            tmp_path / "glibc-hwcaps" / level / "liba.so",
            f"-Wl,-rpath,{tmp_path}",
            needs=(deep,) if level == "x86-64-v4" else (),
        )
    path = make(tmp_path / "main", "-pie", f"-Wl,-rpath,{tmp_path}", needs=(plain,))
    libraries, missing = Libraries().closure(program(path))
    paths = {one.path: one.is_variant for one in libraries}
    variants = {str(tmp_path / "glibc-hwcaps" / level / "liba.so") for level in levels}
    assert paths == {str(plain): False, str(deep): False} | dict.fromkeys(variants, True)
    assert loaded(path)[0] <= set(paths)
    assert missing == []


@pytest.mark.skipif(not os.path.exists(MUSL), reason="no musl")
class TestMusl:
    @pytest.mark.parametrize(
        "paths", ["$ORIGIN/lib", "${ORIGIN}/lib", "$LIB:$ORIGIN/lib", "/nowhere:$ORIGIN/lib"]
    )
    def test_tokens_and_inheritance(self, tmp_path: Path, paths: str) -> None:
        deep = make(tmp_path / "lib/libdeep.so")
        middle = make(tmp_path / "lib/libmiddle.so", needs=(deep,))
        path = make(tmp_path / "main", "-pie", f"-Wl,-rpath,{paths}", needs=(middle,), musl=True)
        assert program(path).is_musl
        assert found(path)[0] == loaded(path)[0]
        assert found(path)[1] >= loaded(path)[1]

    def test_the_first_file_that_opens_ends_the_search(self, tmp_path: Path) -> None:
        library = make(tmp_path / "right/liba.so")
        (tmp_path / "wrong").mkdir()
        (tmp_path / "wrong/liba.so").write_bytes(b"no library")
        path = make(
            tmp_path / "main",
            *("-pie", f"-Wl,-rpath,{tmp_path}/wrong:{tmp_path}/right"),
            needs=(library,),
            musl=True,
        )
        assert found(path) == loaded(path) == (set(), {"liba.so"})

    def test_no_token_in_a_name(self, tmp_path: Path) -> None:
        library = make(tmp_path / "liba.so", "-Wl,-soname,$ORIGIN/liba.so")
        path = make(tmp_path / "main", "-pie", needs=(library,), musl=True)
        assert found(path) == loaded(path) == (set(), {"$ORIGIN/liba.so"})


@pytest.mark.parametrize(
    "text",
    [
        "a b\tc",
        "'a b' \"c d\"",
        r"a\_b 'c\_d' " + r'"e\_f"',
        r"x\ty\n z",
        r"'it\'s' 'back\\slash' 'plain\t'",
        "a#b #c d",
        r"a \c b",
        r"'' a",
        "x'y'z\"w\"",
        r"\#a \$b",
    ],
)
def test_words_are_split_as_env_does(text: str) -> None:
    printed = r"""printf [%s]\\n """
    done = subprocess.run(
        ["env", f"-S{printed}{text}"], capture_output=True, text=True, check=True
    ).stdout
    assert "".join(f"[{word}]\n" for word in split_string(text)) == done


@pytest.mark.parametrize("text", ["'open", '"open', r"bad\q", "end\\", "${HOME}/x"])
def test_what_env_refuses_or_asks_the_environment_names_nothing(text: str) -> None:
    assert split_string(text) == []
