# SPDX-License-Identifier: Apache-2.0
"""The signer of the test vectors, for tests to which reading a key is not the point: ``signer``.

OpenSSL tests both primes of a key that it reads from a file, which takes 0.17 s of processor: more
than most that is signed with it. So each process that runs tests reads it once.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from serdab.trust.signing import Signer, load_signer

SIGNING_KEY: Final = Path(__file__).parents[1] / "vectors" / "signing-key.pem"


@cache
def signer() -> Signer:
    """Return the signer that holds ``SIGNING_KEY``; it keeps no state."""
    return load_signer(str(SIGNING_KEY))
