# SPDX-License-Identifier: Apache-2.0
"""Instances: the directory layout, making one, filling it from a BOM, building it, locking it.

Above: ``pal`` and ``cli``. Below: ``trust``, ``sefs``, ``config``.
"""
