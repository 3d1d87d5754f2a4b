# SPDX-License-Identifier: Apache-2.0
"""Platforms: what a machine can seal keys to. One exists so far, the simulation.

A platform has a name, which every output that rests on it repeats, and turns a policy into a key
that only the same policy on the same machine gets again. ``SERDAB_PLATFORM`` names the platform;
there is never a silent fall-back to another. Above: ``libos``, ``instance``. Below: ``config``.

On-disk format:
    ``platform-simulation.json`` in the state directory, 0600: ``format`` 1, ``machine`` (SHA-256
    over a label and the machine id, or empty where the machine has none), ``secret`` (32 bytes).

Security:
    1. The secret is whole and durable, with its name, before the first key is derived from it.
    2. It is refused on a machine with another id, or when others may read it.
    3. Volumes keep the platform's identity in clear. It tells which of them were written here, and
       nothing of the secret (RFC 5869: outputs for different ``info`` are independent).
    4. Simulation keeps other users and other machines out. MRSIGNER is public: other signers on the
       same account are kept apart by policy, not by cryptography. Root reads everything.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import stat
from typing import Final, Protocol

from serdab.config.dirs import make_private, state_dir
from serdab.config.strict import load_object
from serdab.errors import EnvironmentRefused, Error, UsageError, WrongKeyError
from serdab.keys import KEY_BYTES, Key
from serdab.linux.durable import create_durably
from serdab.linux.whereabouts import leads_nowhere
from serdab.structs import frozen
from serdab.trust.measurement import Digest

SIMULATION: Final = "simulation"
PLATFORMS: Final = (SIMULATION,)
SECRET_FILE: Final = "platform-simulation.json"  # noqa: S105 - a file name
_MACHINE_ID_FILES: Final = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_SALT: Final = b"serdab automatic key 1\n"
_IDENTITY: Final = b"serdab platform id 1\n"
_MACHINE_LABEL: Final = b"serdab machine 1\n"


@frozen
class KeyPolicy:
    """Who may get a sealed key again: this signer's builds of this product, and with
    ``mrenclave`` only this very build."""

    mrsigner: Digest
    product_id: int
    mrenclave: Digest | None = None

    def context(self) -> bytes:
        """Return the injective encoding that keys are derived from."""
        enclave = b"" if self.mrenclave is None else self.mrenclave.value
        return b"".join(
            (
                b"signer" + self.mrsigner.value,
                b"product" + self.product_id.to_bytes(4, "big"),
                b"enclave" + len(enclave).to_bytes(1, "big") + enclave,
            )
        )


class Platform(Protocol):
    """What every platform offers."""

    @property
    def name(self) -> str:
        """The word for messages, descriptors and anchors."""
        ...

    def seal_key(self, policy: KeyPolicy) -> Key:
        """Return the key of a policy on this machine; the same one every time."""
        ...

    def identity(self) -> str:
        """Return 32 hexadecimal digits that name what keys are bound to, and disclose nothing."""
        ...

    def is_new(self) -> bool:
        """Return whether no key was ever derived here: asking for one would make the platform."""
        ...


class SimulationPlatform:
    """Keys from a secret file in the user's state directory."""

    __slots__ = ("_directory", "_material")

    def __init__(self, directory: str | None = None) -> None:
        self._directory = directory
        self._material: bytes | None = None

    @property
    def name(self) -> str:
        """``simulation``."""
        return SIMULATION

    def seal_key(self, policy: KeyPolicy) -> Key:
        """Return HKDF-SHA256 (RFC 5869) over secret and machine, with the policy as info.

        Raises:
            WrongKeyError: the secret belongs to another machine.
            EnvironmentRefused: the secret is open to others, damaged, or cannot be made.
        """
        return Key(self._derive(policy.context())[:KEY_BYTES])

    def identity(self) -> str:
        """Return half an HKDF output over secret and machine, under a label of its own.

        Raises:
            WrongKeyError, EnvironmentRefused: as :meth:`seal_key` says.
        """
        return self._derive(_IDENTITY)[:16].hex()

    def is_new(self) -> bool:
        """Return whether the secret has not been made yet."""
        path = os.path.join(self._directory or state_dir(), SECRET_FILE)
        return self._material is None and not os.path.lexists(path)

    def _derive(self, info: bytes) -> bytes:
        # No label can pass for a policy: a policy begins with the word "signer".
        if self._material is None:
            self._material = self._load()
        extracted = hmac.digest(_SALT, self._material, "sha256")
        return hmac.digest(extracted, info + b"\x01", "sha256")

    def _load(self) -> bytes:
        directory = self._directory or state_dir()
        path = os.path.join(directory, SECRET_FILE)
        machine = machine_name()
        if not os.path.lexists(path):
            make_private(directory)
            value = {"format": 1, "machine": machine, "secret": os.urandom(32).hex()}
            # Of two first uses at once one wins; both go on to read what the winner wrote.
            create_durably(path, json.dumps(value, sort_keys=True).encode("ascii") + b"\n")
        secret, bound_to = _read_secret(path)
        if bound_to != machine:
            raise WrongKeyError(
                "the platform's secret belongs to another machine",
                stage="platform",
                subject=path,
                expected=f"machine {bound_to or 'without id'}",
                found=f"machine {machine or 'without id'}",
                hint="automatic keys stay on their machine: use an image key, or move the data by "
                "copying it out and in",
            )
        return bytes.fromhex(bound_to) + secret


def _read_secret(path: str) -> tuple[bytes, str]:
    def fail(field: str, expected: str, found: str, hint: str) -> Error:
        return EnvironmentRefused(
            "the platform's secret cannot be used",
            stage="platform",
            subject=path,
            expected=f"{field}: {expected}" if field else expected,
            found=found,
            hint=hint or "restore it from a backup; without it automatic keys are lost",
        )

    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise fail("", f"a file of uid {os.geteuid()}", f"one of uid {status.st_uid}", "")
        if stat.S_IMODE(status.st_mode) & 0o077:
            mode = f"mode {stat.S_IMODE(status.st_mode):04o}"
            raise fail("", "mode 0600", mode, "others may have read it; chmod 600 accepts that")
        raw = file.read(4096)
    section = load_object(raw, fail)
    section.integer("format", low=1, high=1)
    secret = section.hex_bytes("secret", 32)
    machine = section.text("machine")
    section.close()
    if machine and (len(machine) != 64 or not all(c in "0123456789abcdef" for c in machine)):
        raise fail("machine", "64 hexadecimal digits", "something else", "")
    return secret, machine


def machine_name() -> str:
    """Return a name for this machine that does not disclose its id (machine-id(5)), or nothing."""
    for path in _MACHINE_ID_FILES:
        try:
            with open(path, "rb") as file:
                text = file.read(64).strip()
        except OSError as exc:
            if not leads_nowhere(exc):
                raise
            continue
        if len(text) == 32:
            return hashlib.sha256(_MACHINE_LABEL + text).hexdigest()
    # Container images ship an empty machine-id: the secret is then bound to its file alone.
    return ""


def current() -> Platform:
    """Return the platform that the environment names.

    Raises:
        UsageError: it names one that does not exist.
    """
    name = os.environ.get("SERDAB_PLATFORM", SIMULATION)
    if name != SIMULATION:
        raise UsageError(
            "unknown platform",
            subject="SERDAB_PLATFORM",
            expected="one of " + ", ".join(PLATFORMS),
            found=repr(name),
            hint="there is no fall-back to a weaker platform: unset the variable or correct it",
        )
    return SimulationPlatform()
