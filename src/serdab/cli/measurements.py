# SPDX-License-Identifier: Apache-2.0
"""What was measured, as ``build`` and ``rekey`` print it.

Above: ``build``, ``rekey``. Below: the results of ``instance.build`` and ``instance.rekey``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serdab.instance.build import BuildResult
    from serdab.instance.rekey import RekeyResult


def fields_of(result: BuildResult | RekeyResult) -> dict[str, str]:
    """Return the measurements by the names that ``print`` knows them by."""
    return {
        "mrenclave": str(result.mrenclave),
        "mrsigner": str(result.mrsigner),
        "conf-mac": str(result.conf_mac),
        "init-mac": result.init_mac.hex(),
        "root-mac": result.root_mac.hex(),
    }


def lines_of(fields: dict[str, str]) -> list[str]:
    """Return a line for each."""
    return [f"{name:10}{value}" for name, value in fields.items()]
