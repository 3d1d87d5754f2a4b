# SPDX-License-Identifier: Apache-2.0
"""Occlum.json: what is acted on, accepted with a line, or refused, and by which name."""

from __future__ import annotations

import copy
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from serdab.config import occlum
from serdab.config.boot import MountEntry
from serdab.config.imageform import MAX_PADDING_BYTES, MIN_PADDING_BYTES, ImageForm
from serdab.errors import UsageError
from serdab.instance.create import templates_dir
from serdab.sefs.imageformat import is_padding

REPOSITORY = Path(__file__).parents[3]


def template() -> dict[str, Any]:
    """Return the configuration that `new` writes."""
    value: dict[str, Any] = json.loads(Path(templates_dir(), "Occlum.json").read_bytes())
    return value


def parse(value: object) -> occlum.InstanceConfig:
    return occlum.parse(json.dumps(value).encode())


def with_(path: str, value: object) -> dict[str, Any]:
    """Return the template with one field set; `a.b[0].c` names it."""
    config = copy.deepcopy(template())
    steps: list[str | int] = [
        int(part) if part.isdigit() else part for part in re.split(r"[.\[\]]+", path) if part
    ]
    node: Any = config
    for step, following in itertools.pairwise(steps):
        if isinstance(step, str) and step not in node:
            node[step] = [] if isinstance(following, int) else {}
        node = node[step]
    node[steps[-1]] = value
    return config


class TestTemplate:
    def test_says_what_the_contract_says(self) -> None:
        config = parse(template())
        assert config.entry_points == ("/bin",)
        assert config.env_default[0] == "OCCLUM=yes"
        assert config.env_default[1].startswith("PATH=/")
        assert config.env_untrusted == ("EXAMPLE", "TERM")
        assert config.limits.max_processes is None
        assert config.limits.memory_bytes is None
        assert MountEntry("/host", "hostfs", ".") in config.mounts
        assert config.upper.source == "run/mount/__ROOT"
        assert config.notes == ()

    def test_log_follows_debuggable_unless_it_is_said(self) -> None:
        assert parse(with_("metadata.debuggable", True)).disable_log is False
        assert parse(with_("metadata.debuggable", False)).disable_log is True
        config = with_("metadata.debuggable", False)
        config["metadata"]["disable_log"] = False
        assert parse(config).disable_log is False


class TestOcclumsOwnExample:
    def test_the_documented_fields_are_all_accepted(self) -> None:
        config = template()
        config["resource_limits"] = {
            "kernel_space_heap_size": "4MB",
            "kernel_space_heap_max_size": "40MB",
            "kernel_space_stack_size": "1MB",
            "user_space_size": "1MB",
            "user_space_max_size": "600MB",
            "init_num_of_threads": 2,
            "max_num_of_threads": 64,
        }
        config["process"] = {
            "default_stack_size": "4MB",
            "default_heap_size": "8MB",
            "default_mmap_size": "100MB",
        }
        config["metadata"] |= {
            "enable_kss": False,
            "family_id": {"high": "0x0", "low": "0x0"},
            "ext_prod_id": {"high": "0x0", "low": "0x0"},
        }
        config["feature"] = {
            "amx": 0,
            "pkru": 2,
            "io_uring": 1,
            "enable_edmm": True,
            "enable_posix_shm": True,
        }
        parsed = parse(config)
        assert parsed.limits.max_processes == 64
        assert parsed.limits.memory_bytes == 600 << 20
        assert parsed.limits.stack_bytes == 4 << 20
        assert len(parsed.notes) == 11
        assert all("accepted, changes nothing here" in note for note in parsed.notes)

    def test_the_smaller_size_is_the_limit_when_it_stands_alone(self) -> None:
        config = with_("resource_limits.user_space_size", "300MB")
        assert parse(config).limits.memory_bytes == 300 << 20

    def test_key_separation_enters_the_descriptor(self) -> None:
        config = with_("metadata.enable_kss", True)
        config["metadata"]["family_id"] = {"high": "0x1", "low": "0xff"}
        assert parse(config).key_separation == (
            bytes(7) + b"\1" + bytes(7) + b"\xff",
            bytes(16),
        )


LAYER = "mount[0].options.layers"
REFUSALS = [
    ("entry_pionts", ["/bin"], "entry_pionts"),
    ("entry_points", "/bin", "entry_points"),
    ("entry_points", [], "entry_points"),
    ("entry_points", ["bin"], "entry_points[0]"),
    ("entry_points", ["/bin", "/usr/../bin"], "entry_points[1]"),
    ("entry_points", ["/bin\0"], "entry_points[0]"),
    ("env.default", ["NOVALUE"], "env.default[0]"),
    ("env.untrusted", ["A=b"], "env.untrusted[0]"),
    ("env.trusted", [], "env.trusted"),
    ("metadata.product_id", "0", "metadata.product_id"),
    ("metadata.product_id", True, "metadata.product_id"),
    ("metadata.product_id", 1.0, "metadata.product_id"),
    ("metadata.product_id", -1, "metadata.product_id"),
    ("metadata.product_id", 65536, "metadata.product_id"),
    ("metadata.debuggable", 1, "metadata.debuggable"),
    ("metadata.debuggable", None, "metadata.debuggable"),
    ("metadata.family_id", {"high": "0x1"}, "metadata.enable_kss"),
    ("metadata.family_id", {"high": "0xzz"}, "metadata.family_id.high"),
    ("metadata.family_id", {"mid": "0x0"}, "metadata.family_id.mid"),
    ("feature.amx", 3, "feature.amx"),
    ("feature.io_uring", 17, "feature.io_uring"),
    ("feature.sgx2", 1, "feature.sgx2"),
    ("process.default_stack_size", 4096, "process.default_stack_size"),
    ("process.default_stack_size", "1KB", "process.default_stack_size"),
    ("process.default_heap_size", "16mb", "process.default_heap_size"),
    ("resource_limits.user_space_size", "MB", "resource_limits.user_space_size"),
    ("resource_limits.user_space_size", "-1MB", "resource_limits.user_space_size"),
    ("resource_limits.user_space_size", "1.5GB", "resource_limits.user_space_size"),
    ("resource_limits.user_space_size", "99999999999TB", "resource_limits.user_space_size"),
    ("resource_limits.user_space_size", "0B", "resource_limits.user_space_size"),
    ("resource_limits.max_num_of_threads", 0, "resource_limits.max_num_of_threads"),
    ("resource_limits.max_threads", 1, "resource_limits.max_threads"),
    ("mount", {}, "mount"),
    ("mount", [], "mount"),
    ("mount[0].type", "sefs", "mount[0].type"),
    ("mount[0].type", "ext4", "mount[0].type"),
    ("mount[0].options.layers", [], LAYER),
    ("mount[0].options.layer", [], "mount[0].options.layer"),
    ("mount[0].options.layers[0].source", "./image", f"{LAYER}[0].source"),
    ("mount[0].options.layers[0].options", {}, f"{LAYER}[0].options.MAC"),
    ("mount[0].options.layers[0].options.MAC", "xx", f"{LAYER}[0].options.MAC"),
    ("mount[0].options.layers[1].source", "build/upper", f"{LAYER}[1].source"),
    ("mount[0].options.layers[1].source", "../upper", f"{LAYER}[1].source"),
    ("mount[0].options.layers[1].source", "/upper", f"{LAYER}[1].source"),
    ("mount[0].options.layers[1].options", {"MAC": ""}, f"{LAYER}[1].options.MAC"),
    ("mount[0].options.layers[1].options", {"index": 1}, f"{LAYER}[1].options.index"),
    (
        "mount[0].options.layers[1].options",
        {"cache_size": "191KB"},
        f"{LAYER}[1].options.cache_size",
    ),
    (
        "mount[0].options.layers[1].options",
        {"cache_size": "193KB"},
        f"{LAYER}[1].options.cache_size",
    ),
    ("mount[1].source", None, "mount[1].source"),
    ("mount[1].target", "host", "mount[1].target"),
    ("mount[1].target", "/a/../b", "mount[1].target"),
    ("mount[1].target", "", "mount[1].target"),
    ("serdab.runtime_mounts.programs", ["/bin/.."], "serdab.runtime_mounts.programs[0]"),
    ("serdab.runtime_mounts.programs", ["bin"], "serdab.runtime_mounts.programs[0]"),
    (f"{LAYER}[1].source", "run/../x", f"{LAYER}[1].source"),
    ("mount[1].target", "/proc", "mount[2].target"),
    ("mount[1].options", {"quota": "1GB"}, "mount[1].options.quota"),
    ("mount[1]", {"target": "/x", "type": "ext2"}, "mount[1].type"),
    ("mount[1]", {"target": "/x", "type": "sefs", "source": "x"}, "mount[1].type"),
    ("mount[2].target", "/processes", "mount[2].target"),
    ("serdab.network", "bridge", "serdab.network"),
    ("serdab.colour", "blue", "serdab.colour"),
]


class TestRefusals:
    @pytest.mark.parametrize(("path", "value", "subject"), REFUSALS)
    def test_names_the_field_by_its_path(self, path: str, value: object, subject: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse(with_(path, value))
        assert caught.value.subject == subject
        assert caught.value.expected
        assert caught.value.found
        assert caught.value.hint

    @pytest.mark.parametrize(
        ("raw", "words"),
        [
            (b"", "JSON"),
            (b"[]", "an object"),
            (b'{"env": "a\nb"}', "line 1, column 11: invalid control character"),
            (b'{"env": {}, "env": {}}', "same field twice"),
            (b'{"mount": NaN}', "NaN"),
            (b"\xff\xfe{}", "UTF-8"),
            (b"// comment\n{}", "comments are not part of JSON"),
            (b'{"env": ' + b"[" * 5000 + b"]" * 5000 + b"}", "levels"),
            (b'{"env": ' + b"[" * 40 + b"]" * 40 + b"}", "levels"),
            (b" " * ((1 << 20) + 1), "bytes"),
            (b'{"env": ' + b"9" * 5000 + b"}", "number"),
            (b'{"entry_points": ["/\\ud800"]}', "surrogate"),
        ],
    )
    def test_bytes_that_are_no_such_file(self, raw: bytes, words: str) -> None:
        with pytest.raises(UsageError) as caught:
            occlum.parse(raw)
        assert words in f"{caught.value} {caught.value.hint}"

    def test_a_near_name_is_suggested(self) -> None:
        with pytest.raises(UsageError, match="unknown field") as caught:
            parse(with_("env.untrustd", []))
        assert caught.value.hint == "did you mean untrusted?"

    def test_it_is_suggested_in_the_form_of_the_image_too(self) -> None:
        for given, field in (("compresion", "compression"), ("paddings", "padding")):
            with pytest.raises(UsageError, match="unknown field") as caught:
                parse(with_("serdab", {"image": {given: "none"}}))
            assert caught.value.subject == f"serdab.image.{given}"
            assert caught.value.hint == f"did you mean {field}?"

    def test_a_known_field_is_named_once(self) -> None:
        with pytest.raises(UsageError, match="unknown field") as caught:
            parse(with_("metadata.foo", 1))
        known = caught.value.expected.split("(")[1].rstrip(")").split(", ")
        assert sorted(known) == sorted(set(known))

    def test_a_misspelt_needed_field_is_named_itself(self) -> None:
        config = template()
        config["mount"][1]["tarhet"] = config["mount"][1].pop("target")
        with pytest.raises(UsageError) as caught:
            parse(config)
        assert caught.value.subject == "mount[1].tarhet"


class TestImageForm:
    """``serdab.image``: what the size of an image gives away."""

    @pytest.mark.parametrize(
        ("section", "form"),
        [
            ({}, ImageForm(is_compressed=True, padding_bytes=0)),
            ({"compression": "zstd"}, ImageForm(is_compressed=True, padding_bytes=0)),
            ({"compression": "none"}, ImageForm(is_compressed=False, padding_bytes=0)),
            ({"padding": "0B"}, ImageForm(is_compressed=True, padding_bytes=0)),
            ({"padding": "4KB"}, ImageForm(is_compressed=True, padding_bytes=4096)),
            ({"padding": "1GB"}, ImageForm(is_compressed=True, padding_bytes=1 << 30)),
        ],
    )
    def test_it_is_taken(self, section: dict[str, str], form: ImageForm) -> None:
        assert parse(with_("serdab", {"image": section})).image_form == form

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("compression", "gzip"), ("compression", True), ("compression", ""),
            ("padding", "2KB"), ("padding", "4095B"), ("padding", "12KB"), ("padding", "2GB"),
            ("padding", 4096), ("padding", "much"),
        ],
    )  # fmt: skip
    def test_anything_else_is_refused(self, field: str, value: object) -> None:
        with pytest.raises(UsageError) as caught:
            parse(with_("serdab", {"image": {field: value}}))
        assert caught.value.subject == f"serdab.image.{field}"

    def test_its_bounds_are_those_of_the_format(self) -> None:
        for size in (MIN_PADDING_BYTES, MAX_PADDING_BYTES):
            assert is_padding(size)
        assert not is_padding(MIN_PADDING_BYTES // 2)
        assert not is_padding(MAX_PADDING_BYTES * 2)


class TestSpellings:
    """Each field that names a path inside takes what the others take."""

    @pytest.mark.parametrize("text", ["/etc/", "//etc", "/etc/.", "/./etc", "/etc//"])
    def test_another_spelling_of_a_path_is_that_path(self, text: str) -> None:
        assert parse(with_("entry_points", [text])).entry_points == ("/etc",)
        assert parse(with_("mount[1].target", text)).mounts[0].target == "/etc"
        key = {"name": "k", "source": text}
        ours = parse(with_("serdab", {"runtime_mounts": {"programs": [text], "keys": [key]}}))
        assert ours.runtime_mounts.programs == ("/etc",)
        assert ours.runtime_mounts.keys[0].source == "/etc"

    def test_two_spellings_of_one_target_are_one_target(self) -> None:
        config = with_("mount[1].target", "/host")
        config["mount"].append({**config["mount"][1], "target": "/host/"})
        with pytest.raises(UsageError, match="target"):
            parse(config)


class TestMounts:
    def test_proc_and_dev_are_added_when_they_are_not_listed(self) -> None:
        config = template()
        config["mount"] = config["mount"][:1]
        assert parse(config).mounts == (
            MountEntry("/proc", "procfs"),
            MountEntry("/dev", "devfs"),
        )

    @pytest.mark.parametrize(
        ("text", "mac"),
        [("", b""), ("ab" * 32, b"\xab" * 32), ("-".join(["C7"] * 16), b"\xc7" * 16)],
    )
    def test_the_image_mac_is_a_reference_value(self, text: str, mac: bytes) -> None:
        assert parse(with_(f"{LAYER}[0].options.MAC", text)).image_mac == mac

    def test_the_policy_of_the_automatic_key_is_taken(self) -> None:
        config = with_(f"{LAYER}[1].options", {"autokey_policy": 1, "temporary": True})
        upper = parse(config).upper
        assert upper.autokey_policy == 1
        assert upper.temporary


def test_the_documented_table_names_every_field_the_parser_takes() -> None:
    text = (REPOSITORY / "docs/config.md").read_text()
    source = (REPOSITORY / "src/serdab/config/occlum.py").read_text()
    names = set(re.findall(r'\.(?:flag|integer|optional_integer|size)\(\s*"(\w+)"', source))
    source = (REPOSITORY / "src/serdab/config/imageform.py").read_text()
    names |= set(re.findall(r'section\.(?:text|size)\(\s*"(\w+)"', source))
    names |= set(re.findall(r'"(kernel_space_\w+|amx|pkru|family_id|ext_prod_id)"', source))
    assert len(names) > 15
    missing = sorted(name for name in names if f"`{name}`" not in re.sub(r"[\w.\[\]]+\.", "", text))
    assert missing == []
