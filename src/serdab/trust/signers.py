# SPDX-License-Identifier: Apache-2.0
"""Whom an instance is expected to be signed by; decided outside the instance.

In this order: the caller (``--expect-signer``), the user's settings (64 hex digits in the file
``expected-signer`` of the configuration directory, for every instance of this user), the record in
the user's state directory, made at the first use or by the last build of this user. Without a pin
outside, anyone who can write to the instance directory could sign everything anew.

On-disk format:
    ``signers/<SHA-256 of the instance's real path>.json`` in the state directory, 0600: ``format``
    1, ``instance`` (the path, for people), ``mrsigner`` (64 hex digits).
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Final

from serdab.config.dirs import config_dir, make_private, state_dir
from serdab.config.strict import load_object
from serdab.errors import Error, UsageError, VerificationError
from serdab.linux.durable import write_durably
from serdab.trust.measurement import SHA256, Digest

SETTING: Final = "expected-signer"


def _record_path(instance: str) -> str:
    name = hashlib.sha256(os.fsencode(os.path.realpath(instance))).hexdigest()
    return os.path.join(state_dir(), "signers", f"{name}.json")


def recorded_signer(instance: str) -> Digest | None:
    """Return the signer on record for the instance at this path, or None.

    Raises:
        VerificationError: the record is there and cannot be read: not the same as no record.
    """
    path = _record_path(instance)

    def fail(field: str, expected: str, found: str, hint: str) -> Error:
        return VerificationError(
            "the record of the signer is damaged",
            stage="signed",
            subject=path,
            expected=f"{field}: {expected}" if field else expected,
            found=found,
            hint=hint or "name the signer with --expect-signer: that writes the record anew",
        )

    try:
        with open(path, "rb") as file:
            raw = file.read(1 << 16)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise fail("", "a readable file", os.strerror(exc.errno or 0), "") from exc
    section = load_object(raw, fail)
    section.integer("format", low=1, high=1)
    section.text("instance")
    value = section.hex_bytes("mrsigner", 32)
    section.close()
    return Digest(SHA256, value)


def record_signer(instance: str, signer: Digest) -> None:
    """Record the signer of the instance at this path; durable on return."""
    path = _record_path(instance)
    make_private(os.path.dirname(path))
    value = {
        "format": 1,
        "instance": os.path.realpath(instance).encode("utf-8", "backslashreplace").decode(),
        "mrsigner": str(signer),
    }
    write_durably(path, json.dumps(value, sort_keys=True).encode("ascii") + b"\n")


def expected_signer(instance: str, named: str | None) -> Digest | None:
    """Return the signer to require: the named one, else the configured, else the recorded, or None.

    Raises:
        UsageError: what was named or configured is not 64 hexadecimal digits.
    """
    if named is not None:
        return _parse(named, "--expect-signer")
    path = os.path.join(config_dir(), SETTING)
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return _parse(file.read(4096), path)
    except FileNotFoundError:
        return recorded_signer(instance)
    except OSError as exc:
        raise UsageError(
            "the user's settings cannot be read",
            stage="signed",
            subject=path,
            expected="a readable file, or none",
            found=os.strerror(exc.errno or 0),
            hint="it names the signer of every instance; remove it to go by the records",
        ) from exc


def _parse(text: str, subject: str) -> Digest:
    text = text.strip()
    try:
        return Digest.parse(text)
    except ValueError:
        raise UsageError(
            "not a signer",
            stage="signed",
            subject=subject,
            expected="64 hexadecimal digits, as `serdab print mrsigner` shows them",
            found="other characters" if len(text) == 64 else f"{len(text)} characters",
            hint="copy the whole value",
        ) from None
