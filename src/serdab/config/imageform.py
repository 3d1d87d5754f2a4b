# SPDX-License-Identifier: Apache-2.0
"""``serdab.image`` in ``Occlum.json``: what an image gives away by its size, and at what price.

Above: ``config.occlum``, ``instance.build``. Below: ``strict``.
"""

from __future__ import annotations

from typing import Final

from serdab.config.strict import Section
from serdab.structs import frozen

ZSTD: Final = "zstd"
NONE: Final = "none"
MIN_PADDING_BYTES: Final = 4 << 10
MAX_PADDING_BYTES: Final = 1 << 30


@frozen
class ImageForm:
    """How the image is stored. ``padding_bytes``: its size becomes a multiple of it; 0: as it is.

    It is no part of the measured configuration by itself: the root MAC covers what comes out.
    """

    is_compressed: bool = True
    padding_bytes: int = 0


def parse_form(section: Section) -> ImageForm:
    """Take the whole section; what is absent has its default."""
    compression = section.text("compression", ZSTD, choices=(ZSTD, NONE))
    padding = section.size("padding") or 0
    is_power = padding & (padding - 1) == 0
    if padding and not (is_power and MIN_PADDING_BYTES <= padding <= MAX_PADDING_BYTES):
        raise section.refuse(
            "padding", "4KB to 1GB, a power of two", f"{padding}B", 'as in "1MB"; "0B" is none'
        )
    section.close()
    return ImageForm(compression == ZSTD, padding)
