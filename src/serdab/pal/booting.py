# SPDX-License-Identifier: Apache-2.0
"""Boots an instance: what the kernel process is asked for, and the lock that it gets.

Above: ``serdab.pal``. Below: ``running``, ``instance.locks``, ``libos.request``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from serdab.config.dirs import cache_dir, config_dir, runtime_dirs, state_dir
from serdab.errors import printable
from serdab.instance import layout
from serdab.instance.layout import Instance
from serdab.instance.locks import lock_run
from serdab.keys import Key
from serdab.libos.begin import Begun
from serdab.libos.caller import current_umask, open_descriptors, require_key, terminal
from serdab.libos.request import NOTHING_PINNED, BootRequest, Freshness
from serdab.pal.running import Pal
from serdab.trust.codetree import package_root

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

#: A notice is what the operator is to know without having asked: shown by default.
LEVELS: Final = ("off", "error", "notice", "warning", "info", "debug")


def log_to_stderr(level: str) -> Callable[[str, str], None]:
    """Return a function that shows lines for the operator, up to a level."""
    most = LEVELS.index(level) if level in LEVELS else 1

    def log(kind: str, line: str) -> None:
        if kind in LEVELS and LEVELS.index(kind) <= most:
            # A program chooses some of these words, such as the path of what it wants mounted.
            try:
                sys.stderr.write(printable(f"serdab: {kind}: {line}") + "\n")
                sys.stderr.flush()
            except OSError:
                pass  # nobody reads it any more (a hang-up): no reason to end an instance

    return log


def init(
    instance: str | os.PathLike[str],
    *,
    image_key: Key | None = None,
    image_key_fd: int = -1,
    private: Sequence[str | os.PathLike[str]] = (),
    expect_signer: str | None = None,
    expect_root: str | None = None,
    freshness: Freshness = NOTHING_PINNED,
    previous: bool = False,
    log_level: str = "notice",
    log: Callable[[str, str], None] | None = None,
    stdio: tuple[int, int, int] = (0, 1, 2),
    env: Mapping[str, str] | None = None,
    on_started: Callable[[Pal], None] | None = None,
    is_wanted: Callable[[], bool] = lambda: True,
    begun: Begun | None = None,
    lends_terminal: bool = True,
    stands_for_program: bool = False,
) -> Pal:
    """Boot an instance through the whole chain, the init stage included.

    ``image_key`` is shown to init as /etc/image_key; ``image_key_fd`` is a pipe to read it from,
    for a caller that is not to have it in its own memory (``libos.request.pipe_with_key``).
    ``private`` are files and directories that no host directory shows, such as the file the key
    came from. ``expect_signer`` is 64 hexadecimal digits, ``expect_root`` too, or sixteen hyphened
    bytes; ``freshness`` says what is pinned elsewhere.
    ``previous`` boots the image that the writable layer belongs to instead of the newest one.
    ``log(level, line)`` gets lines for the operator (default: standard error, up to ``log_level``).
    ``stdio`` and ``env`` (default: this process's) are init's. ``on_started`` hears of the instance
    before it has booted, so that another thread can end it; ``is_wanted`` is asked before that,
    while the last user of the instance is waited for. ``begun``: processes that were started
    earlier; they are ours from here on. ``lends_terminal``: programs may use a terminal among
    ``stdio`` that controls our session, and share our job's signals; without it they are another
    session's. ``stands_for_program``: we are stopped when a program is (``libos.jobs``).

    Raises:
        Error: refused; kind and stage say where and why.
    """
    begun = begun or Begun()
    try:
        require_key(image_key)
        return _init(
            begun,
            os.fspath(instance),
            image_key=image_key,
            image_key_fd=image_key_fd,
            private=private,
            expect_signer=expect_signer,
            expect_root=expect_root,
            freshness=freshness,
            previous=previous,
            say=log or log_to_stderr(log_level),
            stdio=stdio,
            env=env,
            on_started=on_started,
            is_wanted=is_wanted,
            lends_terminal=lends_terminal,
            stands_for_program=stands_for_program,
        )
    except BaseException:
        begun.abandon()
        raise


def _init(
    begun: Begun,
    instance: str,
    *,
    image_key: Key | None,
    image_key_fd: int,
    private: Sequence[str | os.PathLike[str]],
    expect_signer: str | None,
    expect_root: str | None,
    freshness: Freshness,
    previous: bool,
    say: Callable[[str, str], None],
    stdio: tuple[int, int, int],
    env: Mapping[str, str] | None,
    on_started: Callable[[Pal], None] | None,
    is_wanted: Callable[[], bool],
    lends_terminal: bool,
    stands_for_program: bool,
) -> Pal:
    with Instance.open_built(instance) as place:
        freshness = freshness.placed_outside(place.path)
        lock = lock_run(place, on_wait=lambda line: say("notice", line), is_wanted=is_wanted)
        try:
            request = BootRequest(
                instance=place.path,
                descriptor=place.read(layout.DESCRIPTOR),
                config=place.read(layout.PROTECTED_CONFIG),
                initfs=layout.INITFS,
                rootfs=layout.IMAGE,
                private=_private(private, freshness),
                environment=tuple(
                    os.fsencode(f"{name}={value}")
                    for name, value in (os.environ if env is None else env).items()
                ),
                umask=current_umask(),
                image_key=None if image_key is None else image_key.raw(),
                expect_signer=expect_signer,
                expect_root=expect_root,
                terminal=terminal(),
                previous=layout.PREVIOUS if previous else None,
                freshness=freshness,
                lends_terminal=lends_terminal,
                stands_for_program=stands_for_program,
            )
            pal = Pal(begun, say, lock.hand_use_on())
            descriptors = open_descriptors(stdio)
            try:
                if on_started is not None:
                    on_started(pal)
                # The lock is the kernel process's from here on: it lasts as long as the instance.
                record = request.dump()
                fds: tuple[int, ...] = (*descriptors.fds, place.root.fd, lock.fd)
                if image_key_fd >= 0:
                    record["key_follows"] = True
                    fds = (*fds, image_key_fd)
                pal.boot(record, fds)
            except BaseException:
                pal.destroy(patience_s=0)
                raise
            finally:
                descriptors.close()
            return pal
        finally:
            lock.close()


def _private(named: Sequence[str | os.PathLike[str]], freshness: Freshness) -> tuple[str, ...]:
    """Return the real paths of what is never shown: what was named, and what is the user's own."""
    code = package_root()
    own = (
        *(state_dir(), cache_dir(), config_dir(), *runtime_dirs()),
        *(code, *layout.package_parts(code)),
    )
    pins = (path for path in (freshness.pin_file, freshness.pin_command) if path is not None)
    out = dict.fromkeys(map(os.path.realpath, own))
    for path in (*(os.fspath(item) for item in named), *pins):
        # Its name too, should that be a link: what it leads to is believed the next time.
        directory, name = os.path.split(os.path.abspath(path))
        out[os.path.join(os.path.realpath(directory), name)] = None
        out[os.path.realpath(path)] = None
    return tuple(out)
