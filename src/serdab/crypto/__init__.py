# SPDX-License-Identifier: Apache-2.0
"""AEAD, key derivation, hashes: the only package that imports a cryptography library.

Above: ``sefs`` and ``trust``. Below: ``keys``, ``errors``. No I/O.
"""
