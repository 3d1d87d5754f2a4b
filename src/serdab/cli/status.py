# SPDX-License-Identifier: Apache-2.0
"""``serdab status``."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Final

from serdab.cli import exitcodes
from serdab.cli.messages import Context

if TYPE_CHECKING:
    from serdab.service.client import Status

SUMMARY: Final = "tell whether the instance runs as a service, and what runs in it"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments."""


def main(args: argparse.Namespace, context: Context) -> int:
    """Print it; 0 if there is a service, else 1."""
    from serdab.instance.layout import Instance
    from serdab.instance.locks import run_holder
    from serdab.service.client import ask_status

    instance = Instance.open(context.instance, sources=False).path
    status = ask_status(instance, on_wait=context.say)
    if status is None:
        holder = run_holder(instance)
        text = "stopped" if holder is None else f"stopped; in use by {holder}"
        context.result({"state": "stopped", "in_use_by": holder}, text)
        return exitcodes.FAILED
    context.result(_fields(status), *_lines(status))
    return exitcodes.DONE


def _fields(status: Status) -> dict[str, object]:
    return {
        "state": status.state,
        "pid": status.pid,
        "since": status.since_ms / 1000,
        "log": status.log or None,
        "measured": [
            {"stage": stage, "subject": subject, "digest": digest}
            for stage, subject, digest in status.measured
        ],
        "programs": [
            {
                "path": program.path,
                "client": program.client or None,
                "since": program.since_ms / 1000,
                "terminal": program.has_terminal,
            }
            for program in status.programs
        ],
    }


def _lines(status: Status) -> list[str]:
    lines = [
        f"{status.state}, process {status.pid}, since {status.since()}",
        f"log: {status.log or 'its standard error'}",
        "measured:",
    ]
    lines += [f"  {stage:8} {digest}  {subject}" for stage, subject, digest in status.measured]
    lines.append(f"programs: {len(status.programs)}")
    now_ms = time.time() * 1000
    for program in sorted(status.programs, key=lambda program: program.since_ms):
        age_s = max(0, int((now_ms - program.since_ms) / 1000))
        client = f"client {program.client}" if program.client else "its client is gone"
        lines.append(f"  {program.path}, {age_s} s, {client}")
    return lines
