# SPDX-License-Identifier: Apache-2.0
"""``python -m serdab``."""

from __future__ import annotations

from serdab.cli.door import main

if __name__ == "__main__":
    main()
