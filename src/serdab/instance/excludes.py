# SPDX-License-Identifier: Apache-2.0
"""Exclude patterns of a BOM: a stated subset of rsync(1)'s.

* ``name`` matches a file or directory of that name anywhere in a copied directory;
* ``a/b`` matches where a path ends in it; ``/a`` is anchored at the copied directory;
* a trailing ``/`` matches directories only;
* ``*`` is any run of characters but ``/``, ``**`` includes ``/``, ``?`` is one, ``[...]`` a class.

What matches is left out with everything below it. Include rules (``+ x``, ``- x``), merge files and
the rest of rsync's language are refused rather than misread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


class Excludes:
    """Compiled patterns; :meth:`match` takes paths relative to the copied directory."""

    __slots__ = ("_rules",)

    def __init__(self, patterns: Iterable[str]) -> None:
        self._rules = [_compile(pattern) for pattern in patterns]

    def match(self, path: str, *, is_directory: bool) -> bool:
        """Return whether the path is left out."""
        return any(
            rule.search("/" + path) is not None
            for rule, directories_only in self._rules
            if is_directory or not directories_only
        )


def _compile(pattern: str) -> tuple[re.Pattern[str], bool]:
    """Return the expression for a pattern.

    Raises:
        ValueError: it is not in the subset.
    """
    if not pattern or pattern.startswith(("+ ", "- ", "!", ":", ". ")) or "\\" in pattern:
        raise ValueError(f"not a pattern that is understood: {pattern!r}")
    directories_only = pattern.endswith("/")
    body = pattern.rstrip("/")
    if not body:
        raise ValueError(f"a pattern without a name: {pattern!r}")
    anchored = body.startswith("/")
    body = body.lstrip("/")
    out = "^/" if anchored else "/"
    position = 0
    while position < len(body):
        character = body[position]
        if body.startswith("**", position):
            out += ".*"
            position += 2
            continue
        if character == "*":
            out += "[^/]*"
        elif character == "?":
            out += "[^/]"
        elif character == "[":
            end = body.find("]", position + 2)
            if end < 0:
                raise ValueError(f"an open class in {pattern!r}")
            inside = body[position + 1 : end]
            negated = inside[:1] in ("!", "^")
            inside = inside[1:] if negated else inside
            out += ("[^/" if negated else "[") + re.sub(r"([\\\[\]^])", r"\\\1", inside) + "]"
            position = end
        else:
            out += re.escape(character)
        position += 1
    try:
        return re.compile(out + "$", re.DOTALL), directories_only
    except re.error as exc:
        raise ValueError(f"not a pattern: {pattern!r}: {exc}") from None
