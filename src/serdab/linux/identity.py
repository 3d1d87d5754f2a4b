# SPDX-License-Identifier: Apache-2.0
"""What tells a file from all others while it is held open: device and inode number (inode(7)).

Above: everything that compares files. Below: the kernel.
"""

from __future__ import annotations

import os

Identity = tuple[int, int]


def identity(fd: int) -> Identity:
    """Return (st_dev, st_ino) of what a descriptor stands for."""
    return identity_of(os.fstat(fd))


def identity_of(status: os.stat_result) -> Identity:
    """Return (st_dev, st_ino) of a status."""
    return status.st_dev, status.st_ino
