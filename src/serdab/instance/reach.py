# SPDX-License-Identifier: Apache-2.0
"""Which places on the host the programs of an instance can write, as far as can be told.

What a command line names alone (keys, what signs) must not lie there: a program would put its own
in its place, or read it. Counted are the instance directory, and what the configuration that was
last edited and the one that was last built show, less what is hidden.

Above: ``cli``. Below: ``libos.reserved``, ``linux.outside``. Both configurations are read without
being checked: they can only make more places count, and whoever obeys them checks them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from serdab.config.dirs import cache_dir, config_dir, runtime_dirs, state_dir
from serdab.errors import Error
from serdab.instance.layout import CONFIG, PROTECTED_CONFIG, Instance
from serdab.libos.reserved import reserved_part
from serdab.linux.dirfd import DirFd
from serdab.linux.outside import trace
from serdab.linux.whereabouts import MountTable, Where, open_if_there
from serdab.structs import frozen


def reached_part(instance: str, path: str) -> str | None:
    """Return what of a path programs of the instance can write or replace, or None.

    Each name on the way counts: a link in such a place leads where a program wants. Decided by
    where things lie on their file systems: a mount gives a place two paths, and it is one.

    Raises:
        Error: that cannot be told.
    """
    with DirFd.at(instance) as directory, MountTable() as table:
        home = directory.real()
        roots = [*_roots(table, home)]
        own = (state_dir(), config_dir(), cache_dir(), *runtime_dirs())
        hidden = {where for each in own for where in table.named(os.fsencode(each))}
        for place in trace(table, path):
            if any(place.is_below(each) for each in hidden):
                continue
            for root in roots:
                found = root.reach(place)
                if found is not None and reserved_part(found, home) is None:
                    return found
    return None


@frozen
class _Root:
    """A directory that programs are shown, or what is mounted below it: ``where``, seen ``at``.

    ``is_mount``: another file system shows through there, itself included.
    """

    where: Where
    at: bytes
    is_mount: bool

    def reach(self, place: Where) -> str | None:
        """Return by which path a place is seen there."""
        if not place.is_below(self.where) or (place == self.where and not self.is_mount):
            return None
        return os.fsdecode(os.path.join(self.at, place.below(self.where)).rstrip(b"/"))


def _roots(table: MountTable, home: str) -> Iterator[_Root]:
    for source in dict.fromkeys((".", *_shown(home))):
        fd = open_if_there(os.fsencode(os.path.join(home, source)))
        if fd is None:
            continue
        try:
            root = _Root(table.of(fd), os.readlink(b"/proc/self/fd/%d" % fd), is_mount=False)
        finally:
            os.close(fd)
        yield root
        for mount in table.mounted_below(root.at):
            yield _Root(mount.shows, mount.target, is_mount=True)


def _shown(instance: str) -> list[str]:
    """Return what the configurations let programs see."""
    sources: list[object] = []
    for relative, mounts in ((CONFIG, "mount"), (PROTECTED_CONFIG, "mounts")):
        try:
            with Instance(instance) as place:
                config = json.loads(place.read(relative))
        except (Error, ValueError, RecursionError):
            continue
        ours = config if isinstance(config, dict) else {}
        extra = ours.get("serdab") if relative == CONFIG else ours
        sources += _listed(extra, "host_directories")
        for entry in _listed(ours, mounts):
            if isinstance(entry, dict) and entry.get("type") == "hostfs":
                sources.append(entry.get("source") or ".")
    return [source for source in sources if isinstance(source, str) and "\0" not in source]


def _listed(section: object, name: str) -> list[object]:
    value = section.get(name) if isinstance(section, dict) else None
    return value if isinstance(value, list) else []
