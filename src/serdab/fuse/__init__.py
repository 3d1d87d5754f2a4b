# SPDX-License-Identifier: Apache-2.0
"""The FUSE kernel protocol: ``abi`` and ``wire`` (pure), ``operations``, ``session`` (the loop),
``mounting``."""
