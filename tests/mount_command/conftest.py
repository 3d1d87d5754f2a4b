# SPDX-License-Identifier: Apache-2.0
"""``serdab mount`` as root and as an ordinary user; whatever a test does, nothing stays mounted."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.harness.command import Command, describe, private_environment
from tests.harness.instances import BuiltInstance, MakeInstance, build_instance
from tests.harness.user import OrdinaryUser
from tests.mount_command.mounted import MakeOwner, Owner


@pytest.fixture(scope="session")
def common_instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltInstance]:
    base = tmp_path_factory.mktemp("common")
    (base / "home").mkdir()
    with tempfile.TemporaryDirectory(prefix="sr-") as runtime:
        command = Command(private_environment(base / "home", Path(runtime)))
        instance = build_instance(command, base, files={"etc/greeting": b"hello\n"})
        written = instance.run("/bin/sh", "-c", "echo kept > /root/kept")
        assert written.returncode == 0, describe(written)
        yield instance


@pytest.fixture
def common_owner(common_instance: BuiltInstance) -> Iterator[Owner]:
    """Root, with an instance that all tests share: each may write to files of its own, and leaves
    image, keys and state as they are. /root/kept is in its writable layer."""
    owner = Owner(common_instance, None)
    yield owner
    owner.clean_up()


@pytest.fixture
def make_owner(make_instance: MakeInstance) -> Iterator[MakeOwner]:
    """Return ``make_owner(...)``: root, with what :func:`make_instance` makes of the same."""
    with ExitStack() as stack:

        def make(**content: Any) -> Owner:  # noqa: ANN401 - build_instance says what
            owner = Owner(make_instance(**content), None)
            stack.callback(owner.clean_up)
            return owner

        yield make


@pytest.fixture
def root_owner(make_owner: MakeOwner) -> Owner:
    """Root, with an encrypted instance that has /etc/greeting in its image."""
    return make_owner(files={"etc/greeting": b"hello\n"})


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
