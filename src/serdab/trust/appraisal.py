# SPDX-License-Identifier: Apache-2.0
"""What everybody who uses a built instance checks first: its descriptor and its configuration.

The bytes come from untrusted storage. They are held against the code of this very process, the
platform, and the signer that is expected from outside (``signers``), in the order of the chain.
Above: ``libos.boot``, ``instance.sealedroot``. Below: ``chain`` (the decisions), ``signers``.
"""

from __future__ import annotations

from serdab.config.boot import BootConfig
from serdab.structs import frozen
from serdab.trust import signers
from serdab.trust.chain import BootChain
from serdab.trust.measurement import code_digest


@frozen
class Untrusted:
    """What ``build/`` of the instance at a path holds: bytes that nobody has checked yet."""

    instance: str
    descriptor: bytes
    config: bytes


def appraise(
    chain: BootChain, built: Untrusted, *, expect_signer: str | None, platform: str
) -> BootConfig:
    """Take ``chain`` to its stage ``initfs``; return the configuration.

    Raises:
        Error: as ``BootChain.accept_descriptor`` and ``BootChain.accept_config`` say.
    """
    chain.accept_descriptor(
        built.descriptor,
        code_digest=code_digest(),
        expected_signer=signers.expected_signer(built.instance, expect_signer),
        platform=platform,
    )
    return chain.accept_config(built.config)


def remember_signer(chain: BootChain, instance: str, *, expect_signer: str | None) -> bool:
    """Record the signer that was accepted, if the caller named it or none is expected yet.

    Returns:
        Whether this was the first use: nobody had said whom to expect.
    """
    is_first = expect_signer is None and signers.expected_signer(instance, None) is None
    if is_first or expect_signer is not None:
        signers.record_signer(instance, chain.signer)
    return is_first
