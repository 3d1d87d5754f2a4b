# SPDX-License-Identifier: Apache-2.0
"""What is read without argparse is read as argparse reads it; what is not plain is left to it."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from serdab.cli import plainwords
from serdab.cli.messages import Context
from serdab.cli.verbparser import VerbParser
from serdab.errors import UsageError

KEY = ["--image-key", "app.key"]
PLAIN = {
    "run": [
        ["/bin/true"],
        [*KEY, "/bin/true", "-x", "--image-key", "other", "--", ""],
        ["--image-key", "-", "--previous", "-q", "/bin/sh", "-c", "--help"],
        ["-C", "app", "--log-level", "debug", "--json", "-v", "--accept-rollback", "/bin/true"],
        [*KEY, "--image-key", "second", "--pin-file", "", "--config-id", "1", "prog", "a b"],
        ["--expect-root", "-", "", "argument"],
    ],
    "exec": [["/bin/true", "-"], ["--quiet", "--verbose", "/bin/true"]],
    "start": [[], [*KEY, "--foreground"], ["--foreground", "--foreground", "--log-level", "off"]],
}
NOT_PLAIN = {
    "run": [
        [], KEY, ["--image-key"], ["--image-key", "--previous", "/bin/true"], ["--help"], ["-h"],
        ["--image-key=app.key", "/bin/true"], ["--previous=1", "/bin/true"],
        ["--prev", "/bin/true"],
        ["-qv", "/bin/true"], ["-Capp", "/bin/true"], ["--", "/bin/true"], ["-", "x"], ["-1", "x"],
        ["--nothing", "/bin/true"], ["--foreground", "/bin/true"],
    ],
    "exec": [[], ["--image-key", "app.key", "/bin/true"]],
    "start": [["/bin/true"], ["--foreground", "/bin/true"], ["--", "--foreground"]],
}  # fmt: skip


def cases(of: dict[str, list[list[str]]]) -> list[tuple[str, list[str]]]:
    return [(verb, words) for verb, lines in of.items() for words in lines]


def module_of(verb: str) -> ModuleType:
    return importlib.import_module("serdab.cli." + {"exec": "exec_"}.get(verb, verb))


def seen(context: Context) -> list[object]:
    return [getattr(context, name) for name in Context.__slots__]


@pytest.mark.parametrize(("verb", "words"), cases(PLAIN))
def test_both_read_the_same(verb: str, words: list[str]) -> None:
    module, plain, slow = module_of(verb), Context(), Context()
    got = plainwords.read(module.configure, words, plain)
    parser = VerbParser(verb, module.SUMMARY, slow)
    module.configure(parser)
    expected = parser.parse_args(list(words))
    assert got is not None
    assert vars(got) == vars(expected)
    assert seen(plain) == seen(slow)


@pytest.mark.parametrize(("verb", "words"), cases(NOT_PLAIN))
def test_what_is_not_plain_is_left_and_nothing_was_taken(verb: str, words: list[str]) -> None:
    context = Context()
    assert plainwords.read(module_of(verb).configure, ["-q", *words], context) is None
    assert seen(context) == seen(Context())


def test_a_level_that_there_is_not_is_refused_by_both() -> None:
    words = ["--log-level", "loud", "/bin/true"]
    with pytest.raises(UsageError, match="unknown log level"):
        plainwords.read(module_of("run").configure, words, Context())
