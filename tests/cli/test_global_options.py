# SPDX-License-Identifier: Apache-2.0
"""Options that all verbs have count before and after the verb; ``-C DIR`` is the instance."""

from __future__ import annotations

import argparse
import importlib
import json
import os
from pathlib import Path
from typing import Final

import pytest

from serdab.cli.main import VERBS, _dispatch, _take_globals
from serdab.cli.messages import Context
from serdab.errors import UsageError
from tests.harness.command import Command, describe

#: Every verb, with each argument that is a path.
PATHS: Final = {
    "new": ["there"],
    "init": [],
    "copy-bom": ["-f", "there", "--root", "there", "-i", "there"],
    "build": ["--image-key", "there", "--sign-key", "there", "--sign-tool", "./there"],
    "run": ["--image-key", "there", "--pin-file", "there", "--pin-command", "./there"],
    "start": ["--image-key", "there", "--pin-file", "there", "--pin-command", "./there"],
    "exec": [],
    "stop": [],
    "status": [],
    "unit": ["--image-key", "there"],
    "mount": ["there", "--image-key", "there", "--sign-key", "there", "--pin-file", "there"],
    "gen-image-key": ["there"],
    "print": ["root-mac"],
    "package": ["there", "--public-key", "there", "--image-key", "there", "--sign-key", "there"],
    "fsck": ["there", "--image-key", "there", "--lower", "there", "--output", "there"],
    "reset": ["--volume", "there"],
    "rekey": ["--image-key", "there", "--new-image-key", "there", "--sign-key", "there"],
    "doctor": [],
}
PROGRAM: Final = ["/bin/true", "--json", "-C", "of-the-program", "-q"]


class Seen:
    """What a verb sees when it begins."""

    def __init__(self, args: argparse.Namespace, context: Context) -> None:
        self.args = args
        self.context = context


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with another one in it, where everything that is named lies; we are in it."""
    (tmp_path / "app").mkdir()
    (tmp_path / "there").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> Seen:
    """Go through a command line up to its verb."""
    seen: list[Seen] = []

    def main(args: argparse.Namespace, context: Context) -> int:
        seen.append(Seen(args, context))
        return 0

    rest, context = list(words), Context()
    verb = _take_globals(rest, context)
    assert verb is not None
    module = importlib.import_module(f"serdab.cli.{VERBS[verb][0]}")
    monkeypatch.setattr(module, "main", main)
    assert _dispatch(verb, VERBS[verb][0], rest, context) == 0
    return seen[0]


def test_the_table_names_every_verb() -> None:
    assert PATHS.keys() == VERBS.keys()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("is_before", [True, False], ids=["before", "after"])
def test_they_count_before_and_after_the_verb(
    place: Path, monkeypatch: pytest.MonkeyPatch, verb: str, *, is_before: bool
) -> None:
    common = ["--json", "-q", "-v", "--log-level", "debug", "-C", "app"]
    own = PATHS[verb] + (PROGRAM if VERBS[verb][1] else [])
    seen = call(monkeypatch, *([*common, verb] if is_before else [verb, *common]), *own)
    context = seen.context
    assert context.as_json
    assert context.quiet
    assert context.verbose
    assert context.log_level == "debug"
    assert context.instance == "app"
    if VERBS[verb][1]:
        assert seen.args.command == PROGRAM
    # A path is looked up where we are, and is not changed before.
    named = [value for value in vars(seen.args).values() if value in ("there", "./there")]
    assert all(os.path.exists(value) for value in named)
    assert len(named) >= len([word for word in own if word == "there"]) - own.count("-i")


def test_the_last_one_wins(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = call(monkeypatch, "-C", "elsewhere", "status", "--instance=app")
    assert seen.context.instance == "app"


def test_without_the_option_the_directory_is_ours(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = call(monkeypatch, "status")
    assert seen.context.instance == "."


@pytest.mark.parametrize("verb", VERBS)
def test_a_directory_that_is_not_there_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    own = PATHS[verb] + (PROGRAM if VERBS[verb][1] else [])
    with pytest.raises(UsageError, match="not an instance"):
        call(monkeypatch, verb, "-C", str(place / "nowhere"), *own)


class TestTheCommand:
    def test_an_error_after_the_option_is_json(self, serdab: Command, tmp_path: Path) -> None:
        result = serdab.run("build", "--json", "--nonsense", cwd=tmp_path)
        assert result.returncode == 2, describe(result)
        assert "--nonsense" in json.loads(result.stdout)["message"]

    def test_a_part_of_the_instance_begins_there_and_what_is_ours_where_we_are(
        self, serdab: Command, tmp_path: Path
    ) -> None:
        serdab.ok("new", tmp_path / "app")
        (tmp_path / "bom.yaml").write_text("targets:\n  - target: /opt/x\n    mkdirs: [y]\n")
        words = ("copy-bom", "-f", "bom.yaml", "--root", "image")
        serdab.ok("-C", "app", *words, cwd=tmp_path)
        serdab.ok("gen-image-key", "-C", "app", "key", cwd=tmp_path)
        serdab.ok("build", "-C", "app", "--image-key", "key", cwd=tmp_path)
        assert (tmp_path / "app/image/opt/x/y").is_dir()
        assert (tmp_path / "key").is_file()
        assert sorted(os.listdir(tmp_path)) == ["app", "bom.yaml", "home", "key"]

    @pytest.mark.parametrize(
        ("words", "hint"),
        [
            (["-C", "run"], "-C takes a directory"),
            (["--json"], "lists the verbs"),
            (["-C", "app", "-q"], "lists the verbs"),
        ],
    )
    def test_options_without_a_verb_are_refused(
        self, serdab: Command, tmp_path: Path, words: list[str], hint: str
    ) -> None:
        result = serdab.run(*words, cwd=tmp_path)
        assert result.returncode == 2, describe(result)
        assert b"no verb" in result.stdout + result.stderr
        assert hint.encode() in result.stdout + result.stderr

    @pytest.mark.parametrize("verb", ["", *VERBS])
    def test_help_fits_a_narrow_terminal(
        self, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("COLUMNS", "40")
        words = [verb, "--help"] if verb else ["--help"]
        context = Context()
        name = _take_globals(words, context)
        if name is None:
            from serdab.cli.main import _help

            _help(None)
        else:
            _dispatch(name, VERBS[name][0], words, context)
        for line in capsys.readouterr().out.splitlines():
            # A word that does not fit is not broken.
            assert len(line) <= 40 or len(line.split()) == 1 or "[" in line, line


@pytest.mark.parametrize("words", [("fsck",), ("--help",), ("build", "--help")])
def test_a_reader_that_has_enough_does_not_change_the_verdict(
    serdab: Command, tmp_path: Path, words: tuple[str, ...]
) -> None:
    serdab.ok("new", tmp_path / "app")
    serdab.ok("-C", tmp_path / "app", "build")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with serdab.popen("-C", tmp_path / "app", *words, stdout=writer) as process:
            _, errors = process.communicate(timeout=60)
    finally:
        os.close(writer)
    assert (process.returncode, errors) == (0, b"")
