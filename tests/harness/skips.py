# SPDX-License-Identifier: Apache-2.0
"""The list of tests that may be skipped in CI: one a line, ``node id  # reason``.

A line names one test (without its parameters) or a whole file.
"""

from __future__ import annotations

from pathlib import Path


def load_allowed(path: Path) -> dict[str, str]:
    """Return reason by node id.

    Raises:
        ValueError: a line has no reason.
    """
    allowed = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        nodeid, separator, reason = line.partition("  # ")
        if not separator or not reason.strip():
            raise ValueError(f"{path.name}:{number}: expected 'node id  # reason', found {line!r}")
        allowed[nodeid.strip()] = reason.strip()
    return allowed


def is_allowed(nodeid: str, allowed: dict[str, str]) -> bool:
    """Return whether the test, or the file it is in, stands on the list."""
    plain = nodeid.partition("[")[0]
    return plain in allowed or plain.partition("::")[0] in allowed
