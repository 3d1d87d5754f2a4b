# SPDX-License-Identifier: Apache-2.0
"""``serdab doctor``."""

from __future__ import annotations

import argparse
from typing import Final

from serdab.cli import exitcodes
from serdab.cli.messages import Context

SUMMARY: Final = "show what this machine has and lacks"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments."""


def main(args: argparse.Namespace, context: Context) -> int:
    """Show every finding; fail if something required is missing."""
    from serdab.instance.machine import examine
    from serdab.trust import platform

    findings = examine()
    name = platform.current().name
    lines = []
    for finding in findings:
        word = "has" if finding.present else "LACKS" if finding.required else "lacks"
        lines.append(f"{word:6} {finding.feature:26} {finding.detail}")
        if not finding.present:
            lines.append(f"       hint: {finding.hint}")
    lines.append(f"keys   {name}: keys are bound to a file, root reads everything")
    fields: dict[str, object] = {
        "platform": name,
        "findings": [
            {
                "feature": finding.feature,
                "present": finding.present,
                "required": finding.required,
                "detail": finding.detail,
                "hint": "" if finding.present else finding.hint,
            }
            for finding in findings
        ],
    }
    context.result(fields, *lines)
    missing = any(finding.required and not finding.present for finding in findings)
    return exitcodes.LACKING if missing else exitcodes.DONE
