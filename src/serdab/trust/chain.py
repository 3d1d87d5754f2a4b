# SPDX-License-Identifier: Apache-2.0
"""The boot chain: which stage may follow which, and what each must be. Bytes in, decision out.

The rules of the chain::

    state     call that is admitted   what is checked                            next state
    --------  ----------------------  -----------------------------------------  ----------
    signed    accept_descriptor       signature; signer is the expected one;     config
                                      platform; digest of the running code
    config    accept_config           SHA-256 is the descriptor's conf MAC;      initfs
                                      strict parse; both name one product
    initfs    accept_initfs           root MAC is the config's                   init
    init      init_started            once                                       init
    init      accept_rootfs           init runs; root MAC is the config's, or    rootfs
                                      the caller's for a runtime image
    rootfs    init_exited             exit status 0                              app
    init      init_exited             always refused: nothing was mounted        down
    any       down                    -                                          down

1. An out-of-order call raises ``ChainOrderError`` and changes nothing. ``down`` is final.
2. A check that fails raises and leaves the state where it was, so nothing later is admitted. Init
   may retry its mount of the root FS; everything else ends the boot (the caller's business).
3. A value is used only after its own check: the config MAC comes from a descriptor whose signature
   verified, the file system MACs from a config whose MAC matched.
4. The signer is expected from outside the instance. ``expected_signer`` None means that no record
   exists (first use): the caller records :attr:`BootChain.signer` after ``accept_descriptor``.

Nothing here opens a file, reads a clock or looks at the environment. Above: ``libos.boot``.
Below: ``descriptor``, ``measurement``, ``config.boot``.
"""

from __future__ import annotations

import hmac
from enum import Enum
from typing import Final, NoReturn

from serdab.config.boot import BootConfig, parse_boot_config
from serdab.errors import (
    ChainOrderError,
    Error,
    MeasurementMismatch,
    SignerMismatch,
)
from serdab.structs import frozen
from serdab.trust.descriptor import Descriptor, parse_and_verify
from serdab.trust.measurement import SHA256, Digest

MAC_BYTES: Final = 32
BUILD_HINT: Final = "`serdab build` makes a matching set; restore the file if you did not change it"


class State(Enum):
    """The stages; each value is the word that messages use."""

    SIGNED = "signed"
    CONFIG = "config"
    INITFS = "initfs"
    INIT = "init"
    ROOTFS = "rootfs"
    APP = "app"
    DOWN = "down"


@frozen
class Measured:
    """One thing that a stage measured and accepted, for the boot's report."""

    stage: str
    subject: str
    digest: Digest


class BootChain:
    """One boot. Threads: called by one thread at a time."""

    __slots__ = ("_config", "_descriptor", "_init_runs", "_log", "_signer", "_state")

    def __init__(self) -> None:
        self._state = State.SIGNED
        self._descriptor: Descriptor | None = None
        self._signer: Digest | None = None
        self._config: BootConfig | None = None
        self._init_runs = False
        self._log: list[Measured] = []

    @property
    def state(self) -> State:
        """The stage the boot is in."""
        return self._state

    @property
    def measured(self) -> tuple[Measured, ...]:
        """What was measured and accepted so far, in order."""
        return tuple(self._log)

    @property
    def signer(self) -> Digest:
        """MRSIGNER of the descriptor that was accepted."""
        if self._signer is None:
            self._out_of_order("signer", "after the descriptor was accepted")
        return self._signer

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor that was accepted."""
        if self._descriptor is None:
            self._out_of_order("descriptor", "after the descriptor was accepted")
        return self._descriptor

    @property
    def config(self) -> BootConfig:
        """The configuration that was accepted."""
        if self._config is None:
            self._out_of_order("config", "after the configuration was accepted")
        return self._config

    def accept_descriptor(
        self,
        raw: bytes,
        *,
        code_digest: Digest,
        expected_signer: Digest | None,
        platform: str,
    ) -> Descriptor:
        """Check the signed libos descriptor against this process.

        Raises:
            FormatError, VerificationError: malformed, or the signature does not verify.
            SignerMismatch: signed by another key than the expected one.
            MeasurementMismatch: made for another platform or by another Serdab.
        """
        self._require("accept_descriptor", State.SIGNED)
        signed = parse_and_verify(raw)
        signer = signed.signer.mrsigner()
        descriptor = signed.descriptor
        verify_signer(signer, expected_signer)
        if descriptor.platform != platform:
            raise MeasurementMismatch(
                "the instance was built for another platform",
                stage="signed",
                subject="platform",
                expected=descriptor.platform,
                found=platform,
                hint="set SERDAB_PLATFORM to the platform it was built for, or build again",
            )
        if not descriptor.code_digest.matches(code_digest):
            raise MeasurementMismatch(
                "the descriptor names another Serdab than the one that runs",
                stage="signed",
                subject=f"code of Serdab {descriptor.serdab_version}",
                expected=str(descriptor.code_digest),
                found=str(code_digest),
                hint="after an upgrade `serdab build` renews the descriptor and keeps all data",
            )
        self._log += (
            Measured("signed", "mrsigner", signer),
            Measured("signed", "mrenclave", descriptor.mrenclave()),
            Measured("signed", "code", code_digest),
        )
        self._descriptor = descriptor
        self._signer = signer
        self._state = State.CONFIG
        return descriptor

    def accept_config(self, raw: bytes) -> BootConfig:
        """Check the protected configuration against the descriptor, then parse it.

        Raises:
            MeasurementMismatch: its SHA-256 is not the conf MAC.
            FormatError: it is not a configuration this Serdab understands.
        """
        self._require("accept_config", State.CONFIG)
        found = Digest.of(raw)
        expected = self.descriptor.conf_mac
        if not found.matches(expected):
            raise MeasurementMismatch(
                "the configuration is not the one that was signed",
                stage="config",
                subject="protected configuration",
                expected=f"conf-mac {expected}",
                found=f"conf-mac {found}",
                hint=BUILD_HINT,
            )
        config = parse_boot_config(raw)
        ours = (config.product_id, config.security_version, config.debuggable)
        theirs = (
            self.descriptor.product_id,
            self.descriptor.security_version,
            self.descriptor.debuggable,
        )
        if ours != theirs:
            raise MeasurementMismatch(
                "descriptor and configuration do not belong together",
                stage="config",
                subject="product id, version, debuggable",
                expected=str(theirs),
                found=str(ours),
                hint=BUILD_HINT,
            )
        self._log.append(Measured("config", "conf-mac", found))
        self._config = config
        self._state = State.INITFS
        return config

    def accept_initfs(self, root_mac: bytes) -> None:
        """Check the root MAC of the init FS.

        Raises:
            MeasurementMismatch: it is not the configured one.
        """
        self._require("accept_initfs", State.INITFS)
        self._log.append(
            _check_mac("initfs", "init FS", "init-mac", self.config.init_mac, root_mac)
        )
        self._state = State.INIT

    def init_started(self) -> None:
        """Note that ``/bin/init`` runs; from here it may ask for the root FS."""
        self._require("init_started", State.INIT)
        if self._init_runs:
            self._out_of_order("init_started", "once")
        self._init_runs = True

    def accept_rootfs(
        self, root_mac: bytes, *, runtime: bool = False, caller_mac: bytes | None = None
    ) -> None:
        """Check the root MAC of the root FS.

        ``runtime`` says that init named its own lower layer: the configured MAC does not apply,
        and the key init gave authenticates the content; ``caller_mac`` is the MAC that init
        requires, if any.

        Raises:
            MeasurementMismatch: it is not the required one.
        """
        self._require("accept_rootfs", State.INIT)
        if not self._init_runs:
            self._out_of_order("accept_rootfs", "after init was started")
        if caller_mac is not None and not runtime:
            # Init may narrow what is configured, never widen it: both must match.
            _check_mac("rootfs", "root FS", "root-mac", caller_mac, root_mac)
        if not runtime:
            expected = self.config.root_mac
        elif caller_mac is not None:
            expected = caller_mac
        else:
            expected = root_mac
        self._log.append(_check_mac("rootfs", "root FS", "root-mac", expected, root_mac))
        self._state = State.ROOTFS

    def init_exited(self, code: int) -> None:
        """Note the end of init: status 0 after a mounted root FS admits the application.

        Raises:
            Error: another status, or no root FS was mounted; the chain is down then.
        """
        self._require("init_exited", State.INIT, State.ROOTFS)
        if not self._init_runs:
            self._out_of_order("init_exited", "after init was started")
        mounted = self._state is State.ROOTFS
        if code != 0 or not mounted:
            self._state = State.DOWN
            raise Error(
                "init failed" if code != 0 else "init ended without mounting the root FS",
                stage="init",
                subject="/bin/init",
                expected="exit status 0 after MountRootFS",
                found=f"exit status {code}" + ("" if mounted else ", no root FS mounted"),
                hint="its own words stand above; wrong or missing keys are the usual cause",
            )
        self._state = State.APP

    def down(self) -> None:
        """Note the end of the instance; admitted in every state."""
        self._state = State.DOWN

    def _require(self, call: str, *states: State) -> None:
        if self._state not in states:
            self._out_of_order(call, " or ".join(state.value for state in states))

    def _out_of_order(self, call: str, admitted: str) -> NoReturn:
        raise ChainOrderError(
            "a boot stage was entered out of turn",
            stage=self._state.value,
            subject=call,
            expected=f"admitted: {admitted}",
            found=f"state {self._state.value}",
            hint="the caller's order of calls is wrong; please report",
        )


def verify_signer(signer: Digest, expected: Digest | None) -> None:
    """Refuse a signer who is not the expected one; None: nobody is.

    Raises:
        SignerMismatch: it is another.
    """
    if expected is not None and not signer.matches(expected):
        raise SignerMismatch(
            "the instance is signed by another key",
            stage="signed",
            subject="libos descriptor",
            expected=f"mrsigner {expected}",
            found=f"mrsigner {signer}",
            hint="compare both with what the signer published; if the one found is right, say so "
            "once with `serdab run --expect-signer`",
        )


def _check_mac(stage: str, subject: str, label: str, expected: bytes, found: bytes) -> Measured:
    if len(found) != MAC_BYTES or not hmac.compare_digest(expected, found):
        raise MeasurementMismatch(
            f"the {subject} is not the one that was measured",
            stage=stage,
            subject=subject,
            expected=f"{label} {expected.hex()}",
            found=f"{label} {found.hex()}",
            hint=BUILD_HINT,
        )
    return Measured(stage, label, Digest(SHA256, found))
