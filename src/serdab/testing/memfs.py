# SPDX-License-Identifier: Apache-2.0
"""The in-memory file system under the name by which tests look for it."""

from __future__ import annotations

from serdab.vfs.memfs import MemFs

__all__ = ["MemFs"]
