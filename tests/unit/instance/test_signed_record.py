# SPDX-License-Identifier: Apache-2.0
"""What a build says changed since the last one that this user signed."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import pytest

from serdab.instance import signedrecord
from serdab.instance.signedrecord import (
    Files,
    Signed,
    SignedTree,
    changed_fields,
    changes,
    load_signed,
    stamps,
    store_signed,
)

MAC, OTHER = "ab" * 32, "cd" * 32


def signed(
    config: object = None, *, image: Files | None = None, mac: str = MAC, initfs: str = MAC
) -> Signed:
    return Signed(config or {}, SignedTree(mac, image or {}), SignedTree(initfs, {}))


class TestConfiguration:
    @pytest.mark.parametrize(
        ("before", "now", "fields"),
        [
            ({"a": 1}, {"a": 1}, []),
            ({"a": 1}, {"a": True}, ["a"]),
            ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": None}, ["a.c", "d"]),
            ({"a": ["x"]}, {"a": ["x", "y"]}, ["a"]),
            ({"m": [{"t": 1}, {"t": 2}]}, {"m": [{"t": 1}, {"t": 3}]}, ["m[1].t"]),
            ({"m": [{"t": 1}]}, {"m": [{"t": 1}, {"t": 3}]}, ["m[1]"]),
            ({"m": [{"t": 1}, {"t": 3}]}, {"m": []}, ["m"]),
            ({"m": [{"t": 1}]}, {"m": {"t": 1}}, ["m"]),
        ],
    )
    def test_the_fields_that_differ_are_named(
        self, before: object, now: object, fields: list[str]
    ) -> None:
        assert list(changed_fields(before, now)) == fields

    def test_many_are_counted(self) -> None:
        line = next(changes(signed({}), signed({f"f{number:02}": 1 for number in range(14)})))
        assert line.startswith("configuration: 14 changed: f00, f01, ")
        assert line.endswith("f09 and 4 more")


class TestTrees:
    def test_the_same_mac_is_no_change(self) -> None:
        assert list(changes(signed(image={"a": "1"}), signed(image={"a": "2"}))) == []

    def test_files_are_counted_and_the_first_named(self) -> None:
        before = signed(image={"a": "1", "b": "1", "c": "1", "x": "1"})
        now = signed(image={"a": "2", "b": "1", "d": "1", "e": "1", "x": "2"}, mac=OTHER)
        assert list(changes(before, now)) == [
            "image: 2 changed, 2 added, 1 removed: /a, /x, /d and 2 more"
        ]

    def test_one_that_was_sealed_anew_without_a_change_says_so(self) -> None:
        (line,) = changes(signed(), signed(initfs=OTHER))
        assert line.startswith("init FS: the same files, sealed anew")

    def test_more_files_than_are_recorded_are_said_to_be(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(signedrecord, "MAX_FILES", 2)
        assert stamps({"a": "1", "b": "2"}, {}) is not None
        assert stamps({"a": "1", "b": "2", "c": "3"}, {}) is None
        now = Signed({}, SignedTree(OTHER, None), SignedTree(MAC, {}))
        assert next(changes(signed(), now)).startswith("image: changed, and has more than 2")

    def test_another_declared_owner_is_a_change(self) -> None:
        assert stamps({"a": "1"}, {}) != stamps({"a": "1"}, {"a": (1, 1)})

    def test_a_name_that_is_no_text_is_shown_as_escapes(self) -> None:
        now = signed(image={os.fsdecode(b"\xff"): "1"}, mac=OTHER)
        assert list(changes(signed(), now)) == ["image: 1 added: /\\xff"]


class TestRecord:
    @pytest.fixture(autouse=True)
    def _state(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def test_what_is_stored_is_loaded(self, tmp_path: Path) -> None:
        path = str(tmp_path / "inst")
        assert load_signed(path) is None
        value = signed({"a": [1, {"b": None}]}, image={os.fsdecode(b"\xff"): "0" * 16})
        store_signed(path, value)
        assert load_signed(path) == value
        assert load_signed(str(tmp_path / "other")) is None

    @pytest.mark.parametrize(
        "change",
        [
            {"format": 2},
            {"format": True},
            {"image": None},
            {"image": {"root_mac": "x", "files": {}}},
            {"image": {"root_mac": MAC}},
            {"image": {"root_mac": MAC, "files": {"a": 1}}},
            {"image": {"root_mac": MAC, "files": {"a": "zz"}}},
            {"more": 1},
        ],
    )
    def test_what_is_malformed_is_no_record(
        self, tmp_path: Path, change: dict[str, object]
    ) -> None:
        path = str(tmp_path / "inst")
        store_signed(path, signed())
        file = Path(signedrecord._path(path))
        value = json.loads(zlib.decompress(file.read_bytes()))
        file.write_bytes(zlib.compress(json.dumps({**value, **change}).encode()))
        assert load_signed(path) is None

    @pytest.mark.parametrize("raw", [b"", b"x", zlib.compress(b"{}"), zlib.compress(b"\xff")])
    def test_nor_is_what_cannot_be_read(self, tmp_path: Path, raw: bytes) -> None:
        path = str(tmp_path / "inst")
        store_signed(path, signed())
        Path(signedrecord._path(path)).write_bytes(raw)
        assert load_signed(path) is None

    def test_what_unpacks_to_more_than_it_may_is_not_unpacked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = str(tmp_path / "inst")
        monkeypatch.setattr(signedrecord, "_MAX_BYTES", 1 << 20)
        store_signed(path, signed({"a": "x" * (1 << 21)}))
        assert load_signed(path) is None
