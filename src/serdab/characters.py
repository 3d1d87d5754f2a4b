# SPDX-License-Identifier: Apache-2.0
"""Which characters can be seen. Pure; the one table of those that Unicode says to ignore.

Above: ``errors`` (what is printed), ``config.names`` (what a file system takes for the same name).

``str.isprintable`` goes by the general category: separators, controls, formats, surrogates, private
and unassigned characters are not. A letter, mark or symbol that nothing is drawn for passes it.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final


#: Default_Ignorable_Code_Point of Unicode 16 (DerivedCoreProperties.txt); ``unicodedata`` has no
#: such property. The kernel's casefold drops them from names (fs/unicode).
_IGNORABLE: Final = (
    (0x00AD, 0x00AD),
    (0x034F, 0x034F),
    (0x061C, 0x061C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)
#: Drawn as blanks without being spaces by category: the empty Braille pattern, the filler of
#: Khitan small script, the null notehead, the blanks of Egyptian hieroglyphs.
_BLANK: Final = frozenset("\u2800\U00016fe4\U0001d159\U00013441\U00013442")


def is_ignorable(character: str) -> bool:
    """Return whether Unicode says that nothing is to be shown for a character by default."""
    code = ord(character)
    return code >= _IGNORABLE[0][0] and any(low <= code <= high for low, high in _IGNORABLE)


def is_seen(character: str) -> bool:
    """Return whether a character, the space included, is drawn as something of its own kind."""
    if character.isascii():
        return character.isprintable()
    return character.isprintable() and character not in _BLANK and not is_ignorable(character)
