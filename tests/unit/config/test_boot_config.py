# SPDX-License-Identifier: Apache-2.0
"""The measured configuration: one spelling, everything else refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serdab.config import (
    BootConfig,
    Limits,
    MountEntry,
    UpperLayer,
    dump_boot_config,
    parse_boot_config,
)
from serdab.errors import Error, FormatError
from serdab.structs import replace

PLAIN = BootConfig("encrypted", b"\1" * 32, b"\2" * 32)
FULL = BootConfig(
    "integrity-only",
    bytes(range(32)),
    bytes(range(32, 64)),
    entry_points=("/bin", "/usr/bin"),
    env_default=("A=1", "B=ü"),
    env_untrusted=("TERM",),
    limits=Limits(10, 1 << 30, 8 << 20),
    mounts=(MountEntry("/host", "hostfs", "."), MountEntry("/tmp", "ramfs")),
    upper=UpperLayer("run/x", 1, True),
    builtin_image_key=True,
    product_id=3,
    security_version=4,
    debuggable=False,
    disable_log=True,
    host_directories=(".", "/srv"),
    network="none",
)


@pytest.mark.parametrize("config", [PLAIN, FULL])
def test_what_is_dumped_is_parsed_to_the_same(config: BootConfig) -> None:
    raw = dump_boot_config(config)
    assert parse_boot_config(raw) == config
    assert raw.endswith(b"}\n")
    assert raw.isascii()


def test_the_bytes_are_frozen() -> None:
    # A change of these bytes changes conf MACs: it is a new format number, not an edit here.
    assert dump_boot_config(replace(PLAIN, init_mac=bytes(32), root_mac=bytes(32))) == (
        b'{"builtin_image_key":false,"debuggable":true,"disable_log":false,'
        b'"entry_points":["/bin"],"env":{"default":[],"untrusted":[]},"format":1,"freshness":"record",'
        b'"host_directories":["."],"image_type":"encrypted","init_mac":"' + b"0" * 64 + b'",'
        b'"limits":{"max_processes":null,"memory_bytes":null,"stack_bytes":null},"mounts":[],'
        b'"network":"host","product_id":0,"root_mac":"' + b"0" * 64 + b'","security_version":0,'
        b'"upper":{"autokey_policy":0,"max_bytes":null,"source":"run/mount/__ROOT","temporary":false}}\n'
    )


@pytest.mark.parametrize("field", sorted(json.loads(dump_boot_config(FULL))))
def test_every_field_is_needed(field: str) -> None:
    value: dict[str, Any] = json.loads(dump_boot_config(FULL))
    del value[field]
    with pytest.raises(FormatError):
        parse_boot_config(canonical(value))


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("format", 2),
        ("format", True),
        ("image_type", "plain"),
        ("init_mac", "00" * 31),
        ("root_mac", "AB" * 32),
        ("entry_points", ["bin"]),
        ("env", {"default": [], "untrusted": [], "more": []}),
        ("limits", {"max_processes": 0, "memory_bytes": None, "stack_bytes": None}),
        ("mounts", [{"target": "/x", "type": "sefs", "source": "y"}]),
        ("mounts", [{"target": "/x", "type": "hostfs", "source": None}]),
        ("mounts", [{"target": "/proc", "type": "procfs", "source": "y"}]),
        ("product_id", -1),
        ("network", "bridge"),
        ("surprise", 1),
    ],
)
def test_a_wrong_field_is_refused(field: str, bad: object) -> None:
    value: dict[str, Any] = json.loads(dump_boot_config(FULL))
    value[field] = bad
    with pytest.raises(FormatError) as caught:
        parse_boot_config(canonical(value))
    assert caught.value.stage == "config"


def test_another_spelling_of_the_same_is_refused() -> None:
    value = json.loads(dump_boot_config(FULL))
    for raw in (json.dumps(value).encode(), dump_boot_config(FULL)[:-1]):
        with pytest.raises(FormatError):
            parse_boot_config(raw)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_an_error_of_ours(raw: bytes) -> None:
    with pytest.raises(Error):
        parse_boot_config(raw)


@given(st.integers(0, len(dump_boot_config(FULL)) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused_or_another_configuration(position: int, change: int) -> None:
    raw = bytearray(dump_boot_config(FULL))
    raw[position] ^= change
    try:
        assert parse_boot_config(bytes(raw)) != FULL
    except FormatError:
        pass


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
