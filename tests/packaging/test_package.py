# SPDX-License-Identifier: Apache-2.0
"""``serdab package``: what travels, who signed it, and that it runs where no Serdab is."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import marshal
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

import serdab as serdab_package
from tests.harness.command import Command, describe, private_environment
from tests.harness.leftovers import SESSION_VARIABLE
from tests.harness.user import OrdinaryUser

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

KEY: Final = Path(__file__).resolve().parents[1] / "vectors/signing-key.pem"
PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
SECRET: Final = b"planted where nothing should be taken from"

Result = subprocess.CompletedProcess[bytes]


@dataclass(frozen=True, slots=True)
class Publisher:
    """Whoever packages: a command with a home of its own, and a built instance."""

    command: Command
    instance: Path

    def package(self, output: Path, *options: str | Path, **env: str) -> Result:
        """Return the finished ``package --debug``."""
        return self.command.run(
            "-C", self.instance, "package", "--debug", *options, output, env=env
        )


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    """An instance with its sources, a run/, and things in build/ that are none of its outputs."""
    base = tmp_path_factory.mktemp("publisher")
    home = base / "home"
    home.mkdir()
    command = Command(private_environment(home, base / "run"))
    path = base / "app"
    make_instance(command, path)
    command.ok("-C", path, "build")
    (path / "run/mount").mkdir(parents=True)
    for place in ("run/mount/x", "build/x", "build/mount/x", "build/mount/__ROOT/x", "x.key"):
        (path / place).write_bytes(SECRET)
    return Publisher(command, path)


def make_instance(command: Command, path: Path) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox")
    command.ok("new", path)
    shutil.copy(busybox, path / "image/bin/busybox")
    for applet in ("sh", "cat", "ls"):
        (path / "image/bin" / applet).symlink_to("busybox")


@pytest.fixture(scope="module")
def made(publisher: Publisher) -> Path:
    """The package of that instance; its signer's public key lies beside it."""
    output = publisher.instance.parent / "app.tar.gz"
    result = publisher.package(output, "--public-key", output.with_name("signer.pem"))
    assert result.returncode == 0, describe(result)
    return output


@dataclass(frozen=True, slots=True)
class Receiver:
    """An ordinary user with an empty home, and no Serdab: a plain Python is on the PATH."""

    user: OrdinaryUser
    env: dict[str, str]

    @property
    def home(self) -> Path:
        """The home."""
        return self.user.home

    def run(self, *argv: str | Path, **env: str) -> Result:
        """Return the finished process, started in the home."""
        prefix = list(self.user.prefix)
        prefix[:1] = filter(None, map(shutil.which, prefix[:1]))  # not on every PATH of a test
        return subprocess.run(
            [*prefix, *argv],
            cwd=self.home,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )

    def unpack(self, package: Path) -> None:
        """Unpack as this user does, in the empty home."""
        copy = self.home.parent / package.name
        shutil.copy(package, copy)
        copy.chmod(0o644)
        result = self.run("tar", "xf", str(copy))
        assert result.returncode == 0, describe(result)
        assert result.stderr == b""


@pytest.fixture
def receiver(as_user: OrdinaryUser) -> Iterator[Receiver]:
    with tempfile.TemporaryDirectory(prefix="sb-") as folder:
        os.chmod(folder, 0o755)
        (Path(folder) / f"python{PYTHON}").symlink_to(as_user.python)
        env = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(as_user.home)}
        env[SESSION_VARIABLE] = os.environ[SESSION_VARIABLE]
        yield Receiver(as_user, env)


def refused(result: Result, code: int, *words: str) -> None:
    text = result.stderr.decode()
    assert result.returncode == code, describe(result)
    assert "serdab: error: " in text
    assert "Traceback" not in text
    for word in words:
        assert word in text, text


def code_of(top: Path) -> Path:
    """Return the directory of Serdab in an unpacked package."""
    (code,) = (top / "code").iterdir()
    return code / "serdab"


class TestContents:
    def test_only_what_boots_travels(self, made: Path) -> None:
        with tarfile.open(made) as tar:
            members = tar.getmembers()
            assert not any(SECRET in tar.extractfile(m).read() for m in members if m.isfile())  # type: ignore[union-attr]
        names = {member.name for member in members if member.isfile()}
        assert {name for name in names if not name.startswith("app/code/")} == {
            "app/serdab",
            "app/package.json",
            "app/instance/build/.Occlum_sys.json.protected",
            "app/instance/build/lib/libserdab.signed.json",
            "app/instance/build/mount/__ROOT/image.sefs",
            "app/instance/build/initfs/__ROOT/image.sefs",
        }
        assert {member.name.split("/")[0] for member in members} == {"app"}
        code = {name.split("/", 3)[3] for name in names if name.startswith("app/code/")}
        tops = {re.sub(r"-[0-9].*|\..*", "", name.split("/")[0]) for name in code}
        ours = {"serdab"}
        assert tops - ours == {
            "blake3",
            "cffi",
            "_cffi_backend",
            "cryptography",
            "msgspec",
            "zstandard",
        }
        assert not [name for name in code if name.endswith((".pyc", "direct_url.json", "RECORD"))]
        assert [name for name in code if "licen" in name.lower()]

    def test_modes_owners_and_times_are_those_of_the_format(self, made: Path) -> None:
        with tarfile.open(made) as tar:
            members = tar.getmembers()
        assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", 0)}
        assert {m.mode for m in members} == {0o755, 0o644}
        assert all(m.isfile() or m.isdir() for m in members)
        programs = {m.name.split("/")[-1] for m in members if m.isfile() and m.mode == 0o755}
        assert programs == {"serdab", "init", "launcher", "door"}

    def test_the_same_input_gives_the_same_bytes(
        self, publisher: Publisher, made: Path, tmp_path: Path
    ) -> None:
        again = tmp_path / "app.tar.gz"
        result = publisher.command.run(
            "-C", publisher.instance, "--json", "package", "--debug", again
        )
        assert result.returncode == 0, describe(result)
        shown = json.loads(result.stdout)
        assert shown["package"] == str(again)
        assert shown["sha256"] == hashlib.sha256(again.read_bytes()).hexdigest()
        assert f"CPython {PYTHON} on {os.uname().machine}" in shown["runs_on"]
        assert again.read_bytes() == made.read_bytes()
        assert Path(f"{again}.sig").read_bytes() == Path(f"{made}.sig").read_bytes()

    def test_source_date_epoch_is_the_time_of_all(
        self, publisher: Publisher, tmp_path: Path
    ) -> None:
        # Without the suffix, which is added.
        result = publisher.package(tmp_path / "other", SOURCE_DATE_EPOCH="1700000000")
        assert result.returncode == 0, describe(result)
        with tarfile.open(tmp_path / "other.tar.gz") as tar:
            assert {member.mtime for member in tar.getmembers()} == {1700000000}
            assert tar.getmembers()[0].name == "other"

    def test_the_manifest_names_what_it_runs_on(self, publisher: Publisher, made: Path) -> None:
        with tarfile.open(made) as tar:
            file = tar.extractfile("app/package.json")
            assert file is not None
            manifest = json.load(file)
        assert manifest["python"] == PYTHON
        assert manifest["machine"] == os.uname().machine
        assert manifest["platform"] == "simulation"
        for name in ("mrenclave", "mrsigner"):
            shown = publisher.command.ok("-C", publisher.instance, "print", name)
            assert manifest[name] == shown.strip()


DOCUMENT: Final = Path(__file__).resolve().parents[2] / "docs/package.md"


class TestSignature:
    def type_in(self, folder: Path, word: str) -> Result:
        """Return what the command in docs/package.md does that has a word in it."""
        (line,) = re.findall(rf"^\$ (openssl .*{word}.*)$", DOCUMENT.read_text(), re.MULTILINE)
        return subprocess.run(
            ["/bin/sh", "-c", line], cwd=folder, capture_output=True, timeout=60, check=False
        )

    def verify(self, package: Path) -> int:
        """Return the exit status of the check before unpacking."""
        assert package.name == "app.tar.gz"
        return self.type_in(package.parent, "-verify").returncode

    def test_the_public_key_leads_to_mrsigner(self, publisher: Publisher, made: Path) -> None:
        shown = self.type_in(made.parent, "-modulus").stdout
        assert shown.decode() == publisher.command.ok("-C", publisher.instance, "print", "mrsigner")

    def test_openssl_verifies_it_before_unpacking(self, made: Path, tmp_path: Path) -> None:
        assert self.verify(made) == 0
        changed = tmp_path / made.name
        raw = bytearray(made.read_bytes())
        raw[len(raw) // 2] ^= 1
        changed.write_bytes(raw)
        shutil.copy(f"{made}.sig", f"{changed}.sig")
        shutil.copy(made.with_name("signer.pem"), tmp_path)
        assert self.verify(changed) != 0

    def test_a_sign_tool_signs_it(self, publisher: Publisher, tmp_path: Path) -> None:
        tool = tmp_path / "tool"
        tool.write_text('#!/bin/sh\nexec openssl dgst -sha256 -sign "$3"\n')
        tool.chmod(0o755)
        signing = ("--sign-key", KEY, "--sign-tool", tool)
        path = tmp_path / "signed"
        shutil.copytree(publisher.instance, path, symlinks=True)
        publisher.command.ok("-C", path, "build", *signing)
        output = tmp_path / "app.tar.gz"
        packager = Publisher(publisher.command, path)
        result = packager.package(output, *signing, "--public-key", tmp_path / "signer.pem")
        assert result.returncode == 0, describe(result)
        assert self.verify(output) == 0
        # A tool that signs nothing, and one that kills us: nothing is left.
        there = set(tmp_path.iterdir())
        for end in ("cat; exit 0", "kill -9 $PPID"):
            tool.write_text(f"#!/bin/sh\n{end}\n")
            result = packager.package(tmp_path / "no.tar.gz", *signing)
            assert result.returncode != 0
            assert set(tmp_path.iterdir()) == there

    def test_another_key_than_the_builds_is_refused(
        self, publisher: Publisher, tmp_path: Path
    ) -> None:
        result = publisher.package(tmp_path / "x.tar.gz", "--sign-key", KEY)
        refused(result, 3, "mrsigner")
        assert list(tmp_path.iterdir()) == []


class TestRefusals:
    def test_without_debug_a_simulation_build_stays_here(
        self, publisher: Publisher, tmp_path: Path
    ) -> None:
        result = publisher.command.run("-C", publisher.instance, "package", tmp_path / "x.tar.gz")
        refused(result, 2, "debuggable", "simulation", "--debug")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("suffix", ["", ".sig"])
    def test_nothing_is_overwritten(
        self, publisher: Publisher, tmp_path: Path, suffix: str
    ) -> None:
        there = tmp_path / f"x.tar.gz{suffix}"
        there.write_bytes(b"mine")
        refused(publisher.package(tmp_path / "x.tar.gz"), 2, there.name)
        assert there.read_bytes() == b"mine"
        assert list(tmp_path.iterdir()) == [there]

    def test_another_public_key_is_not_overwritten(
        self, publisher: Publisher, tmp_path: Path
    ) -> None:
        there = tmp_path / "signer.pem"
        there.write_bytes(b"mine")
        refused(publisher.package(tmp_path / "x.tar.gz", "--public-key", there), 2, there.name)
        assert list(tmp_path.iterdir()) == [there]
        assert there.read_bytes() == b"mine"

    @pytest.mark.parametrize(
        "file",
        [
            "build/.Occlum_sys.json.protected",
            "build/lib/libserdab.signed.json",
            "build/mount/__ROOT/image.sefs",
            "build/initfs/__ROOT/image.sefs",
        ],
    )
    def test_a_damaged_build_is_refused(
        self, publisher: Publisher, tmp_path: Path, file: str
    ) -> None:
        path = tmp_path / "damaged"
        shutil.copytree(publisher.instance, path, symlinks=True)
        raw = bytearray((path / file).read_bytes())
        raw[len(raw) // 2] ^= 1
        (path / file).write_bytes(raw)
        refused(Publisher(publisher.command, path).package(tmp_path / "x.tar.gz"), 3)
        assert list(tmp_path.iterdir()) == [path]

    def test_a_link_among_the_outputs_is_refused(
        self, publisher: Publisher, tmp_path: Path
    ) -> None:
        path = tmp_path / "linked"
        shutil.copytree(publisher.instance, path, symlinks=True)
        image = path / "build/mount/__ROOT/image.sefs"
        image.rename(tmp_path / "elsewhere")
        image.symlink_to(tmp_path / "elsewhere")
        result = Publisher(publisher.command, path).package(tmp_path / "x.tar.gz")
        assert result.returncode != 0
        assert not (tmp_path / "x.tar.gz").exists()

    @pytest.mark.parametrize("kind", ["fifo", "directory"])
    def test_what_is_no_file_among_the_outputs_is_refused_at_once(
        self, serdab: Command, tmp_path: Path, kind: str
    ) -> None:
        path = tmp_path / "encrypted"
        serdab.ok("new", path)
        serdab.ok("gen-image-key", tmp_path / "key")
        serdab.ok("-C", path, "build", "--image-key", tmp_path / "key")
        image = path / "build/mount/__ROOT/image.sefs"
        image.unlink()
        os.mkfifo(image) if kind == "fifo" else image.mkdir()
        result = Publisher(serdab, path).package(tmp_path / "x.tar.gz")
        refused(result, 3)
        assert not (tmp_path / "x.tar.gz").exists()

    def test_a_build_of_another_serdab_is_refused(
        self, publisher: Publisher, tmp_path: Path
    ) -> None:
        other = tmp_path / "other"
        shutil.copytree(Path(serdab_package.__file__).parent, other / "serdab")
        with (other / "serdab/version.py").open("a") as file:
            file.write("# another\n")
        result = publisher.package(tmp_path / "x.tar.gz", PYTHONPATH=str(other))
        refused(result, 3, "another Serdab")

    def test_a_builtin_image_key_travels_only_when_asked(
        self, publisher: Publisher, tmp_path: Path
    ) -> None:
        path, key, output = tmp_path / "public", tmp_path / "key", tmp_path / "x.tar.gz"
        publisher.command.ok("new", path)
        publisher.command.ok("gen-image-key", key)
        publisher.command.ok("-C", path, "build", "--image-key", key, "--buildin-image-key")
        packager = Publisher(publisher.command, path)
        refused(packager.package(output), 2, "--buildin-image-key")
        result = packager.package(output, "--buildin-image-key")
        assert result.returncode == 0, describe(result)


class TestUnpacked:
    def test_it_runs_with_an_empty_home_and_no_serdab_installed(
        self, receiver: Receiver, publisher: Publisher, made: Path
    ) -> None:
        shutil.rmtree(receiver.home / "cache", ignore_errors=True)
        receiver.unpack(made)
        assert [path.name for path in receiver.home.iterdir()] == ["app"]
        signer = publisher.command.ok("-C", publisher.instance, "print", "mrsigner").strip()
        write = ("/bin/sh", "-c", "echo kept > /root/note; ls /host; exit 7")
        result = receiver.run("./app/serdab", "run", "--expect-signer", signer, *write)
        assert result.returncode == 7, describe(result)
        assert result.stdout == b"build\nrun\n"  # shown empty
        assert receiver.run("./app/serdab", "run", "/bin/cat", "/root/note").stdout == b"kept\n"
        assert receiver.run("app/serdab", "print", "mrsigner").stdout.decode().strip() == signer
        assert receiver.run("app/serdab", "fsck").returncode == 0
        # Nothing was written beside the code, and the first run recorded whom it met.
        with tarfile.open(made) as tar:
            travelled = {member.name for member in tar.getmembers()}
        there = {
            str(path.relative_to(receiver.home)) for path in (receiver.home / "app").rglob("*")
        }
        new = {path for path in there - travelled if not path.startswith("app/instance/run")}
        assert new == set()
        assert list((receiver.home / ".local/state/serdab/signers").iterdir())
        assert receiver.run("app/serdab", "reset", "--yes").returncode == 0
        assert receiver.run("./app/serdab", "run", "/bin/cat", "/root/note").returncode == 1

    def test_it_runs_as_a_service(self, receiver: Receiver, made: Path) -> None:
        receiver.unpack(made)
        assert receiver.run("app/serdab", "status").returncode != 0
        started = receiver.run("app/serdab", "start")
        try:
            assert started.returncode == 0, describe(started)
            for word in (b"one", b"two"):
                result = receiver.run(
                    "app/serdab", "exec", "/bin/sh", "-c", f"echo {word.decode()}"
                )
                assert result.stdout == word + b"\n", describe(result)
            assert receiver.run("app/serdab", "status").returncode == 0
        finally:
            stopped = receiver.run("app/serdab", "stop")
        assert stopped.returncode == 0, describe(stopped)

    def test_its_unit_starts_the_launcher(self, receiver: Receiver, made: Path) -> None:
        receiver.unpack(made)
        result = receiver.run("app/serdab", "unit")
        assert result.returncode == 0, describe(result)
        text = result.stdout.decode()
        launcher = os.path.realpath(receiver.home / "app/serdab")
        assert re.search(rf'^ExecStart="?{re.escape(launcher)}"? ', text, re.MULTILINE), text
        assert "SERDAB_PYTHON=" in text

    def test_another_signer_is_refused(self, receiver: Receiver, made: Path) -> None:
        receiver.unpack(made)
        result = receiver.run("app/serdab", "run", "--expect-signer", "0" * 64, "/bin/ls")
        refused(result, 125, "signed by another key")

    def test_a_changed_byte_of_its_code_is_refused(self, receiver: Receiver, made: Path) -> None:
        receiver.unpack(made)
        file = code_of(receiver.home / "app") / "libos/limits.py"
        status = file.stat()
        file.write_bytes(file.read_bytes().replace(b"SPDX", b"SPDY", 1))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        result = receiver.run("app/serdab", "run", "/bin/ls")
        refused(result, 125, "the descriptor names another Serdab")

    def test_byte_code_beside_its_code_is_not_used(self, receiver: Receiver, made: Path) -> None:
        receiver.unpack(made)
        for name in ("__init__", "errors", "version", "cli/main", "cli/print_", "cli/packaged"):
            plant_byte_code(code_of(receiver.home / "app") / f"{name}.py")
        normally = f"import sys; sys.path[:0] = [{str(code_of(receiver.home / 'app').parent)!r}]"
        shown = receiver.run(f"python{PYTHON}", "-I", "-c", f"{normally}; import serdab.errors")
        assert b"planted byte code ran" in shown.stderr  # so it would have, had we let it
        assert receiver.run("app/serdab", "print", "mrsigner").returncode == 0
        assert receiver.run("app/serdab", "run", "/bin/ls").returncode == 0

    def test_another_python_is_named(self, receiver: Receiver, made: Path) -> None:
        receiver.unpack(made)
        launcher = receiver.home / "app/serdab"
        text = launcher.read_text()
        # As if this interpreter were of another version, and this machine's C library older.
        launcher.write_text(re.sub(r" \.cpython-\d+-", " .cpython-399-", text))
        refused(receiver.run("app/serdab", "print", "mrsigner"), 6, "cpython 3.99", "SERDAB_PYTHON")
        refused(receiver.run("app/serdab", "--log-level", "info", "run", "/bin/ls"), 125)
        shown = receiver.run("app/serdab", "--json", "print", "mrsigner")
        assert json.loads(shown.stdout)["error"] == "environment"
        launcher.write_text(text.replace(".so 2.", ".so 9."))
        refused(receiver.run("app/serdab", "print", "mrsigner"), 6, "glibc 9.")

    def test_no_python_is_said(self, receiver: Receiver, made: Path) -> None:
        receiver.unpack(made)
        launcher = receiver.home / "app/serdab"
        launcher.write_text(launcher.read_text().replace(f"python{PYTHON}", "python3.99"))
        (receiver.home / "empty").mkdir(mode=0o755)
        os.chmod(receiver.home, 0o755)
        shell = ("/bin/sh", "app/serdab")
        nowhere = {"PATH": str(receiver.home / "empty")}
        refused(receiver.run(*shell, "print", "mrsigner", **nowhere), 6, "no Python that fits")
        refused(receiver.run(*shell, "-C", "x", "run", "/bin/ls", **nowhere), 125)
        shown = receiver.run(*shell, "--json", "-C", "run", "print", "mrsigner", **nowhere)
        assert shown.returncode == 6
        assert json.loads(shown.stdout)["exit_code"] == 6

    def test_it_is_found_through_a_link(self, receiver: Receiver, made: Path) -> None:
        receiver.unpack(made)
        (receiver.home / "link").symlink_to("app/serdab")
        result = receiver.run("./link", "print", "mrsigner")
        assert result.returncode == 0, describe(result)

    def test_a_verb_whose_library_is_not_carried_says_so(
        self, receiver: Receiver, made: Path
    ) -> None:
        receiver.unpack(made)
        (receiver.home / "bom.yaml").write_text("targets: []\n")
        (receiver.home / "bom.yaml").chmod(0o644)
        result = receiver.run("app/serdab", "copy-bom", "-f", "bom.yaml", "--root", "x")
        refused(result, 6, "yaml")
        # So the help does not offer it, nor the others that want sources.
        shown = receiver.run("app/serdab", "--help").stdout.decode()
        offered = {line.split()[0] for line in shown.splitlines() if line.startswith("  ")}
        assert not offered & {"new", "init", "copy-bom", "build", "package"}
        assert offered >= {"run", "start", "exec", "fsck", "reset"}

    def test_build_says_that_there_are_no_sources(self, receiver: Receiver, made: Path) -> None:
        receiver.unpack(made)
        refused(receiver.run("app/serdab", "build"), 2, "no sources")

    @pytest.mark.root
    def test_a_place_of_another_user_needs_a_run_of_ones_own(
        self, receiver: Receiver, made: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can unpack as another user")
        with tempfile.TemporaryDirectory(prefix="so-") as folder:
            os.chmod(folder, 0o755)
            subprocess.run(["tar", "-C", folder, "-xf", made], check=True)
            launcher = f"{folder}/app/serdab"
            refused(receiver.run(launcher, "run", "/bin/ls"), 125, "run/")
            assert receiver.run(launcher, "print", "mrsigner").returncode == 0
            (Path(folder) / "app/instance/run").mkdir(mode=0o700)
            os.chown(f"{folder}/app/instance/run", receiver.user.uid, receiver.user.gid)
            result = receiver.run(launcher, "run", "/bin/sh", "-c", "echo > /root/x; ls /")
            assert result.returncode == 0, describe(result)


def plant_byte_code(source: Path) -> None:
    """Put byte code beside a source that a normal import would take for it (PEP 552)."""
    status = source.stat()
    code = compile("raise SystemExit('planted byte code ran')", str(source), "exec")
    head = importlib.util.MAGIC_NUMBER + struct.pack(
        "<III", 0, int(status.st_mtime), status.st_size
    )
    place = Path(importlib.util.cache_from_source(str(source)))
    place.parent.mkdir(exist_ok=True)
    place.parent.chmod(0o755)
    place.write_bytes(head + marshal.dumps(code))
    place.chmod(0o644)


def test_an_encrypted_instance_shows_its_own_code_to_nobody(
    receiver: Receiver, publisher: Publisher, tmp_path: Path
) -> None:
    # The key not beside the instance: all that lies there is shown.
    path, key = tmp_path / "sealed", Path(publisher.command.env["HOME"]) / "sealed.key"
    make_instance(publisher.command, path)
    config = json.loads((path / "Occlum.json").read_text())
    (host,) = (mount for mount in config["mount"] if mount["target"] == "/host")
    host["source"] = ".."  # all of the package
    config["mount"][0]["options"]["layers"][1]["source"] = "./run/elsewhere"
    (path / "Occlum.json").write_text(json.dumps(config))
    publisher.command.ok("gen-image-key", key)
    publisher.command.ok("-C", path, "build", "--image-key", key)
    packager = Publisher(publisher.command, path)
    result = packager.package(tmp_path / "first.tar.gz")
    assert b"only its header was verified" in result.stderr
    output = tmp_path / "sealed.tar.gz"
    result = packager.package(output, "--image-key", key)
    assert result.returncode == 0, describe(result)
    assert b"only its header" not in result.stderr
    receiver.unpack(output)
    shutil.copy(key, receiver.home / "key")
    receiver.user.own(receiver.home / "key")
    script = """ls /host; ls /host/code; cat /host/serdab; echo x > /host/serdab
    echo > /root/x
    for name in serdab code; do /bin/busybox mv /host/$name /host/mine || echo no; done"""
    result = receiver.run("sealed/serdab", "run", "--image-key", "key", "/bin/sh", "-c", script)
    assert result.stdout == b"instance\nno\nno\n", describe(result)
    assert (receiver.home / "sealed/serdab").read_bytes().startswith(b"#!/bin/sh")
    # Occlum.json is not there to tell where the writable layer is: the measured file does.
    assert list((receiver.home / "sealed/instance/run/elsewhere").iterdir())
    result = receiver.run("sealed/serdab", "reset", "--yes")
    assert result.stdout == b"removed run/elsewhere\n", describe(result)
