# SPDX-License-Identifier: Apache-2.0
"""Which places on the host the programs of an instance can write, as far as can be told.

What a command line names alone (keys, what signs) must not lie there: a program would put its own
in its place, or read it. Counted are the instance directory, and what the configuration that was
last edited and the one that was last built show, less what is hidden.

Above: ``cli``. Below: ``libos.reserved``. Both configurations are read without being checked: they
can only make more places count, and whoever obeys them checks them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from serdab.config.dirs import cache_dir, config_dir, runtime_dirs, state_dir
from serdab.errors import Error
from serdab.instance.layout import CONFIG, PROTECTED_CONFIG, Instance
from serdab.libos.reserved import is_below, reserved_part


def reached_part(instance: str, path: str) -> str | None:
    """Return what of a path programs of the instance can write or replace, or None.

    Each name on the way counts: a link in such a place leads where a program wants.
    """
    real = os.path.realpath(instance)
    roots = (real, *_shown_roots(real))
    hidden = tuple(map(os.path.realpath, (state_dir(), config_dir(), cache_dir(), *runtime_dirs())))
    for place in (*_names_on_the_way(path), os.path.realpath(path)):
        is_shown = any(is_below(place, root) and place != root for root in roots)
        is_hidden = any(is_below(place, item) for item in hidden)
        if is_shown and not is_hidden and reserved_part(place, real) is None:
            return place
    return None


def _names_on_the_way(path: str) -> Iterator[str]:
    """Yield where the names of a path lie that are links, and the last one."""
    at = "/"
    parts = [part for part in os.path.abspath(path).split("/") if part]
    for number, part in enumerate(parts):
        place = os.path.join(at, part)
        if number == len(parts) - 1 or os.path.islink(place):
            yield place
        at = os.path.realpath(place)


def _shown_roots(instance: str) -> set[str]:
    """Return the real paths of the directories that programs may write."""
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
    named = (source for source in sources if isinstance(source, str) and "\0" not in source)
    return {os.path.realpath(os.path.join(instance, source)) for source in named}


def _listed(section: object, name: str) -> list[object]:
    value = section.get(name) if isinstance(section, dict) else None
    return value if isinstance(value, list) else []
