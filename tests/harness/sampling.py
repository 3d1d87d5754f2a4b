# SPDX-License-Identifier: Apache-2.0
"""Cases in turns: ``some_of``.

A test that does one thing at every byte, call or moment takes each Nth of them in the suite, and
begins anywhere; which one follows the seed that the run prints first. Marked ``sampled``, it takes
all of them in ``make soak`` (``SERDAB_TEST_WHOLE=1``).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar

Case = TypeVar("Case")

WHOLE: Final = os.environ.get("SERDAB_TEST_WHOLE") == "1"


def some_of(cases: Iterable[Case], one_in: int) -> Iterator[Case]:
    """Yield one in ``one_in`` of the cases, from a random one of the first on."""
    return iter(cases) if WHOLE else islice(cases, random.randrange(one_in), None, one_in)
