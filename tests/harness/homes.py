# SPDX-License-Identifier: Apache-2.0
"""A volume's place by its path: of tests, whose directories nobody else writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from serdab.sefs.hostdir import HostDir


@dataclass(slots=True)
class NamedHome:
    """As ``trust.freshness.Home``."""

    place: Path
    path: str = ""

    def __post_init__(self) -> None:
        self.path = os.path.realpath(self.place)

    def find(self) -> HostDir | None:
        """Open the directory; None if there is none."""
        return HostDir.at(self.place) if self.place.is_dir() else None

    def make(self) -> HostDir:
        """Open the directory, made if it is missing."""
        self.place.mkdir(parents=True, mode=0o700)
        return HostDir.at(self.place)
