# SPDX-License-Identifier: Apache-2.0
"""Measurements, signatures, the boot chain and the platform keys.

``chain`` decides and does no I/O; the other modules bring it bytes: ``measurement`` (digests),
``signing`` and ``descriptor`` (who signed what), ``platform`` (keys bound to a machine),
``signers`` (whom an instance is expected to be signed by). Above: ``libos`` and ``instance``.
Below: ``config``.
"""
