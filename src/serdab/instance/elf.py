# SPDX-License-Identifier: Apache-2.0
"""What a program needs before it can start, read from its file; nothing is run.

``read_program`` reads an ELF file, or a ``#!`` line with the help of ``shebang``. Where its loader
looks for what is named here is for ``libraries`` to say.
"""

from __future__ import annotations

import os
from io import BufferedReader
from typing import Final

from serdab.instance.intree import open_host_file
from serdab.instance.shebang import Script, read_script
from serdab.structs import frozen

_MAX_SHEBANG: Final = 256
#: The entries whose values are names (elf(5), and the gABI for the rest).
_NAMES: Final = frozenset(
    {
        "DT_NEEDED",
        "DT_SONAME",
        "DT_RPATH",
        "DT_RUNPATH",
        "DT_FILTER",
        "DT_AUXILIARY",
        "DT_AUDIT",
        "DT_DEPAUDIT",
    }
)
_NO_DEFAULT_LIBRARIES: Final = 0x800  # DF_1_NODEFLIB


@frozen
class Program:
    """What stands in an ELF file that decides how it is loaded.

    ``interpreter`` is empty for libraries and static programs. ``filters`` and ``auxiliaries`` are
    loaded in front of it (the latter if they are there), ``audits`` beside it (rtld-audit(7)).
    """

    path: str
    machine: str
    bits: int
    interpreter: str = ""
    soname: str = ""
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()
    auxiliaries: tuple[str, ...] = ()
    audits: tuple[str, ...] = ()
    only_named: bool = False

    @property
    def is_musl(self) -> bool:
        """Whether musl's loader loads it, as far as the file itself tells."""
        return os.path.basename(self.interpreter).startswith("ld-musl-") or any(
            name.startswith("libc.musl-") or name == "libc.so" for name in self.needed
        )


def read_program(path: str, file: BufferedReader | None = None) -> Program | Script | None:
    """Return what ``path`` needs; None if it is neither an ELF file nor a script.

    ``file``: it is open already, and ``path`` what it is called; it is closed.

    Raises:
        ValueError: an ELF file that makes no sense.
    """
    file = file or open_host_file(path)
    if file is None:
        return None
    with file:
        head = file.read(_MAX_SHEBANG)
        if head[:2] == b"#!":
            return read_script(path, head)
        if head[:4] != b"\x7fELF":
            return None
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile

        try:
            return _program(path, ELFFile(file))
        except (ELFError, AssertionError, ValueError, KeyError, AttributeError, TypeError) as exc:
            # pyelftools lets the errors of its parts through when a file is damaged.
            raise ValueError(f"not a readable ELF file: {exc}") from exc


def _program(path: str, elf: object) -> Program:
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import InterpSegment

    assert isinstance(elf, ELFFile)  # noqa: S101 - for the type checker
    interpreter = ""
    entries: dict[str, list[str]] = {}
    only_named = False
    for segment in elf.iter_segments():
        if isinstance(segment, InterpSegment):
            interpreter = str(segment.get_interp_name())
        elif isinstance(segment, DynamicSegment):
            names = segment._get_stringtable  # of half the tags it gives the name
            for tag in segment.iter_tags():
                kind, value = tag.entry.d_tag, tag.entry.d_val
                if kind in _NAMES:
                    entries.setdefault(kind, []).append(str(names().get_string(value)))
                elif kind == "DT_FLAGS_1":
                    only_named = bool(value & _NO_DEFAULT_LIBRARIES)
    return Program(
        path,
        machine=str(elf["e_machine"]),
        bits=int(elf.elfclass),
        interpreter=interpreter,
        soname=(entries.get("DT_SONAME") or [""])[-1],
        needed=tuple(entries.get("DT_NEEDED", ())),
        # The last of several counts: to a loader an entry is a place in a table.
        rpath=_split(entries.get("DT_RPATH")),
        runpath=_split(entries.get("DT_RUNPATH")),
        filters=tuple(entries.get("DT_FILTER", ())),
        auxiliaries=tuple(entries.get("DT_AUXILIARY", ())),
        audits=(*_split(entries.get("DT_AUDIT")), *_split(entries.get("DT_DEPAUDIT"))),
        only_named=only_named,
    )


def _split(entries: list[str] | None) -> tuple[str, ...]:
    return tuple(part for part in entries[-1].split(":") if part) if entries else ()
