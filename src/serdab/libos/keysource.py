# SPDX-License-Identifier: Apache-2.0
"""Where the key of a writable volume comes from, and which part of that differs from ours.

A volume keeps this in clear in its anchor (``sefs.anchor``). When a key does not open the volume,
:func:`wrong_key` compares what the volume says with what we have and names the difference: another
kind of key, platform, signer, product or build. Pure, but for :func:`explaining`, which reads those
words. Above: ``layers``, ``boot``, ``instance.check``. Below: ``sefs.anchor``.

On-disk format: a JSON object, keys sorted, no spaces: ``key`` (``user``, ``named``, ``automatic``,
``automatic and built-in``), with ``name`` for a named key, and for the automatic ones ``platform``,
``platform_id`` (``trust.platform``: 32 hex digits; older volumes have none) and ``policy``:
``mrsigner=HEX product=NUMBER``, and ``mrenclave=HEX`` where the key is bound to the build.

Security: what a volume says is authenticated by the very key that did not open it, so here it is
nobody's word. It decides nothing but the words of a refusal, which say that they are unverified.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from serdab.errors import WrongKeyError
from serdab.structs import frozen

if TYPE_CHECKING:
    from serdab.sefs.hostplace import Place

USER: Final = "user"
NAMED: Final = "named"
AUTOMATIC: Final = "automatic"
BUILT_IN: Final = "automatic and built-in"
_KINDS: Final = {
    USER: "an image key",
    NAMED: "a named key",
    AUTOMATIC: "the automatic key",
    BUILT_IN: "the automatic key, mixed with a built-in image key",
}
_MAX_WORD: Final = 64


@frozen
class KeySource:
    """What is known of a key's origin; an empty text is an unknown or absent part."""

    kind: str
    name: str = ""
    platform: str = ""
    platform_id: str = ""
    mrsigner: str = ""
    product: str = ""
    mrenclave: str = ""

    def dump(self) -> bytes:
        """Return the bytes that a volume keeps."""
        fields = {"key": self.kind}
        if self.name:
            fields["name"] = self.name
        if self.platform:
            policy = f"mrsigner={self.mrsigner} product={self.product}"
            if self.mrenclave:
                policy = f"{policy} mrenclave={self.mrenclave}"
            fields |= {"platform": self.platform, "policy": policy}
            if self.platform_id:
                fields["platform_id"] = self.platform_id
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


def parse_untrusted(raw: bytes | None) -> KeySource | None:
    """Return what the bytes say, or None if they say nothing that we understand. Never raises."""
    try:
        fields = json.loads(raw or b"")
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or fields.get("key") not in tuple(_KINDS):
        return None
    policy = dict(
        word.split("=", 1) for word in str(fields.get("policy", "")).split(" ") if "=" in word
    )
    source = KeySource(
        str(fields["key"]),
        *(_word(fields.get(name)) for name in ("name", "platform", "platform_id")),
        *(_word(policy.get(name)) for name in ("mrsigner", "product", "mrenclave")),
    )
    # An automatic key without these was never written by us.
    is_whole = source.kind in (USER, NAMED) or (source.platform and source.mrsigner)
    return source if is_whole else None


def _word(value: object) -> str:
    text = value if isinstance(value, str) else ""
    return text if len(text) <= _MAX_WORD and text.isascii() and text.isprintable() else ""


@frozen
class _Difference:
    what: str
    expected: str
    found: str
    hint: str


def wrong_key(
    recorded: bytes | None, ours: bytes, *, subject: str = "", stage: str = ""
) -> WrongKeyError:
    """Return the refusal of a volume that our key does not open.

    ``recorded`` is what the volume says of its key, unverified (``sefs.anchor.read_source``), and
    ``ours`` where the key comes from that was tried (``VolumeKey.source``). Several differences are
    all listed; the first in the order of kind, platform, signer, product, build gives the message.
    """
    theirs, mine = parse_untrusted(recorded), parse_untrusted(ours)
    differences = _differences(theirs, mine) if theirs is not None and mine is not None else []
    if not differences:
        return _nothing_differs(mine, subject, stage)
    first = differences[0]
    return WrongKeyError(
        first.what,
        stage=stage,
        subject=subject,
        expected="; ".join(item.expected for item in differences)
        + " (the volume's own words, unverified)",
        found="; ".join(item.found for item in differences),
        hint=first.hint,
    )


def _nothing_differs(mine: KeySource | None, subject: str, stage: str) -> WrongKeyError:
    hint = "give the key of its first use, or of the last `serdab rekey`"
    found = "another key"
    if mine is not None and mine.kind in (AUTOMATIC, BUILT_IN):
        found = "the automatic key of this platform, signer and product"
        hint = "nothing that the volume says of its key differs, so its anchor was changed: restore"
        hint += " the volume from a backup"
    return WrongKeyError(
        "wrong key, or the anchor was damaged",
        stage=stage,
        subject=subject,
        expected="the key that the volume was made with",
        found=found,
        hint=hint,
    )


def _differences(theirs: KeySource, mine: KeySource) -> list[_Difference]:
    if theirs.kind != mine.kind or theirs.name != mine.name:
        return [_of_kind(theirs, mine)]
    if mine.kind in (USER, NAMED):
        return []
    found: list[_Difference] = []
    if theirs.platform != mine.platform:
        found.append(
            _Difference(
                "the volume's key is that of another kind of platform",
                f"platform {theirs.platform}",
                f"platform {mine.platform}",
                "set SERDAB_PLATFORM to the platform that wrote it",
            )
        )
    elif theirs.platform_id and mine.platform_id and theirs.platform_id != mine.platform_id:
        found.append(
            _Difference(
                "the volume's key is bound to another platform than this one",
                f"platform id {theirs.platform_id}",
                f"platform id {mine.platform_id}",
                "it was written on another machine, by another user, or before the platform's "
                "secret was lost: only there it opens",
            )
        )
    for name, what, hint in _PARTS:
        old, new = getattr(theirs, name), getattr(mine, name)
        if old != new:
            found.append(
                _Difference(
                    what, f"{name} {old or 'not bound'}", f"{name} {new or 'not bound'}", hint
                )
            )
    return found


_PARTS: Final = (
    (
        "mrsigner",
        "the volume's key is bound to another signer",
        "build with the key or tool that signed when it was written",
    ),
    (
        "product",
        "the volume's key is bound to another product id",
        "set metadata.product_id to what it was, and build",
    ),
    (
        "mrenclave",
        "the volume's key is bound to another build",
        "with autokey_policy only the very build that wrote it opens it: copy the data out with "
        "that one before you build",
    ),
)


def _of_kind(theirs: KeySource, mine: KeySource) -> _Difference:
    if theirs.kind == mine.kind == NAMED:
        return _Difference(
            "the volume has another named key",
            f"the key named {theirs.name}",
            f"the key named {mine.name}",
            "name the key that it was made with",
        )
    hint = "open it with the kind of key that it was made with"
    if mine.kind == USER:
        hint = "it was written while no key was given: leave the key out, and for a writable layer "
        hint += "build without; or `serdab reset` gives up what was written"
    elif theirs.kind == USER:
        hint = "it was written under an image key: give that key with --image-key, to build and run"
    elif BUILT_IN in (theirs.kind, mine.kind):
        hint = "build with the same --image-key and --buildin-image-key as when it was written"
    return _Difference(
        "the volume has another kind of key",
        _KINDS[theirs.kind],
        _KINDS[mine.kind],
        hint,
    )


@contextmanager
def explaining(path: Place, ours: bytes) -> Iterator[None]:
    """Name the difference in a ``WrongKeyError`` about the volume in a host directory.

    Raises:
        WrongKeyError: in place of the one that passed.
    """
    try:
        yield
    except WrongKeyError as exc:
        raise wrong_key(_read(path), ours, subject=exc.subject, stage=exc.stage) from None


def _read(path: Place) -> bytes | None:
    from serdab.sefs.anchor import read_source
    from serdab.sefs.hostplace import open_place

    directory = open_place(path)
    try:
        return read_source(directory)
    finally:
        directory.close()
