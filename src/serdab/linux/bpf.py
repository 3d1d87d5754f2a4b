# SPDX-License-Identifier: Apache-2.0
"""Classic BPF as seccomp takes it: a small assembler with labels. Pure.

Above: ``libos.filter`` (the policy). Only the instructions that seccomp's own emulator for its
"always allowed" bitmap understands are offered, so that a plain call never runs the program
(Linux 5.11, kernel/seccomp.c).
"""

from __future__ import annotations

import struct
from typing import Final

from serdab.errors import InternalError

LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP: Final = 0x05
JUMP_IF_EQUAL: Final = 0x15
JUMP_IF_GREATER: Final = 0x25
JUMP_IF_AT_LEAST: Final = 0x35
JUMP_IF_BITS: Final = 0x45
RETURN: Final = 0x06

#: Offsets in struct seccomp_data.
NUMBER: Final = 0
ARCHITECTURE: Final = 4

_INSTRUCTION: Final = struct.Struct("<HBBI")
_MAX: Final = 4096


def argument_low(index: int) -> int:
    """Return the offset of the low 32 bits of an argument on a little-endian machine."""
    return 16 + 8 * index


class Assembler:
    """Collects instructions; jumps name labels that may stand later."""

    __slots__ = ("_code", "_labels")

    def __init__(self) -> None:
        self._code: list[tuple[int, str, str, int]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """Name the place of the next instruction."""
        if name in self._labels:
            raise InternalError(f"label {name} stands twice")
        self._labels[name] = len(self._code)

    def load(self, offset: int) -> None:
        """Load 32 bits of struct seccomp_data."""
        self._code.append((LOAD, "", "", offset))

    def jump_if(self, test: int, value: int, then: str, otherwise: str = "") -> None:
        """Go to ``then`` when the test holds, else to ``otherwise`` (default: the next line)."""
        self._code.append((test, then, otherwise, value))

    def jump(self, target: str) -> None:
        """Go to ``target``."""
        self._code.append((JUMP, target, "", 0))

    def give(self, action: int) -> None:
        """End with an action."""
        self._code.append((RETURN, "", "", action))

    def assemble(self) -> bytes:
        """Return the program as an array of struct sock_filter.

        Raises:
            InternalError: a label is missing, behind, or out of a conditional jump's reach.
        """
        if not 0 < len(self._code) <= _MAX:
            raise InternalError(f"a filter of {len(self._code)} instructions")
        out = bytearray()
        for position, (code, then, otherwise, value) in enumerate(self._code):
            if code in (LOAD, RETURN):
                out += _INSTRUCTION.pack(code, 0, 0, value)
            elif code == JUMP:
                out += _INSTRUCTION.pack(code, 0, 0, self._distance(position, then, _MAX))
            else:
                yes = self._distance(position, then, 255)
                no = self._distance(position, otherwise, 255) if otherwise else 0
                out += _INSTRUCTION.pack(code, yes, no, value)
        return bytes(out)

    def _distance(self, position: int, label: str, limit: int) -> int:
        if label not in self._labels:
            raise InternalError(f"label {label} does not exist")
        distance = self._labels[label] - position - 1
        if not 0 <= distance <= limit:
            raise InternalError(f"label {label} is {distance} instructions away")
        return distance


def run(program: bytes, number: int, architecture: int, arguments: tuple[int, ...] = ()) -> int:
    """Return what ``program`` decides for a call: an interpreter, for tests and for ``doctor``."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    scene = struct.pack("<IIQ6Q", number, architecture, 0, *padded)
    position = accumulator = 0
    while True:
        code, yes, no, value = _INSTRUCTION.unpack_from(program, position * 8)
        position += 1
        if code == LOAD:
            (accumulator,) = struct.unpack_from("<I", scene, value)
        elif code == RETURN:
            return int(value)
        elif code == JUMP:
            position += value
        else:
            holds = {
                JUMP_IF_EQUAL: accumulator == value,
                JUMP_IF_GREATER: accumulator > value,
                JUMP_IF_AT_LEAST: accumulator >= value,
                JUMP_IF_BITS: accumulator & value != 0,
            }[code]
            position += yes if holds else no
