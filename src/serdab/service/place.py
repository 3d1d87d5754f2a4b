# SPDX-License-Identifier: Apache-2.0
"""Where a service and its clients meet: a socket in the user's runtime directory.

Above: ``server``, ``client``, ``starter``. Below: ``config.dirs``. The name is a hash of the
instance's real path, so nothing about the service stands in the instance directory.

That a service is alive is a property of a process, never of a file: it holds a lock on
``NAME.lock`` as long as it listens on ``NAME.sock``. A socket that nobody listens on any more is
replaced under that lock.

Security:
    1. The directory is 0700 and checked to be the user's own.
    2. Both ends ask the kernel who the other is (``SO_PEERCRED``, unix(7)): the service serves its
       own user only, root included among those it does not; a client trusts its own user only.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import struct
from importlib import import_module

from serdab.config.dirs import make_private, runtime_dir, runtime_dirs, state_dir
from serdab.errors import BusyError, Error, InternalError, NotRunningError, VerificationError
from serdab.structs import frozen

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from socket import socket

_CREDENTIALS = struct.Struct("iII")  # struct ucred, unix(7)
_BACKLOG = 128

Connected = _socket.socket


def _sha256(data: bytes) -> str:
    """Return the hash in hexadecimal digits.

    The interpreter has one of its own (``_sha2`` since 3.12). ``hashlib`` loads libcrypto: that
    would be a tenth of what ``exec`` costs.
    """
    for name in ("_sha2", "_sha256", "hashlib"):
        try:
            module = import_module(name)
        except ImportError:
            continue
        return str(module.sha256(data).hexdigest())
    raise InternalError("this interpreter has no SHA-256")


@frozen
class Place:
    """The names of one instance's service. ``instance`` is the real path of its directory."""

    instance: str
    directory: str
    name: str
    log: str

    @classmethod
    def of(cls, instance: str) -> Place:
        """Return the place of the instance at ``instance``."""
        real = os.path.realpath(instance)
        name = _sha256(os.fsencode(real))[:32]
        log = os.path.join(state_dir(), "service", f"{name}.log")
        return cls(real, os.path.join(runtime_dir(), "service"), name, log)

    @property
    def socket(self) -> str:
        """The path of the socket."""
        return os.path.join(self.directory, f"{self.name}.sock")

    @property
    def lock(self) -> str:
        """The path of the file that is locked while a service is alive."""
        return os.path.join(self.directory, f"{self.name}.lock")


class Claim:
    """The right to be the instance's service: the lock is held, the socket listens."""

    __slots__ = ("_lock", "_place", "listener")

    def __init__(self, place: Place, lock: int, listener: socket) -> None:
        self._place = place
        self._lock = lock
        self.listener = listener

    def release(self) -> None:
        """Take the socket away, then let the next one claim the place."""
        self.listener.close()
        for path in (self._place.socket, self._place.lock):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass  # somebody cleared the runtime directory
        os.close(self._lock)


def claim(place: Place) -> Claim:
    """Become the service of an instance.

    Raises:
        BusyError: there is one.
    """
    make_private(os.path.dirname(place.directory))
    make_private(place.directory)
    lock = _lock(place)
    try:
        try:
            os.unlink(place.socket)  # of one that was killed: the lock says that it is gone
        except FileNotFoundError:
            pass
        import socket

        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            with _Short(place.directory, place.name) as path:
                listener.bind(path)
            os.chmod(place.socket, 0o600)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except BaseException:
        os.close(lock)
        raise
    return Claim(place, lock, listener)


def _lock(place: Place) -> int:
    while True:
        fd = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder removed it: then we have locked a file that has no name any more.
            if os.path.samestat(os.fstat(fd), os.stat(place.lock)):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise BusyError(
                "the instance has a service already",
                stage="start",
                subject=place.instance,
                expected="no other service",
                found="one that is starting or stopping",
                hint="`serdab status` tells about it",
            ) from None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


class _Short:
    """A socket's path by way of a descriptor: names of sockets have at most 107 bytes."""

    def __init__(self, directory: str, name: str) -> None:
        self._directory = directory
        self._name = name
        self._fd = -1

    def __enter__(self) -> str:
        self._fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}/{self._name}.sock"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def connect(place: Place) -> _socket.socket | None:
    """Return a connection to the instance's service; None if it has none.

    Raises:
        VerificationError: another user listens there.
    """
    for directory in runtime_dirs():
        end = _connect(os.path.join(directory, "service"), place.name)
        if end is not None:
            return end
    return None


def _connect(directory: str, name: str) -> Connected | None:
    end = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        with _Short(directory, name) as path:
            end.connect(path)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError, PermissionError):
        end.close()
        return None
    except BaseException:
        end.close()
        raise
    pid, uid = peer_of(end)
    if uid != os.geteuid():
        end.close()
        raise VerificationError(
            "the service is another user's",
            subject=f"{directory}/{name}.sock",
            expected=f"uid {os.geteuid()}",
            found=f"uid {uid}, process {pid}",
            hint="XDG_RUNTIME_DIR must name a directory of your own",
        )
    return end


def not_running(place: Place, verb: str) -> Error:
    """Return the error for an instance without a service; it names who else has the instance."""
    from serdab.instance.locks import run_holder

    holder = run_holder(place.instance)
    hint = "`serdab start` boots it"
    if holder is not None:
        hint = "`serdab run` and others use an instance alone; a service is found by the same user "
        hint += "with the same XDG_RUNTIME_DIR only"
    return NotRunningError(
        "the instance is not running as a service",
        stage=verb,
        subject=place.instance,
        expected="a service",
        found="none" if holder is None else f"in use by {holder}",
        hint=hint,
    )


def peer_of(end: _socket.socket) -> tuple[int, int]:
    """Return (process id, user id) of whoever connected, or listens."""
    raw = end.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid
