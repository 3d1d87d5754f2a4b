# SPDX-License-Identifier: Apache-2.0
"""Signals as something to poll: signalfd(2), which Python does not offer.

Unlike a handler it tells who sent a signal, and it takes one only when it is read: until then the
signal is pending, and may be unblocked again.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from serdab.linux.libc import check, libc
from serdab.structs import frozen

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

_SFD_CLOEXEC: Final = 0o2000000
_SFD_NONBLOCK: Final = 0o4000
_SI_KERNEL: Final = 0x80
_INFO: Final = struct.Struct("<IiiI112x")  # struct signalfd_siginfo: signo, errno, code, pid
_MASK_BYTES: Final = 128  # sigset_t of the C library


@frozen
class Sent:
    """One signal. ``is_of_kernel``: the terminal sent it, to the whole process group."""

    number: int
    is_of_kernel: bool
    sender: int


def open_signals(numbers: Iterable[int]) -> int:
    """Return a descriptor for signals that this thread, and all others, hold back."""
    bits = sum(1 << (number - 1) for number in numbers)
    mask = ctypes.create_string_buffer(bits.to_bytes(_MASK_BYTES, "little"), _MASK_BYTES)
    return check(libc.signalfd(-1, mask, _SFD_CLOEXEC | _SFD_NONBLOCK), "signalfd")


def read_signals(fd: int) -> list[Sent]:
    """Return those that came, perhaps none."""
    try:
        raw = os.read(fd, 32 * _INFO.size)
    except BlockingIOError:
        return []
    return [
        Sent(number, code == _SI_KERNEL, sender)
        for number, _, code, sender in _INFO.iter_unpack(raw)
    ]
