# SPDX-License-Identifier: Apache-2.0
"""What a person or a build configured, as typed and validated values.

``occlum`` reads the file people write (``Occlum.json``); ``boot`` reads and writes the measured
file that a build derives from it and every boot verifies; ``strict`` is the reader both share;
``dirs`` names the user's directories. Above: everything. Below: ``errors`` and ``keys`` only.

The names of ``boot`` are exported here because each boot needs them; ``occlum`` is imported by its
own name, so that a boot does not pay for it.
"""

from __future__ import annotations

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
