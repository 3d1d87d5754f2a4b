# SPDX-License-Identifier: Apache-2.0
"""Instances for the boot tests: built once a session, as root and as an ordinary user."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sandbox.conftest import Box, Place, place, probe_program

__all__ = ["place", "probe_program"]


@pytest.fixture(scope="session")
def hosted(place: Place, probe_program: Path) -> Box:
    """An instance as ``new`` makes it: the default configuration, /host included."""
    return place.build(probe_program, files={"/etc/resolv.conf": b"", "/etc/hosts": b""})


@pytest.fixture(scope="session")
def configured(place: Place, probe_program: Path) -> Callable[..., Box]:
    """Return ``configured(**changes)``: an instance whose top-level settings are changed."""

    def build(**changes: object) -> Box:
        def change(config: dict[str, object]) -> None:
            for name, value in json.loads(json.dumps(changes)).items():
                config[name] = value

        return place.build(probe_program, change)

    return build
