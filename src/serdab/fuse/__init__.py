# SPDX-License-Identifier: Apache-2.0
"""The FUSE kernel protocol: ``wire`` (pure), ``session`` (the loop), ``mounting``."""
