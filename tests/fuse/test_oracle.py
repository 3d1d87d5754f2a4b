# SPDX-License-Identifier: Apache-2.0
"""The same random operations on the file system in memory and on the kernel's tmpfs.

``tests/posix`` says what they are; there the sealed union is compared.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.posix import fuzz

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.mark.parametrize("seed", range(8))
def test_random_operations_answer_as_tmpfs_does(mem: Path, tmpfs: Path, seed: int) -> None:
    fuzz.compare(fuzz.begin(mem), fuzz.begin(tmpfs), seed=seed, count=1500)
