# SPDX-License-Identifier: Apache-2.0
"""The time that outputs bear when they are to be the same bytes each time: SOURCE_DATE_EPOCH.

Above: ``build``, ``package``. The specification is that of reproducible-builds.org.
"""

from __future__ import annotations

import os

from serdab.errors import UsageError


def source_date_epoch() -> int | None:
    """Return SOURCE_DATE_EPOCH, or None when it is not set.

    Raises:
        UsageError: it is no time.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise UsageError(
            "not a time",
            subject="SOURCE_DATE_EPOCH",
            expected="seconds since 1970 in decimal digits",
            found=repr(text),
            hint="unset it to do without",
        )
    return int(text)
