# SPDX-License-Identifier: Apache-2.0
"""Reads the ``#!`` line of a script as the kernel does (execve(2)), and as env(1) does after it.

The kernel hands everything behind the interpreter over as one word; only ``env -S`` splits it, by
rules of its own: quotes, escapes, comments. What that word names decides what must be in an image.

Above: ``elf``.
"""

from __future__ import annotations

import os
import re
from typing import Final

from serdab.structs import frozen

#: Options of env(1) that take a word of their own, and those that may bring it along with "=".
_WITH_WORD: Final = {"-u", "-C", "-a", "--unset", "--chdir", "--argv0"}
_SPLIT: Final = "--split-string"
_SHORT: Final = re.compile(r"-[i0v]*([uCaS])(.*)", re.DOTALL)
_SPACES: Final = " \t\n\v\f\r"
_ESCAPES: Final = {"f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_ASSIGNED: Final = re.compile(r"([^=]+)=(.*)", re.DOTALL)


@frozen
class Script:
    """A file with a ``#!`` line.

    ``command`` is what env(1) is to look up, if the interpreter is env, in the directories of
    ``search`` where the line sets PATH; empty where that cannot be told from the file.
    """

    path: str
    interpreter: str
    command: str = ""
    search: tuple[str, ...] = ()


def read_script(path: str, head: bytes) -> Script | None:
    """Return what the first line of a script names; None if it names nothing.

    ``head``: the start of the file, as much as the kernel looks at.
    """
    line = head[2:].split(b"\n", 1)[0].decode("utf-8", "surrogateescape").strip(" \t")
    interpreter, *rest = re.split(r"[ \t]+", line, maxsplit=1)
    if not interpreter:
        return None
    if os.path.basename(interpreter) != "env" or not rest:
        return Script(path, interpreter)
    word = rest[0]
    if not word.startswith("-"):
        # Without -S it is one word, spaces and all: no system starts that, and the first part is
        # what was meant.
        word = word.split()[0]
    command, search = _of_env([word])
    return Script(path, interpreter, command, search)


def _of_env(words: list[str]) -> tuple[str, tuple[str, ...]]:
    """Return the command that env(1) looks up, and the PATH that it is given."""
    pending = list(words)
    search: tuple[str, ...] = ()
    options = True
    while pending:
        word = pending.pop(0)
        if options and word.startswith("-"):
            options = word != "--"
            pending = _after_option(word, pending)
        elif assigned := _ASSIGNED.fullmatch(word):
            options = False
            if assigned[1] == "PATH":
                search = tuple(part for part in assigned[2].split(":") if part.startswith("/"))
        else:
            return word, search
    return "", search


def _after_option(word: str, pending: list[str]) -> list[str]:
    """Return the words that are left behind an option."""
    name, equals, value = word.partition("=")
    if name == _SPLIT:
        return split_string(value if equals else "".join(pending[:1])) + pending[not equals :]
    if word in _WITH_WORD:
        return pending[1:]
    short = None if word.startswith("--") else _SHORT.fullmatch(word)
    if short is None:
        return pending
    kind, attached = short[1], short[2]
    if kind == "S":
        return split_string(attached or "".join(pending[:1])) + pending[not attached :]
    return pending if attached else pending[1:]


def split_string(text: str) -> list[str]:
    """Split as ``env -S`` does; nothing where a variable of the environment would decide.

    What env(1) refuses (an open quote, an unknown escape) gives nothing, too.
    """
    words: list[str] = []
    word: str | None = None
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if quote == "'" and char not in "'\\":
            word = (word or "") + char
        elif char in "'\"" and quote in ("", char):
            quote = "" if quote else char
            word = word or ""
        elif char == "\\":
            escaped = text[at : at + 1]
            at += 1
            if quote == "'" and escaped not in ("'", "\\"):
                word = (word or "") + char + escaped
            elif escaped == "c" and not quote:
                break
            elif escaped == "_" and not quote:
                words += [] if word is None else [word]
                word = None
            else:
                plain = _unescaped(escaped)
                if plain is None:
                    return []
                word = (word or "") + plain
        elif char == "$":
            return []
        elif char == "#" and word is None and not quote:
            break
        elif char in _SPACES and not quote:
            words += [] if word is None else [word]
            word = None
        else:
            word = (word or "") + char
    if quote:
        return []
    return words if word is None else [*words, word]


def _unescaped(char: str) -> str | None:
    if char == "_":
        return " "
    if char and char in "\"#$'\\":
        return char
    return _ESCAPES.get(char)
