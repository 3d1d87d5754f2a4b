# SPDX-License-Identifier: Apache-2.0
"""A volume in a host directory, the sessions that use it, and what the storage does to it."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serdab.keys import Key
from serdab.structs import replace
from serdab.trust.freshness import RECORD, Watch, Watched, open_watched
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union
from tests.harness.homes import NamedHome

KEY = Key(b"key of freshness")
CONF = b"c" * 32
RECORDED = Watch(RECORD, conf_mac=CONF)


@dataclass(frozen=True, slots=True)
class Place:
    """A volume's directory, and where its copies go."""

    path: Path
    watch: Watch = RECORDED

    def open(self, **changes: object) -> Watched:
        return open_watched(NamedHome(self.path), replace(self.watch, **changes), key=KEY)

    @contextmanager
    def session(self, **changes: object) -> Iterator[tuple[Union, Watched]]:
        watched = self.open(**changes)
        fs = Union(watched.volume, None)
        try:
            yield fs, watched
        finally:
            try:
                fs.close()
            finally:
                watched.guard.close()

    def write(self, name: str, **changes: object) -> list[str]:
        """Make a file, and leave the volume closed; return the notices."""
        with self.session(**changes) as (fs, watched):
            fs.mknod(ROOT_INO, name.encode(), stat.S_IFREG | 0o600, 0, 0, 0)
        return watched.notices

    def crash(self, *names: str, commit: bool = True, **changes: object) -> None:
        """Make files, each committed, and end as kill -9 does."""
        watched = self.open(**changes)
        fs = Union(watched.volume, None)
        for name in names:
            fs.mknod(ROOT_INO, name.encode(), stat.S_IFREG | 0o600, 0, 0, 0)
            if commit:
                fs.syncfs()
        watched.volume.abandon()
        watched.guard.close()

    def names(self, **changes: object) -> set[bytes]:
        with self.session(**changes) as (fs, _):
            return {entry.name for entry in fs.readdir(ROOT_INO, 0)} - {b".", b".."}

    def open_lines(self, **changes: object) -> list[str]:
        """Open and close it; return the notices."""
        with self.session(**changes) as (_, watched):
            return watched.notices

    def save(self, name: str) -> Path:
        return Path(shutil.copytree(self.path, self.path.with_name(name)))

    def restore(self, copy: Path) -> None:
        if self.path.exists():
            shutil.rmtree(self.path)
        shutil.copytree(copy, self.path)

    def content(self) -> dict[str, bytes]:
        files = (path for path in self.path.rglob("*") if path.is_file())
        return {str(path.relative_to(self.path)): path.read_bytes() for path in files}


def only_record(volumes: Path) -> Path:
    """Return the one record that there is."""
    (found,) = volumes.glob("*/record.json")
    return found
