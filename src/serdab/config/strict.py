# SPDX-License-Identifier: Apache-2.0
"""A strict reader of JSON: every field is named, typed and bounded, and nothing is left over.

Both configuration files go through it. It refuses what JSON parsers let pass (a key given twice,
NaN, other encodings, deep nesting) and names a field by its path in the file, as in
``mount[2].options.layers``. A schema library would do the typing as well, but costs more at
import than a whole boot may spend on its configuration.

A :class:`Section` is one JSON object; its methods take fields out of it by name and type;
:meth:`Section.close` refuses what was not taken. How a refusal looks (exit 2 for what a person
wrote, exit 3 for measured bytes) is decided by the ``fail`` function of the caller.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from serdab.errors import Error

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32

# (field path, expected, found, hint) -> the error to raise
Fail = Callable[[str, str, str, str], Error]

_UNITS: Final = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40, "B": 1}


def _shown(value: object) -> str:
    """Return a short description of a JSON value for a message."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            text = value if len(value) <= 40 else value[:37] + "..."
            return json.dumps(text)
        case int() | float():
            return f"the number {value}"
        case list():
            return f"a list of {len(value)}"
        case dict():
            return "an object"
        case _:
            return type(value).__name__


def _depth_is_fine(value: object) -> bool:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return True
    return False


def load_object(raw: bytes, fail: Fail) -> Section:
    """Parse ``raw`` as one JSON object."""

    twice = False

    def each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal twice
        out: dict[str, object] = {}
        for name, value in pairs:
            out[name] = Twice("the same field twice") if name in out else value
        twice = twice or len(out) < len(pairs)
        return out

    def refuse_constant(name: str) -> NoReturn:
        raise fail("", "JSON", f"the word {name}", "")

    if len(raw) > MAX_BYTES:
        raise fail("", f"at most {MAX_BYTES} bytes", f"{len(raw)} bytes", "")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise fail("", "UTF-8 text", f"another byte at offset {exc.start}", "") from None
    try:
        value = json.loads(text, object_pairs_hook=each_once, parse_constant=refuse_constant)
    except json.JSONDecodeError as exc:
        where = f"line {exc.lineno}, column {exc.colno}"
        hint = "comments are not part of JSON" if _at_comment(text, exc.pos) else ""
        # Some of the parser's sentences end in "at" themselves.
        said = exc.msg.lower().removesuffix(" at")
        raise fail("", "JSON", f"something else at {where}: {said}", hint) from None
    except RecursionError:
        raise fail("", f"at most {MAX_DEPTH} levels", "deeper nesting", "") from None
    except ValueError:
        # int() refuses numbers of more than 4300 digits.
        raise fail("", "numbers of a sane length", "an endless number", "") from None
    if not _depth_is_fine(value):
        raise fail("", f"at most {MAX_DEPTH} levels", "deeper nesting", "")
    if twice:
        refuse_twice(value, fail)
    if not isinstance(value, dict):
        raise fail("", "an object", _shown(value), "")
    return Section(value, "", fail)


def _at_comment(text: str, position: int) -> bool:
    rest = text[position:].lstrip()
    return rest.startswith(("//", "/*", "#"))


class Twice:
    """Stands where a field is given a second time, until its path is known; ``found`` says it."""

    __slots__ = ("found",)

    def __init__(self, found: str) -> None:
        self.found = found


def refuse_twice(value: object, fail: Fail, path: str = "") -> None:
    """Refuse the first field below ``value`` that a parser marked with :class:`Twice`.

    Raises:
        Error: what ``fail`` makes of it, with the whole path of the field.
    """
    if isinstance(value, Twice):
        raise fail(path, "each field once", value.found, "")
    if isinstance(value, dict):
        for name, item in value.items():
            refuse_twice(item, fail, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            refuse_twice(item, fail, f"{path}[{index}]")


class Section:
    """One JSON object whose fields are taken out one by one."""

    __slots__ = ("_fail", "_left", "_known", "path")

    def __init__(self, value: dict[str, object], path: str, fail: Fail) -> None:
        self._left = dict(value)
        self._known: list[str] = []
        self._fail = fail
        self.path = path

    def where(self, name: str) -> str:
        """Return the path of a field of this section."""
        return f"{self.path}.{name}" if self.path else name

    def refuse(self, name: str, expected: str, found: str, hint: str = "") -> Error:
        """Return the error for a field, for the caller to raise."""
        return self._fail(self.where(name) if name else self.path, expected, found, hint)

    def has(self, name: str) -> bool:
        """Return whether the field is there and was not taken yet."""
        self._known.append(name)
        return name in self._left

    def _take(self, name: str, expected: str) -> object:
        self._known.append(name)
        if name not in self._left:
            import difflib

            for near in difflib.get_close_matches(name, self._left, n=1):
                # A misspelt field is both unknown and missing: name the one that can be seen.
                raise self.refuse(near, f"a known field: {name}, {expected}", "an unknown field")
            raise self.refuse(name, expected, "nothing")
        return self._left.pop(name)

    def _absent(self, name: str) -> bool:
        self._known.append(name)
        return name not in self._left

    def flag(self, name: str, *, default: bool | None = None) -> bool:
        """Take true or false; absent is ``default``, or refused when that is None."""
        if default is not None and self._absent(name):
            return default
        value = self._take(name, "true or false")
        if not isinstance(value, bool):
            raise self.refuse(name, "true or false", _shown(value))
        return value

    def integer(
        self, name: str, default: int | None = None, *, low: int = 0, high: int = (1 << 63) - 1
    ) -> int:
        """Take a whole number from ``low`` to ``high``."""
        if default is not None and self._absent(name):
            return default
        expected = f"a whole number from {low} to {high}"
        value = self._take(name, expected)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(name, expected, _shown(value))
        return value

    def optional_integer(self, name: str, *, low: int = 0, high: int = (1 << 63) - 1) -> int | None:
        """Take a whole number; absent or null is None."""
        if self._absent(name):
            return None
        if self._left[name] is None:
            del self._left[name]
            return None
        return self.integer(name, low=low, high=high)

    def text(
        self, name: str, default: str | None = None, *, choices: Sequence[str] | None = None
    ) -> str:
        """Take a string, one of ``choices`` when they are given."""
        if default is not None and self._absent(name):
            return default
        expected = "a string" if choices is None else "one of " + ", ".join(choices)
        value = self._take(name, expected)
        if not isinstance(value, str) or (choices is not None and value not in choices):
            raise self.refuse(name, expected, _shown(value))
        self._check_characters(name, value)
        return value

    def optional_text(self, name: str) -> str | None:
        """Take a string; absent or null is None."""
        if self._absent(name):
            return None
        if self._left[name] is None:
            del self._left[name]
            return None
        return self.text(name)

    def texts(self, name: str, default: Sequence[str] | None = None) -> tuple[str, ...]:
        """Take a list of strings."""
        if default is not None and self._absent(name):
            return tuple(default)
        value = self._take(name, "a list of strings")
        if not isinstance(value, list):
            raise self.refuse(name, "a list of strings", _shown(value))
        for index, item in enumerate(value):
            if not isinstance(item, str):
                raise self.refuse(f"{name}[{index}]", "a string", _shown(item))
            self._check_characters(f"{name}[{index}]", item)
        return tuple(value)

    def optional_texts(self, name: str) -> tuple[str, ...] | None:
        """Take a list of strings; absent or null is None."""
        if self._absent(name):
            return None
        if self._left[name] is None:
            del self._left[name]
            return None
        return self.texts(name)

    def size(self, name: str) -> int | None:
        """Take a size in bytes written as a number and a unit; absent is None."""
        if self._absent(name):
            return None
        expected = "a size: a whole number and one of KB, MB, GB, TB, B"
        value = self._take(name, expected)
        if not isinstance(value, str):
            raise self.refuse(name, expected, _shown(value), 'write it as in "256MB"')
        text = value.strip()
        for unit, factor in _UNITS.items():
            if text.endswith(unit):
                digits = text.removesuffix(unit).strip()
                if digits.isascii() and digits.isdigit() and len(digits) <= 15:
                    count = int(digits) * factor
                    if count < 1 << 63:
                        return count
                break
        raise self.refuse(name, expected, _shown(value), 'write it as in "256MB"')

    def hex_bytes(self, name: str, count: int) -> bytes:
        """Take ``count`` bytes written as lower-case hexadecimal digits."""
        expected = f"{2 * count} hexadecimal digits"
        value = self.text(name)
        if len(value) != 2 * count or any(c not in "0123456789abcdef" for c in value):
            raise self.refuse(name, expected, _shown(value))
        return bytes.fromhex(value)

    def section(self, name: str) -> Section:
        """Take an object; absent is an empty one."""
        if self._absent(name):
            return Section({}, self.where(name), self._fail)
        value = self._take(name, "an object")
        if not isinstance(value, dict):
            raise self.refuse(name, "an object", _shown(value))
        return Section(value, self.where(name), self._fail)

    def sections(self, name: str) -> list[Section]:
        """Take a list of objects."""
        value = self._take(name, "a list of objects")
        if not isinstance(value, list):
            raise self.refuse(name, "a list of objects", _shown(value))
        out = []
        for index, item in enumerate(value):
            if not isinstance(item, dict):
                raise self.refuse(f"{name}[{index}]", "an object", _shown(item))
            out.append(Section(item, f"{self.where(name)}[{index}]", self._fail))
        return out

    def mixed(self, name: str) -> list[str | Section]:
        """Take a list whose items are strings or objects; absent is an empty one."""
        if self._absent(name):
            return []
        value = self._take(name, "a list")
        if not isinstance(value, list):
            raise self.refuse(name, "a list", _shown(value))
        out: list[str | Section] = []
        for index, item in enumerate(value):
            if isinstance(item, dict):
                out.append(Section(item, f"{self.where(name)}[{index}]", self._fail))
            elif isinstance(item, str):
                self._check_characters(f"{name}[{index}]", item)
                out.append(item)
            else:
                raise self.refuse(f"{name}[{index}]", "a string or an object", _shown(item))
        return out

    def close(self) -> None:
        """Refuse the first field that was not taken."""
        for name in self._left:
            import difflib

            near = difflib.get_close_matches(name, self._known, n=1)
            # Asked for twice (as by ``has`` and by its type), a field is still one.
            known = ", ".join(dict.fromkeys(self._known)) or "no field"
            raise self.refuse(
                name if name.isidentifier() else json.dumps(name),
                f"one of the known fields ({known})",
                "an unknown field",
                f"did you mean {near[0]}?" if near else "",
            )

    def _check_characters(self, name: str, value: str) -> None:
        if "\0" in value:
            raise self.refuse(name, "a string without NUL", "a NUL character")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise self.refuse(name, "text", "half of a surrogate pair")
