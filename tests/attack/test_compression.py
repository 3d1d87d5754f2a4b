# SPDX-License-Identifier: Apache-2.0
"""What the size of an encrypted image tells of a secret that lies beside text of an attacker.

Compression across both makes a right guess smaller than a wrong one (CRIME, for files): digit by
digit, since each prefix that is right is one byte less. The attacker here chooses one file, name or
attribute, has the image built, and sees its size; nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from serdab.keys import Key
from serdab.sefs.imagebuild import ImageOptions, build_image

KEY: Final = Key(b"nobody knows it!")
PREFIX: Final = b"api_token = "
SECRETS: Final = (b"4071", b"9358", b"2266")
DIGITS: Final = b"0123456789"
Plant = Callable[[Path, bytes, bytes], None]


def filler(seed: int, lines: int) -> bytes:
    """Text that belongs to one file alone."""
    return b"".join(b"%d: line %d of %d\n" % (seed, n, n * seed) for n in range(lines))


def inline(tree: Path, secret: bytes, guess: bytes) -> None:
    """Two small files in one leaf of the tree."""
    (tree / "config").write_bytes(PREFIX + secret + b"\n")
    (tree / "planted").write_bytes(PREFIX + guess)


def inline_text(tree: Path, secret: bytes, guess: bytes) -> None:
    """The same, long enough for each to compress."""
    (tree / "config").write_bytes(filler(3, 40) + PREFIX + secret + b"\n")
    (tree / "planted").write_bytes(filler(3, 40) + PREFIX + guess)


def tails(tree: Path, secret: bytes, guess: bytes) -> None:
    """Two tails that share a record."""
    (tree / "config").write_bytes(filler(3, 200) + PREFIX + secret + b"\n")
    (tree / "planted").write_bytes(filler(3, 200) + PREFIX + guess)


def names(tree: Path, secret: bytes, guess: bytes) -> None:
    """A name that is secret beside one that the attacker chose."""
    (tree / os.fsdecode(b"customer-" + secret)).write_bytes(b"")
    (tree / "planted").mkdir()
    (tree / "planted" / os.fsdecode(b"customer-" + guess)).write_bytes(b"")


def attributes(tree: Path, secret: bytes, guess: bytes) -> None:
    for name, value in (("config", secret), ("planted", guess)):
        (tree / name).write_bytes(b"")
        os.setxattr(tree / name, "user.token", PREFIX + value)


def targets(tree: Path, secret: bytes, guess: bytes) -> None:
    (tree / "config").symlink_to(os.fsdecode(b"/srv/by-token/" + secret))
    (tree / "planted").symlink_to(os.fsdecode(b"/srv/by-token/" + guess))


PLANTS: Final = (inline, inline_text, tails, names, attributes, targets)


def one_file(tree: Path, secret: bytes, guess: bytes) -> None:
    """Both in one file: what nothing can tell apart."""
    (tree / "log").write_bytes(filler(3, 200) + PREFIX + secret + b"\nend\n" + PREFIX + guess)


class Oracle:
    """Builds a tree around a secret and a guess, and tells the size of the image."""

    def __init__(self, folder: Path, plant: Plant, options: ImageOptions | None = None) -> None:
        self._folder, self._plant, self._options = folder, plant, options
        self._count = 0

    def size(self, secret: bytes, guess: bytes) -> int:
        self._count += 1
        tree = self._folder / f"tree {self._count}"
        tree.mkdir()
        self._plant(tree, secret, guess)
        out = self._folder / "out"
        return build_image(tree, out, key=KEY, options=self._options).stored_bytes

    def digits(self, secret: bytes) -> int:
        """Guess digit by digit; return how many of them were right.

        What a guess costs by itself the attacker knows: by the same tree around another secret.
        """
        right = 0
        for number, digit in enumerate(secret):
            gains = {}
            for candidate in DIGITS:
                guess = secret[:number] + bytes((candidate,))
                gains[candidate] = self.size(b"oooo", guess) - self.size(secret, guess)
            most = max(gains.values())
            right += [each for each, gain in gains.items() if gain == most] == [digit]
        return right


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_no_guess_is_smaller_because_it_is_right(tmp_path: Path, plant: Plant) -> None:
    """The size is the sum of what the secret costs and what the guess costs."""
    oracle = Oracle(tmp_path, plant)
    guesses = [*SECRETS, b"4xxx", b"93xx", b"226x"]
    table = {secret: [oracle.size(secret, guess) for guess in guesses] for secret in SECRETS}
    first = table[SECRETS[0]]
    for sizes in table.values():
        assert len({size - base for size, base in zip(sizes, first, strict=True)}) == 1, table


def test_digit_by_digit_nothing_is_found(tmp_path: Path) -> None:
    """Of version 1, which compressed both as one, it found 10 of these 12 digits."""
    oracle = Oracle(tmp_path, inline)
    assert [oracle.digits(secret) for secret in SECRETS] == [0, 0, 0]


def test_the_attack_finds_digits_where_both_are_one_file(tmp_path: Path) -> None:
    """The documented limit, and the proof that the attack above would find what there is."""
    oracle = Oracle(tmp_path, one_file)
    assert sum(oracle.digits(secret) for secret in SECRETS[:2]) >= 4


def test_without_compression_one_file_tells_nothing_either(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path, one_file, ImageOptions(zstd_level=0))
    assert len({oracle.size(secret, guess) for secret in SECRETS for guess in SECRETS}) == 1
