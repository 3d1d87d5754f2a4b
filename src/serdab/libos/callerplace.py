# SPDX-License-Identifier: Apache-2.0
"""Where a call happens, and as whom: a caller's root, working directory, user and program.

Above: ``mounts``. Below: ``mountrules``, ``users``, ``worker``.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from serdab.config.mounts import MountPolicy
from serdab.libos import mountrules
from serdab.libos.intake import CallerDied, CallError, unreadable
from serdab.libos.mountcall import BadCall
from serdab.libos.notify import Caller
from serdab.libos.sandbox import Sandbox
from serdab.libos.users import user_of
from serdab.libos.worker import Place
from serdab.structs import replace

_SHOWN: Final = 200


def shown(path: bytes) -> str:
    """Return a path of a program for the operator: quoted, and not all of a long one."""
    return repr(os.fsdecode(path[:_SHOWN])) + ("..." if len(path) > _SHOWN else "")


def check_program(policy: MountPolicy, link: str, tree: int) -> None:
    """Refuse a program that may not mount; ``link`` leads to it, ``tree`` is a process of the tree.

    Raises:
        BadCall: EPERM.
    """
    from serdab.linux.mounts import is_mounted

    mountrules.check_program(policy, os.readlink(link))
    # A file in a mount that was detached has a path that starts there: any path there is.
    fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
    try:
        program = os.readlink(f"/proc/self/fd/{fd}")
        # Of this very file: the link may lead elsewhere by now.
        mountrules.check_program(policy, program)
        try:
            in_tree = is_mounted(fd, tree)
        except OSError as exc:
            reason = f"the instance's mounts cannot be read: {exc.strerror}"
            raise BadCall(errno.EPERM, f"{program} may not mount: {reason}") from None
        if not in_tree:
            raise BadCall(errno.EPERM, f"{program} may not mount: it is not in the tree")
    finally:
        os.close(fd)


def own_link(path: bytes, thread: int) -> tuple[str, bytes] | None:
    """Split a path through one of the caller's own magic links into the link and what follows.

    The worker follows no magic links (proc_pid_cwd(5), proc_pid_fd(5)): to it they would be its
    own, and those of others lead out of what the caller can reach. The caller's own lead where it
    is already, so they are opened here, by the thread that called. None: no such path.
    """
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if not path.startswith(b"/") or len(parts) < 3 or parts[0] != b"proc":
        return None
    if parts[1] not in (b"self", b"thread-self"):
        return None
    if parts[2] in (b"cwd", b"root"):
        count = 3
    elif parts[2] == b"fd" and len(parts) > 3 and parts[3].isdigit():
        count = 4
    else:
        return None
    link = "/".join(part.decode("ascii") for part in parts[2:count])
    return f"/proc/{thread}/{link}", b"/".join(parts[count:]) or b"."


class Where:
    """The caller's root and directory, opened before it is checked to be still there.

    SAFETY: ``thread`` may belong to somebody else by now; what is opened here is used only after
    ``Caller.check_alive`` has found the notification alive.
    """

    def __init__(self, what: str, sandbox: Sandbox, caller: Caller) -> None:
        self.what = what
        self._fds: list[int] = []
        thread = self._thread = caller.notification.thread
        try:
            proc = self._open(f"/proc/{thread}")
            if not sandbox.namespaces:
                raise CallerDied  # it went with the sandbox
            user_ns, mount_ns = sandbox.namespaces
            self.user = user_of(proc, sandbox.ids)
            self.place = Place(
                user_ns=user_ns,
                mount_ns=mount_ns,
                root=self._open("root", at=proc),
                cwd=self._open("cwd", at=proc),
            )
        except (FileNotFoundError, ProcessLookupError):
            self.close()
            raise CallerDied from None
        except PermissionError:
            self.close()
            raise unreadable(what) from None
        except BaseException:
            self.close()
            raise

    def enter(self, path: bytes) -> bytes:
        """Make the caller's own magic link that ``path`` begins with the place where it is relative
        to; return what is left of it, or all of it.

        Raises:
            CallError: it leads nowhere, or to no directory.
        """
        own = own_link(path, self._thread)
        if own is None:
            return path
        link, rest = own
        try:
            self.place = replace(self.place, cwd=self._open(link))
        except OSError as exc:
            # Our way to it may be longer than the caller's, which led to nothing then either.
            is_long = exc.errno == errno.ENAMETOOLONG
            code = errno.ENOENT if is_long else exc.errno or errno.ENOENT
            reason = f"{self.what}: {shown(path)}: {os.strerror(code)}"
            raise CallError(code, reason) from None
        return rest

    def _open(self, path: str, *, at: int | None = None) -> int:
        # O_PATH asks nothing of the file system that the caller's root or directory lies in.
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
        self._fds.append(fd)
        return fd

    def __enter__(self) -> Where:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
