# SPDX-License-Identifier: Apache-2.0
"""BOM files: what a person lists, as typed values.

The format is Occlum's; unknown fields, fields given twice and ill-typed ones are refused by their
path in the file. Scalars are read as the strings that stand there (``yes``, ``010`` and ``1.0`` are
good file names). Above: ``bom``. Below: ``config.strict``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from serdab.config.strict import Fail, Section, Twice, refuse_twice
from serdab.errors import Error, UsageError
from serdab.instance.excludes import Excludes
from serdab.instance.owners import MAX_ID, Owner
from serdab.linux.outside import Walk
from serdab.structs import frozen

MAX_INCLUDES: Final = 100
_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@frozen
class FileItem:
    """One listed file. ``digest`` is its SHA-256 in upper-case hex, or empty."""

    name: str
    digest: str = ""
    autodep: bool = True
    rename: str = ""


@frozen
class Copy:
    """``origin`` empty: the parent of the root. Neither dirs nor files: the whole origin."""

    origin: str
    dirs: tuple[str, ...]
    files: tuple[FileItem, ...]


@frozen
class Target:
    """Everything that goes to one directory of the tree. ``owner`` None is 0:0."""

    path: str
    owner: Owner | None
    directories: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    copies: tuple[Copy, ...]


@frozen
class Bom:
    """One BOM file."""

    path: str
    includes: tuple[str, ...]
    excludes: Excludes
    targets: tuple[Target, ...]


def load_all(path: str, include_dirs: Iterable[str], say: Callable[[str], None]) -> list[Bom]:
    """Return the BOM and all it includes, breadth first; of one included twice the last place.

    Raises:
        UsageError: a file is missing or malformed, or includes go in circles.
    """
    directories = list(include_dirs)
    say = _once(say)
    order: list[Bom] = []
    pending = [os.path.abspath(path)]
    read: dict[str, Bom] = {}
    while pending:
        current = pending.pop(0)
        bom = read.get(current)
        if bom is None:
            bom = read[current] = _load(current, say)
        order.append(bom)
        if len(order) > MAX_INCLUDES:
            raise UsageError(
                "BOM files include each other in circles",
                stage="copy-bom",
                subject=path,
                expected=f"at most {MAX_INCLUDES} includes",
                found="more",
                hint="look at the includes of the files it names",
            )
        for name in bom.includes:
            pending.append(_find(name, bom.path, directories))
    last = {bom.path: index for index, bom in enumerate(order)}
    return [bom for index, bom in enumerate(order) if last[bom.path] == index]


def _once(say: Callable[[str], None]) -> Callable[[str], None]:
    """Return ``say`` without repetitions: one variable may stand in many paths."""
    said: set[str] = set()

    def say_once(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    return say_once


def _find(name: str, includer: str, directories: list[str]) -> str:
    for directory in (os.path.dirname(includer), *directories):
        candidate = os.path.abspath(os.path.join(directory, name))
        if os.path.isfile(candidate):
            return candidate
    raise UsageError(
        "an included BOM is missing",
        stage="copy-bom",
        subject=name,
        expected=f"beside {includer}, or in an --include-dir",
        found="no such file",
        hint="the templates that ship with Serdab are found without any option",
    )


def _load(path: str, say: Callable[[str], None]) -> Bom:
    try:
        with open(Walk().file(path), encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(
            "the BOM cannot be read",
            stage="copy-bom",
            subject=path,
            expected="a text file",
            found=(os.strerror(exc.errno or 0) if isinstance(exc, OSError) else "other bytes"),
            hint="docs/bom.md shows the format",
        ) from exc

    def fail(field: str, expected: str, found: str, hint: str) -> Error:
        return UsageError(
            f"BOM: {field}" if field else "not a BOM",
            stage="copy-bom",
            subject=path,
            expected=expected,
            found=found,
            hint=hint or "docs/bom.md shows every field",
        )

    top = Section(_mapping(_parse_yaml(text, fail), fail), "", fail)
    names = top.texts("includes", ())
    patterns = top.texts("excludes", ())
    try:
        excludes = Excludes(patterns)
    except ValueError as exc:
        hint = "docs/bom.md lists the patterns"
        raise top.refuse("excludes", "a pattern", str(exc), hint) from None
    targets = [
        _target(section, fail, say)
        for section in (top.sections("targets") if top.has("targets") else [])
    ]
    top.close()
    return Bom(path, tuple(_expand(name, say) for name in names), excludes, tuple(targets))


def _parse_yaml(text: str, fail: Fail) -> object:
    import yaml

    class Loader(yaml.BaseLoader):
        """Strings only, and each key once."""

    def mapping(loader: Any, node: Any) -> dict[str, object]:  # noqa: ANN401 - untyped library
        out: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise fail(
                    "", "names as keys", f"another key in line {key_node.start_mark.line + 1}", ""
                )
            line = key_node.start_mark.line + 1
            again = Twice(f"the same field again in line {line}")
            value = loader.construct_object(value_node, deep=True)
            out[key] = again if key in out else value
        return out

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        value = yaml.load(text, Loader=Loader)  # noqa: S506 - a loader that makes strings only
        refuse_twice(value, fail)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(exc, "problem", None) or "not YAML"
        raise fail("", "YAML", f"{problem}{where}", "") from None
    except RecursionError:
        raise fail("", "sane nesting", "endless nesting", "") from None
    return cast("object", value)


def _mapping(value: object, fail: Fail) -> dict[str, object]:
    """Return a mapping without its empty fields: ``copy:`` with nothing behind is no field."""
    if value in (None, ""):
        return {}
    if not isinstance(value, dict):
        raise fail("", "fields", "something else", "")
    return {name: _prune(item) for name, item in value.items() if item != ""}


def _prune(value: object) -> object:
    if isinstance(value, dict):
        return {name: _prune(item) for name, item in value.items() if item != ""}
    if isinstance(value, list):
        return [_prune(item) for item in value]
    return value


def _target(section: Section, fail: Fail, say: Callable[[str], None]) -> Target:
    path = _expand(section.text("target"), say)
    owner = _owner(section)
    directories = tuple(_expand(name, say) for name in section.texts("mkdirs", ()))
    links = []
    for link in section.sections("createlinks") if section.has("createlinks") else ():
        links.append((_expand(link.text("src"), say), _expand(link.text("linkname"), say)))
        link.close()
    copies = []
    for copy in section.sections("copy") if section.has("copy") else ():
        origin = _expand(copy.text("from", ""), say)
        dirs = tuple(_expand(name, say) for name in copy.texts("dirs", ()))
        files = tuple(_files(copy, say))
        copy.close()
        copies.append(Copy(origin, dirs, files))
    section.close()
    return Target(path, owner, directories, tuple(links), tuple(copies))


def _owner(section: Section) -> Owner | None:
    """Take the owner of a target: two numbers joined by a colon."""
    text = section.text("owner", "")
    if not text:
        return None
    numbers = text.split(":")
    if len(numbers) != 2 or not all(
        part.isascii() and part.isdigit() and len(part) <= 10 and int(part) <= MAX_ID
        for part in numbers
    ):
        raise section.refuse("owner", "two numbers, as in 1000:1000", repr(text))
    return int(numbers[0]), int(numbers[1])


def _files(copy: Section, say: Callable[[str], None]) -> Iterable[FileItem]:
    for item in copy.mixed("files"):
        if isinstance(item, str):
            yield FileItem(_expand(item, say))
            continue
        digest = item.text("hash", "").upper()
        if digest and (len(digest) != 64 or not all(c in "0123456789ABCDEF" for c in digest)):
            raise item.refuse("hash", "64 hexadecimal digits", repr(digest))
        yield FileItem(
            _expand(item.text("name"), say),
            digest,
            item.text("autodep", "true", choices=("true", "false")) == "true",
            _expand(item.text("rename", ""), say),
        )
        item.close()


def _expand(text: str, say: Callable[[str], None]) -> str:
    """Replace $NAME and ${NAME} by the caller's environment."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name in os.environ:
            return os.environ[name]
        say(f"warning: the variable {name} is not set and stays as it is")
        return match[0]

    return _VARIABLE.sub(value, text)
