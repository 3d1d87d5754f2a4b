# SPDX-License-Identifier: Apache-2.0
"""The version of Serdab; the only place that states it.

Without annotations: ``serdab --version`` must not pay for ``typing``.
"""

VERSION = "0.1.0"
