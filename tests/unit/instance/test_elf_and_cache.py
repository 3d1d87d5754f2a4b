# SPDX-License-Identifier: Apache-2.0
"""What programs need, read from real ELF files; the loader's cache, read and written."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serdab.instance import ldcache
from serdab.instance.elf import Program, read_program
from serdab.instance.libraries import Libraries
from serdab.instance.shebang import Script

SOURCE = "int answer(void); int main(void) { return answer(); }\n"
LIBRARY = "int answer(void) { return 42; }\n"


def program(path: str | Path) -> Program:
    found = read_program(str(path))
    assert isinstance(found, Program)
    return found


def compiler(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}")
    return found


class TestReading:
    def test_the_systems_shell_names_its_loader_and_libc(self) -> None:
        bash = program(os.path.realpath("/bin/bash"))
        assert bash.interpreter.startswith("/lib")
        assert any(name.startswith("libc.so") for name in bash.needed)
        assert not bash.is_musl

    def test_a_static_program_needs_nothing(self, tmp_path: Path) -> None:
        out = tmp_path / "static"
        (tmp_path / "x.c").write_text("int main(void) { return 0; }\n")
        subprocess.run([compiler("musl-gcc"), "-static", "-o", out, tmp_path / "x.c"], check=True)
        assert program(out).needed == ()
        assert program(out).interpreter == ""

    @pytest.mark.parametrize(
        ("line", "interpreter", "command"),
        [
            (b"#!/bin/sh\n", "/bin/sh", ""),
            (b"#! /usr/bin/python3 -I\nx", "/usr/bin/python3", ""),
            (b"#!/usr/bin/env python3\n", "/usr/bin/env", "python3"),
            (b"#!/usr/bin/env -S A=1 python3 -I\n", "/usr/bin/env", "python3"),
            (b"#!/usr/bin/env -vS -u A -i python3 -I\n", "/usr/bin/env", "python3"),
            (
                b"#!/usr/bin/env --split-string=--chdir=/x -C / 'my prog' x\n",
                "/usr/bin/env",
                "my prog",
            ),
            (b"#!/usr/bin/env -S -a name -- A=1 'B=1 2' -x\n", "/usr/bin/env", "-x"),
            (b"#!/usr/bin/env -S ${SHELL} -x\n", "/usr/bin/env", ""),
            (b"#!/usr/bin/env python3 -I\n", "/usr/bin/env", "python3"),
        ],
    )
    def test_scripts_name_their_interpreter(
        self, tmp_path: Path, line: bytes, interpreter: str, command: str
    ) -> None:
        path = tmp_path / "script"
        path.write_bytes(line)
        assert read_program(str(path)) == Script(str(path), interpreter, command)

    def test_a_line_of_env_may_say_where_to_look(self, tmp_path: Path) -> None:
        path = tmp_path / "script"
        path.write_bytes(b"#!/bin/env -S PATH=/opt/x/bin:rel:/bin tool\n")
        assert read_program(str(path)) == Script(
            str(path), "/bin/env", "tool", ("/opt/x/bin", "/bin")
        )

    @pytest.mark.parametrize("content", [b"", b"#", b"#!", b"#!  \n", b"text", b"\x7fEL"])
    def test_other_files_are_neither(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "file"
        path.write_bytes(content)
        assert read_program(str(path)) is None

    @given(st.binary(max_size=400))
    def test_damaged_elf_files_are_said_to_be_so(self, tail: bytes) -> None:
        whole = Path("/bin/true").read_bytes()
        with tempfile.NamedTemporaryFile() as file:
            file.write(whole[:64] + tail)
            file.flush()
            with contextlib.suppress(ValueError):
                read_program(file.name)


class TestFinding:
    def test_libraries_of_the_systems_python_are_those_the_loader_finds(self) -> None:
        path = os.path.realpath("/usr/bin/python3")
        if not os.path.exists(path):
            pytest.skip("no system Python")
        found, missing = Libraries().closure(program(path))
        listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        theirs = {
            line.split()[0]: os.path.realpath(line.split()[2])
            for line in listed.splitlines()
            if "=> /" in line
        }
        assert {lib.name: os.path.realpath(lib.path) for lib in found} == theirs
        assert missing == []

    @pytest.mark.parametrize("tag", ["--enable-new-dtags", "--disable-new-dtags"])
    def test_runpath_and_rpath_with_origin(self, tmp_path: Path, tag: str) -> None:
        gcc = compiler("gcc")
        (tmp_path / "lib").mkdir()
        (tmp_path / "a.c").write_text(LIBRARY)
        (tmp_path / "m.c").write_text(SOURCE)
        library = tmp_path / "lib" / "libanswer.so"
        subprocess.run([gcc, "-shared", "-fPIC", "-o", library, tmp_path / "a.c"], check=True)
        out = tmp_path / "main"
        command: list[str | Path] = [
            gcc,
            "-o",
            out,
            tmp_path / "m.c",
            "-L",
            tmp_path / "lib",
            "-lanswer",
        ]
        subprocess.run([*command, f"-Wl,-rpath,$ORIGIN/lib,{tag}"], check=True)
        elf = program(out)
        assert elf.needed[0] == "libanswer.so"
        assert (elf.runpath or elf.rpath) == ("$ORIGIN/lib",)
        assert bool(elf.runpath) is (tag == "--enable-new-dtags")
        found, missing = Libraries().closure(elf)
        assert missing == []
        assert found[0].path == str(library)
        library.unlink()
        assert Libraries().closure(elf)[1] == [("libanswer.so", str(out))]

    def test_musl_programs_have_their_libc_in_the_loader(self, tmp_path: Path) -> None:
        (tmp_path / "x.c").write_text("int main(void) { return 0; }\n")
        out = tmp_path / "dynamic"
        subprocess.run([compiler("musl-gcc"), "-o", out, tmp_path / "x.c"], check=True)
        elf = program(out)
        assert elf.is_musl
        assert Libraries().closure(elf) == ([], [])

    def test_a_library_for_another_machine_is_passed_over(self, tmp_path: Path) -> None:
        gcc = compiler("gcc")
        (tmp_path / "wrong").mkdir()
        (tmp_path / "right").mkdir()
        (tmp_path / "a.c").write_text(LIBRARY)
        (tmp_path / "m.c").write_text(SOURCE)
        right = tmp_path / "right" / "libanswer.so"
        subprocess.run([gcc, "-shared", "-fPIC", "-o", right, tmp_path / "a.c"], check=True)
        raw = bytearray(right.read_bytes())
        raw[18:20] = (183).to_bytes(2, "little")  # e_machine: AArch64
        (tmp_path / "wrong" / "libanswer.so").write_bytes(raw)
        out = tmp_path / "main"
        subprocess.run(
            [
                gcc,
                "-o",
                out,
                tmp_path / "m.c",
                "-L",
                tmp_path / "right",
                "-lanswer",
                f"-Wl,-rpath,{tmp_path}/wrong:{tmp_path}/right",
            ],
            check=True,
        )
        found, _ = Libraries().closure(program(out))
        assert str(right) in [lib.path for lib in found]


class TestCache:
    def test_the_hosts_cache_can_be_read(self) -> None:
        path = Path("/etc/ld.so.cache")
        if not path.exists():
            pytest.skip("no loader cache on this host")
        entries = ldcache.parse(path.read_bytes())
        assert any(name == "libc.so.6" for name, _, _ in entries)
        assert all(where.startswith("/") for _, where, _ in entries)

    def test_what_is_written_is_read_back(self) -> None:
        entries = [("libb.so.2", "/b/libb.so.2", 0x303), ("liba.so.10", "/a/liba.so.10", 0x303)]
        assert sorted(ldcache.parse(ldcache.dump(entries))) == sorted(entries)

    def test_the_order_is_that_of_ldconfig(self, tmp_path: Path) -> None:
        host = Path("/etc/ld.so.cache")
        if not host.exists():
            pytest.skip("no loader cache on this host")
        names = [name for name, _, _ in ldcache.parse(host.read_bytes())]
        again = ldcache.dump([(name, "/x", 0) for name in dict.fromkeys(names)])
        assert [name for name, _, _ in ldcache.parse(again)] == list(dict.fromkeys(names))

    @given(st.binary(max_size=300))
    def test_any_bytes_are_read_without_harm(self, raw: bytes) -> None:
        ldcache.parse(raw)
        ldcache.parse(b"glibc-ld.so.cache1.1" + raw)
        ldcache.parse(b"ld.so-1.7.0" + raw)
