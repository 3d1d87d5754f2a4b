# SPDX-License-Identifier: Apache-2.0
"""What cannot be looked at is not taken for nothing: a check that fails refuses.

Each of these once passed where open(2) failed for any reason. Here it fails since there are no more
descriptors, as it does for a process that somebody makes hold many, or on a disk that fails.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from serdab.errors import Error
from serdab.instance import intree, outer
from serdab.instance.layout import Instance
from serdab.instance.reach import reached_part
from serdab.libos import hostdirs
from serdab.libos.ground import Ground, Roots
from serdab.libos.mountkeys import key_path
from serdab.libos.pinplace import placed_outside
from serdab.libos.reserved import reserved_part
from serdab.linux.dirfd import DirFd
from serdab.linux.outside import Walk, is_instance
from serdab.vfs.api import ROOT_INO
from serdab.vfs.hostfs import HostFs

Act = Callable[[], object]


@contextmanager
def no_descriptors() -> Iterator[None]:
    """A time in which every open(2) of this process fails with EMFILE."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        while True:
            try:
                stack.callback(os.close, os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        yield


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / "share").mkdir(parents=True)
    (home / "Occlum.json").write_text("{}")
    (home / "file").write_text("content")
    (home / "image").mkdir()
    os.link(home / "file", home / "other")
    return home


def is_told(error: BaseException) -> bool:
    """Return whether an error says that descriptors were lacking."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError) and at.errno == errno.EMFILE:
            return True
        at = at.__cause__
    return False


def check(act: Act) -> None:
    with no_descriptors():
        try:
            outcome = act()
        except (OSError, Error) as exc:
            failure: BaseException | None = exc
        else:
            failure = None
    assert failure is not None, f"it passed: {outcome!r}"
    assert is_told(failure), repr(failure)


def test_of_a_path_alone(home: Path) -> None:
    """The host's files, a pin, an instance, what is reserved or in reach."""
    file = os.fspath(home / "file")
    acts: list[Act] = [
        partial(intree.open_host_file, file),
        partial(intree.require_way, file),
        partial(placed_outside, file, "--pin-file", os.fspath(home)),
        partial(reserved_part, os.fspath(home / "image/x"), "/"),
        partial(reached_part, os.fspath(home), file),
        partial(Walk().way, file),
    ]
    for act in acts:
        check(act)


def test_of_an_open_directory(home: Path) -> None:
    with DirFd.at(os.fspath(home)) as directory:
        spot = intree.Spot(directory.fd, "file", "file", "file")
        check(spot.open)
        # is_instance needs no descriptor for the first name.
        (home / "Occlum.json").unlink()
        (home / "build").mkdir()
        check(partial(is_instance, directory.fd))


def test_of_what_programs_are_shown(home: Path) -> None:
    with Ground.at(os.fspath(home)) as ground, Instance(os.fspath(home)) as instance:
        check(partial(ground.close_off, ["share"]))
        check(partial(Roots, ("share",), ground))
        check(partial(outer.walk_from, instance, ["share"]))
        with ground.way("share") as way:
            refuse = partial(hostdirs.refuse_private, way, "share", ground=ground)
            check(partial(refuse, private=(os.fspath(home / "file"),)))


def test_a_key_that_is_not_found_for_want_of_descriptors_is_not_known_by_its_name_alone(
    home: Path,
) -> None:
    with Ground.at(os.fspath(home)) as ground:
        check(partial(key_path, os.fspath(home / "file"), ground))


def test_of_a_second_name(home: Path) -> None:
    fs = HostFs(home, hidden=[b"image"])
    try:
        parent = fs.lookup(ROOT_INO, b"share")
        fs.forget(parent.ino, 1)
        check(partial(fs.lookup, ROOT_INO, b"other"))
    finally:
        fs.close()


def test_what_a_hidden_path_cannot_be_looked_at_for_is_not_shown(home: Path) -> None:
    """A path that is too long, say; the error names it."""
    fs = HostFs(home, hidden=[b"x" * 256])
    try:
        with pytest.raises(Error, match="cannot be told") as caught:
            fs.lookup(ROOT_INO, b"other")
        assert "x" * 256 in str(caught.value)
    finally:
        fs.close()
