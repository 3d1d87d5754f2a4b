# SPDX-License-Identifier: Apache-2.0
"""The measurements of a built instance, read back and checked against each other.

Above: ``cli`` (print). Below: ``trust.descriptor``, ``config.boot``.
"""

from __future__ import annotations

from serdab.config.boot import BootConfig, parse_boot_config
from serdab.errors import MeasurementMismatch
from serdab.instance.layout import DESCRIPTOR, PROTECTED_CONFIG, Instance
from serdab.structs import frozen
from serdab.trust.descriptor import Descriptor, parse_and_verify
from serdab.trust.measurement import Digest

NAMES = ("mrenclave", "mrsigner", "conf-mac", "init-mac", "root-mac")


@frozen
class Measurements:
    """A signed descriptor whose signature verified and the configuration it names."""

    descriptor: Descriptor
    mrsigner: Digest
    config: BootConfig

    def value(self, name: str) -> str:
        """Return the 64 hexadecimal digits of one of ``NAMES``."""
        match name:
            case "mrenclave":
                return str(self.descriptor.mrenclave())
            case "mrsigner":
                return str(self.mrsigner)
            case "conf-mac":
                return str(self.descriptor.conf_mac)
            case "init-mac":
                return self.config.init_mac.hex()
            case "root-mac":
                return self.config.root_mac.hex()
            case _:
                raise KeyError(name)


def read_measurements(instance: Instance) -> Measurements:
    """Return what ``build/`` says of itself.

    That it is consistent does not say who signed it: compare MRSIGNER.

    Raises:
        VerificationError: the signature or the configuration's MAC does not hold.
    """
    signed = parse_and_verify(instance.read(DESCRIPTOR))
    raw = instance.read(PROTECTED_CONFIG)
    found = Digest.of(raw)
    if not found.matches(signed.descriptor.conf_mac):
        raise MeasurementMismatch(
            "the configuration is not the one that was signed",
            stage="config",
            subject=instance.at(PROTECTED_CONFIG),
            expected=f"conf-mac {signed.descriptor.conf_mac}",
            found=f"conf-mac {found}",
            hint="`serdab build` makes a matching set",
        )
    return Measurements(signed.descriptor, signed.signer.mrsigner(), parse_boot_config(raw))
