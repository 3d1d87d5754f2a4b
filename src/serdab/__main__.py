# SPDX-License-Identifier: Apache-2.0
"""``python -m serdab``."""

from __future__ import annotations

import sys

from serdab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
