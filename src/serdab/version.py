# SPDX-License-Identifier: Apache-2.0
"""The version of Serdab: the one place that says it (the wheel, the CLI and the descriptor read it)."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
