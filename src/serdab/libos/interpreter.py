# SPDX-License-Identifier: Apache-2.0
"""How Serdab's own processes are started: an isolated interpreter that runs the code that was
measured.

Above: ``kernel`` (starts fs servers), ``pal`` (starts the kernel process).

Security:
    1. ``-I -S``: no environment, no user directory, no ``.pth``, no ``sitecustomize``, nothing from
       the current directory. The import path is given explicitly: after the standard library,
       which nothing beside a dependency can stand in for, the directory of this package and those
       of its dependencies.
    2. Byte code beside the sources is never used: it could be older than, or other than, the
       sources that were hashed. The interpreter keeps its own below the user's cache directory.
    3. Processes are executed, never forked and continued, so they inherit what is named here and
       nothing else. No key is ever an argument or in the environment.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection

from serdab.libos.bytecode import has_room

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final, NoReturn

#: Where a new process finds its channel.
CHANNEL_FD: Final = 3

#: Held back in our own processes. Signals of the terminal and of process groups are meant for the
#: programs; the kernel process takes note of them, see ``jobs``.
HELD_SIGNALS: Final = frozenset(
    {
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
        signal.SIGALRM,
        signal.SIGCONT,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
    }
)

#: What the keys of a terminal send to end a job. Whoever stands for a program dies of one that
#: ended it, as a native program would.
KEYBOARD: Final = frozenset({signal.SIGINT, signal.SIGQUIT})

#: By which the kernel process stops the caller as SIGTSTP does. It is queued (signal(7)): a SIGTSTP
#: of the terminal's that the caller has not taken yet would swallow another one.
STOP_AS_TYPED: Final = signal.SIGRTMIN

#: What the interpreter ignores on its own account; a program inherits it only where we did.
PYTHON_IGNORES: Final = (signal.SIGPIPE, signal.SIGXFSZ)

_IGNORED: Final = "SERDAB_IGNORED"
_ENVIRONMENT: Final = (
    "HOME",
    "PATH",
    "TZ",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME",
)
_DEPENDENCIES: Final = ("cryptography", "zstandard", "blake3", "msgspec")


def import_path() -> list[str]:
    """Return the directories of this package and of its dependencies, each once."""
    from importlib.machinery import PathFinder

    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    found = [package]
    for name in _DEPENDENCIES:
        spec = PathFinder.find_spec(name)
        if spec is not None and spec.origin is not None:
            directory = os.path.dirname(os.path.dirname(os.path.abspath(spec.origin)))
            if directory not in found:
                found.append(directory)
    return found


def start_python(
    module: str,
    channel: int,
    *,
    path: list[str],
    cache: str,
    new_session: bool = False,
    ignored: Collection[int] = (),
) -> int:
    """Run ``module.main(CHANNEL_FD, path)`` in a new interpreter and return its process id.

    Its standard input and output are /dev/null, its standard error is ours. ``ignored``: see
    ``ignored_by_caller``.
    """
    # First out of the way: it may lie where something else is to be, also at 0 or 1.
    aside = max(channel, CHANNEL_FD) + 1
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_DUP2, channel, aside),
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, aside, CHANNEL_FD),
    ]
    return os.posix_spawn(
        sys.executable,
        _command(module, path, cache),
        _environment() | ({_IGNORED: " ".join(map(str, ignored))} if ignored else {}),
        file_actions=actions,
        setsigmask=HELD_SIGNALS,
        setsid=new_session,
    )


def ignored_by_caller() -> set[int]:
    """Return which of ``PYTHON_IGNORES`` our caller's caller ignores: programs inherit that."""
    told = os.environ.get(_IGNORED, "").split()
    return {number for number in PYTHON_IGNORES if str(int(number)) in told}


def become_python(
    module: str, channel: int, *, path: list[str], cache: str, keep: tuple[str, ...]
) -> NoReturn:
    """Run ``module.main(CHANNEL_FD, path)`` in this very process, whose memory is gone by then.

    Standard streams stay; ``keep`` are further variables of the environment that do. ``main`` finds
    the signals of the keyboard held back.
    """
    os.dup2(channel, CHANNEL_FD, inheritable=True)
    kept = {name: os.environ[name] for name in keep if name in os.environ}
    for number in PYTHON_IGNORES:
        signal.signal(number, signal.SIG_DFL)
    # An interpreter that hears of Ctrl-C while it starts shows a traceback: ``main`` lets it in.
    signal.pthread_sigmask(signal.SIG_BLOCK, KEYBOARD)
    argv = _command(module, path, cache)
    os.execve(sys.executable, argv, _environment() | kept)  # noqa: S606 - no shell, on purpose


def _command(module: str, path: list[str], cache: str) -> list[str]:
    code = f"import sys;p={path!r};sys.path+=p;from {module} import main;main({CHANNEL_FD},p)"
    switches = ("-I", "-S") if has_room(cache) else ("-I", "-S", "-B")
    return [sys.executable, *switches, "-X", f"pycache_prefix={cache}", "-c", code]


def _environment() -> dict[str, str]:
    """Return what our own processes need of the environment: where their directories are."""
    out = {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or (name.startswith("SERDAB_") and name != _IGNORED)
    }
    out["LC_ALL"] = "C.UTF-8"
    return out
