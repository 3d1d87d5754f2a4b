# SPDX-License-Identifier: Apache-2.0
"""The kernel's file system in memory, as for the mounts of tests/fuse."""

from tests.fuse.conftest import tmpfs

__all__ = ["tmpfs"]
