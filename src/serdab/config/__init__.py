# SPDX-License-Identifier: Apache-2.0
"""What a person or a build configured, as typed and validated values.

``occlum`` reads the file people write (``Occlum.json``); ``boot`` reads and writes the measured
file that a build derives from it and every boot verifies; ``strict`` is the reader both share;
``dirs`` names the user's directories. Above: everything. Below: ``errors`` and ``keys`` only.

The names of ``boot`` can be imported from here. They are fetched at first use: the command line
needs ``dirs`` alone, and its start is on the way of every run.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from serdab.config.boot import (
        BootConfig,
        Limits,
        MountEntry,
        UpperLayer,
        dump_boot_config,
        parse_boot_config,
    )

__all__ = [
    "BootConfig",
    "Limits",
    "MountEntry",
    "UpperLayer",
    "dump_boot_config",
    "parse_boot_config",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from serdab.config import boot

    return getattr(boot, name)
