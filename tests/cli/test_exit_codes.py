# SPDX-License-Identifier: Apache-2.0
"""Exit codes, messages and JSON of the real command: what scripts rely on."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from serdab.version import VERSION
from tests.harness.command import Command, describe

Result = subprocess.CompletedProcess[bytes]


HOLDER = """
import sys
from serdab.instance.layout import Instance
from serdab.instance.locks import lock_run
with lock_run(Instance.open_built(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def built(serdab: Command, tmp_path: Path) -> Path:
    """An instance, built integrity-only, with nothing to run in it."""
    path = tmp_path / "instance"
    serdab.ok("new", path)
    serdab.ok("-C", path, "build")
    return path


def refused(result: Result, code: int, *words: str) -> None:
    """Require an exit code, one error line, one hint line, and words among them."""
    text = result.stderr.decode()
    assert result.returncode == code, describe(result)
    lines = [line for line in text.splitlines() if line.startswith("serdab: error: ")]
    assert len(lines) == 1, text
    assert len([line for line in text.splitlines() if line.startswith("hint: ")]) == 1, text
    assert "Traceback" not in text
    for word in words:
        assert word in text
    assert result.stdout == b""


class TestGeneral:
    def test_version(self, serdab: Command) -> None:
        assert serdab.ok("--version") == f"serdab {VERSION}\n"
        assert serdab.ok("-q", "--version") == f"serdab {VERSION}\n"

    def test_help_lists_every_verb(self, serdab: Command) -> None:
        text = serdab.ok("--help")
        for verb in ("new", "init", "copy-bom", "build", "run", "gen-image-key", "print"):
            assert f"\n  {verb} " in text
        assert serdab.ok() == text
        assert "--image-key" in serdab.ok("run", "--help")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["bild"], "did you mean build?"),
            (["--jsn", "build"], "unknown option --jsn"),
            (["-C"], "-C needs a value"),
            (["--log-level", "loud", "build"], "one of off"),
            (["new"], "PATH"),
            (["new", "a", "b"], "unrecognized"),
            (["build", "--forc"], "--forc"),
            (["build", "-C", "x"], "not an instance"),
            (["status", "--log-level=loud"], "one of off"),
            (["print", "everything"], "invalid choice"),
            (["-C", "/nonexistent", "build"], "not an instance"),
            (["build"], "not an instance"),
            (["gen-image-key", "/nonexistent/key"], "cannot be made"),
            (["copy-bom", "--root", "x"], "--file"),
            (["copy-bom", "-f", "/nonexistent.yaml", "--root", "x"], "cannot be read"),
        ],
    )
    def test_usage_is_exit_2(
        self, serdab: Command, tmp_path: Path, arguments: list[str], words: str
    ) -> None:
        refused(serdab.run(*arguments, cwd=tmp_path), 2, words)

    def test_the_instance_can_be_named_anywhere_before_the_verb(
        self, serdab: Command, built: Path
    ) -> None:
        values = {
            serdab.ok("-C", built, "print", "root-mac"),
            serdab.ok("--instance", built, "print", "root-mac"),
            serdab.ok(f"--instance={built}", "print", "root-mac"),
            serdab.ok("print", "root-mac", cwd=built),
        }
        assert len(values) == 1

    def test_json_errors_are_one_object(self, serdab: Command, tmp_path: Path) -> None:
        result = serdab.run("--json", "-C", tmp_path, "build")
        value = json.loads(result.stdout)
        assert result.stderr == b""
        assert value["error"] == "usage"
        assert value["stage"] == "build"  # where no stage of the boot refused, the verb did
        assert value["exit_code"] == result.returncode == 2
        assert set(value) >= {"message", "stage", "subject", "expected", "found", "hint"}

    def test_a_name_cannot_forge_a_second_message(self, serdab: Command, tmp_path: Path) -> None:
        evil = tmp_path / "x\nserdab: error: forged\x1b[31m"
        result = serdab.run("-C", evil, "build")
        refused(result, 2)
        assert b"\x1b" not in result.stderr

    def test_a_reader_that_went_away_is_no_defect(self, serdab: Command) -> None:
        read, write = os.pipe()
        os.close(read)
        process = serdab.popen("--help", stdout=write)
        os.close(write)
        _, stderr = process.communicate()
        assert b"Traceback" not in stderr
        assert b"internal" not in stderr

    @pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
    def test_a_closed_standard_stream_is_no_defect(
        self, serdab: Command, built: Path, closed: str
    ) -> None:
        words = [*serdab.prefix, "-C", str(built), "print", "root-mac"]
        result = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *words],
            env=serdab.env,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, b""), describe(result)
        assert len(result.stdout.strip()) == (0 if ">&-" in closed.split() else 64)


class TestNames:
    """Scripts written for Occlum run once two links are on the PATH."""

    def run(self, serdab: Command, name: str, tmp_path: Path, *args: str) -> Result:
        code = (
            f"import sys; sys.argv[0] = '/somewhere/{name}';"
            "from serdab.cli.main import main; sys.exit(main())"
        )
        return Command(serdab.env, (sys.executable, "-c", code)).run(*args, cwd=tmp_path)

    def test_occlum_is_the_same_program(self, serdab: Command, tmp_path: Path) -> None:
        assert self.run(serdab, "occlum", tmp_path, "new", "x").returncode == 0
        assert (tmp_path / "x" / "Occlum.json").exists()

    def test_copy_bom_is_its_verb(self, serdab: Command, tmp_path: Path) -> None:
        (tmp_path / "b.yaml").write_text("includes: [base.yaml]\n")
        result = self.run(serdab, "copy_bom", tmp_path, "-f", "b.yaml", "--root", "image")
        assert result.returncode == 0, describe(result)
        assert (tmp_path / "image" / "bin").is_dir()

    def test_options_of_occlum_get_one_line_each(self, serdab: Command, tmp_path: Path) -> None:
        path = tmp_path / "x"
        cases: list[tuple[list[str | Path], int, int]] = [
            (["new", "--init-ra", "grpc_ratls", path], 0, 1),
            (["-C", path, "build", "--sgx-mode", "SIM", "--enable-edmm", "Y"], 0, 2),
            (["-C", path, "run", "--config-id", "0", "--config-svn", "1"], 125, 2),
        ]
        for arguments, code, lines in cases:
            result = serdab.run(*arguments)
            assert result.returncode == code, describe(result)
            assert result.stderr.count(b"accepted, changes nothing here") == lines


class TestInstances:
    def test_new_refuses_an_existing_path(self, serdab: Command, tmp_path: Path) -> None:
        for make in (Path.mkdir, Path.touch):
            path = tmp_path / make.__name__
            make(path)
            refused(serdab.run("new", path), 2, "something is there already")

    def test_init_refuses_an_instance(self, serdab: Command, tmp_path: Path) -> None:
        serdab.ok("init", cwd=tmp_path)
        refused(serdab.run("init", cwd=tmp_path), 2, "an instance already")

    def test_the_skeleton_holds_directories_and_the_default_init(
        self, serdab: Command, tmp_path: Path
    ) -> None:
        old = os.umask(0o077)
        try:
            serdab.ok("new", tmp_path / "x")
        finally:
            os.umask(old)
        files = [path for path in (tmp_path / "x").rglob("*") if path.is_file()]
        names = sorted(str(path.relative_to(tmp_path / "x")) for path in files)
        assert names == ["Occlum.json", "initfs/bin/init"]
        assert stat.S_IMODE((tmp_path / "x/initfs/bin/init").stat().st_mode) == 0o755
        assert stat.S_IMODE((tmp_path / "x/image/tmp").stat().st_mode) == 0o1777
        assert stat.S_IMODE((tmp_path / "x/image").stat().st_mode) == 0o755


class TestKeys:
    def test_a_key_file_is_private_and_never_overwritten(
        self, serdab: Command, tmp_path: Path
    ) -> None:
        path = tmp_path / "key"
        serdab.ok("gen-image-key", path)
        content = path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(content) == 48
        assert len(bytes.fromhex(content.strip().replace("-", ""))) == 16
        refused(serdab.run("gen-image-key", path), 2, "the key file exists")
        assert path.read_text() == content

    @pytest.mark.parametrize("content", ["", "hello", "c7-32", "zz-" * 15 + "zz"])
    def test_a_bad_key_file_is_exit_2_and_never_shown(
        self, serdab: Command, built: Path, tmp_path: Path, content: str
    ) -> None:
        path = tmp_path / "key"
        path.write_text(content)
        result = serdab.run("-C", built, "build", "--image-key", path)
        refused(result, 2, "not a key")
        assert not content or content.encode() not in result.stderr

    def test_a_missing_key_file_is_exit_2(self, serdab: Command, built: Path) -> None:
        refused(serdab.run("-C", built, "build", "--image-key", "/none"), 2, "cannot be read")


class TestBuild:
    def test_an_unknown_field_is_exit_2_and_named(self, serdab: Command, built: Path) -> None:
        path = built / "Occlum.json"
        path.write_text(path.read_text().replace('"layers"', '"layer"'))
        refused(serdab.run("-C", built, "build"), 2, "mount[0].options.layer", "hint: ", "expected")

    def test_an_init_fs_without_init_is_exit_2(self, serdab: Command, built: Path) -> None:
        (built / "initfs/bin/init").unlink()
        refused(serdab.run("-C", built, "build"), 2, "no init", "initfs/bin/init")

    def test_a_missing_tree_is_exit_2(self, serdab: Command, built: Path) -> None:
        (built / "image").rename(built / "elsewhere")
        refused(serdab.run("-C", built, "build"), 2, "source tree is missing")

    def test_a_missing_signing_key_is_exit_2(self, serdab: Command, built: Path) -> None:
        refused(serdab.run("-C", built, "build", "--sign-key", "/none"), 2, "signing key")
        refused(serdab.run("-C", built, "build", "--sign-tool", "/none"), 2, "--sign-key PEM")


class TestPrint:
    def test_a_changed_configuration_is_exit_3(self, serdab: Command, built: Path) -> None:
        path = built / "build/.Occlum_sys.json.protected"
        path.write_bytes(path.read_bytes().replace(b'"/bin"', b'"/opt"'))
        refused(serdab.run("-C", built, "print", "root-mac"), 3, "conf-mac", "expected", "found")

    def test_a_changed_descriptor_is_exit_3(self, serdab: Command, built: Path) -> None:
        path = built / "build/lib/libserdab.signed.json"
        path.write_bytes(path.read_bytes().replace(b'"product_id":0', b'"product_id":1'))
        refused(serdab.run("-C", built, "print", "mrenclave"), 3, "signature")

    def test_an_instance_that_was_not_built_is_exit_2(
        self, serdab: Command, tmp_path: Path
    ) -> None:
        serdab.ok("new", tmp_path / "x")
        result = serdab.run("-C", tmp_path / "x", "print", "root-mac")
        refused(result, 2, "has not been built", "serdab build")


class TestRunRefusals:
    """Refusals before anything is started: 125, and the message names the kind."""

    def test_no_program(self, serdab: Command, built: Path) -> None:
        refused(serdab.run("-C", built, "run"), 125, "[usage]", "no program")

    def test_no_instance(self, serdab: Command, tmp_path: Path) -> None:
        refused(serdab.run("-C", tmp_path, "run", "/bin/true"), 125, "[usage]")

    def test_not_built(self, serdab: Command, tmp_path: Path) -> None:
        serdab.ok("new", tmp_path / "x")
        result = serdab.run("-C", tmp_path / "x", "run", "/bin/true")
        refused(result, 125, "error: run: the instance has not been built", "[usage]")

    def test_in_use(self, serdab: Command, built: Path) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, built],
            env=serdab.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"locked\n"
            result = serdab.run("-C", built, "run", "/bin/true")
            refused(result, 125, "error: run: the instance is in use", "[busy]", str(holder.pid))
            refused(serdab.run("-C", built, "reset", "--yes"), 5, "in use")
            holder.communicate()

    def test_errors_of_run_as_json_go_to_stderr(self, serdab: Command, built: Path) -> None:
        result = serdab.run("-C", built, "--json", "run")
        assert result.stdout == b""
        value = json.loads(result.stderr)
        assert value["error"] == "usage"
        assert result.returncode == 125
        assert value["exit_code"] == 2


class TestDoctor:
    def test_says_what_is_there_and_what_is_lacking(self, serdab: Command) -> None:
        result = serdab.run("--json", "doctor")
        value = json.loads(result.stdout)
        assert value["platform"] == "simulation"
        findings = {item["feature"]: item for item in value["findings"]}
        assert findings["kernel"]["detail"] == f"Linux {os.uname().release}"
        lacking = [item for item in value["findings"] if not item["present"]]
        assert all(item["hint"] for item in lacking)
        needed = any(item["required"] for item in lacking)
        assert result.returncode == (6 if needed else 0)
