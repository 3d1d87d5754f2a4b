# SPDX-License-Identifier: Apache-2.0
"""``serdab mount`` as root and as an ordinary user; whatever a test does, nothing stays mounted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.instances import MakeInstance
from tests.harness.user import OrdinaryUser
from tests.mount_command.mounted import Owner


@pytest.fixture
def root_owner(make_instance: MakeInstance) -> Iterator[Owner]:
    """Root, with an encrypted instance that has /etc/greeting in its image."""
    owner = Owner(make_instance(files={"etc/greeting": b"hello\n"}), None)
    yield owner
    owner.clean_up()


@pytest.fixture
def user_owner(make_instance: MakeInstance, as_user: OrdinaryUser) -> Iterator[Owner]:
    """An ordinary user, with an instance as in :func:`root_owner`."""
    owner = Owner(make_instance(files={"etc/greeting": b"hello\n"}, user=as_user), as_user)
    yield owner
    owner.clean_up()


@pytest.fixture(params=["root", "user"])
def owner(request: pytest.FixtureRequest, make_instance: MakeInstance) -> Iterator[Owner]:
    """Root, then an ordinary user, each with an instance as in :func:`root_owner`."""
    user: OrdinaryUser | None = None
    if request.param == "user":
        user = request.getfixturevalue("as_user")
    made = Owner(make_instance(files={"etc/greeting": b"hello\n"}, user=user), user)
    yield made
    made.clean_up()
