# SPDX-License-Identifier: Apache-2.0
"""The user's directories: where state, sockets and caches live, never in an instance.

An instance directory lies on storage nobody has to trust; what must be trusted (secrets of the
simulation platform, records of signers and volumes, the development key) lives under the user's
state directory, sockets under the runtime directory (XDG Base Directory Specification).
"""

from __future__ import annotations

import os
import stat

from serdab.errors import EnvironmentRefused


def _home() -> str:
    home = os.environ.get("HOME", "")
    if os.path.isabs(home):
        return home
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        raise EnvironmentRefused(
            "this user has no home directory",
            expected="HOME or an entry in the password database",
            found=f"neither for uid {os.geteuid()}",
            hint="set XDG_STATE_HOME, XDG_RUNTIME_DIR and XDG_CACHE_HOME",
        ) from None


def _from_environment(variable: str) -> str | None:
    value = os.environ.get(variable, "")
    # The specification says that a relative path is invalid and to be ignored.
    return value if os.path.isabs(value) else None


def state_dir() -> str:
    """Return the path of Serdab's state directory; it may not exist yet."""
    base = _from_environment("XDG_STATE_HOME") or os.path.join(_home(), ".local", "state")
    return os.path.join(base, "serdab")


def config_dir() -> str:
    """Return the path of the user's own settings; it may not exist."""
    base = _from_environment("XDG_CONFIG_HOME") or os.path.join(_home(), ".config")
    return os.path.join(base, "serdab")


def cache_dir() -> str:
    """Return the path of what may be deleted at any time; it may not exist yet."""
    base = _from_environment("XDG_CACHE_HOME") or os.path.join(_home(), ".cache")
    return os.path.join(base, "serdab")


def runtime_dir() -> str:
    """Return the path for sockets; it may not exist yet."""
    base = _from_environment("XDG_RUNTIME_DIR")
    if base is not None:
        return os.path.join(base, "serdab")
    if os.geteuid() == 0:
        return "/run/serdab"
    return os.path.join(state_dir(), "run")


def runtime_dirs() -> tuple[str, ...]:
    """Return where sockets of this user may be, :func:`runtime_dir` first.

    A service that cron or a system unit started has no XDG_RUNTIME_DIR, the shell that looks for it
    has one, or the other way round.
    """
    fallback = "/run/serdab" if os.geteuid() == 0 else os.path.join(state_dir(), "run")
    usual = f"/run/user/{os.geteuid()}/serdab"
    return tuple(dict.fromkeys((runtime_dir(), usual, fallback)))


def _variable_of(path: str) -> str:
    """Return the name of the variable that says where ``path`` is."""
    for variable, top in (("XDG_CACHE_HOME", cache_dir()), ("XDG_RUNTIME_DIR", runtime_dir())):
        if path == top or path.startswith(top + "/"):
            return variable
    return "XDG_STATE_HOME"


def make_private(path: str) -> str:
    """Create ``path`` (mode 0700, parents too) and return it.

    Raises:
        EnvironmentRefused: it is not a directory of ours that only we can write.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.stat(path)
    except OSError as exc:
        raise EnvironmentRefused(
            "a directory of this user cannot be made",
            subject=path,
            expected="a directory that can be written",
            found=os.strerror(exc.errno or 0),
            hint=f"set {_variable_of(path)} to a directory of yours",
        ) from exc
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise EnvironmentRefused(
            "a directory for state is open to others",
            subject=path,
            expected=f"owned by uid {os.geteuid()}, writable by nobody else",
            found=f"uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}",
            hint=f"chown and chmod 700 {path}",
        )
    return path
