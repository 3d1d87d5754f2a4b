# SPDX-License-Identifier: Apache-2.0
"""Makes an instance: configuration, skeleton directories and the default init.

Above: ``cli`` (new, init). Below: ``layout``, the templates and the shipped init.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from serdab.errors import EnvironmentRefused, UsageError
from serdab.instance.layout import CONFIG, IMAGE_SOURCE, INIT, INITFS_SOURCE, RUN, UPPER, Instance
from serdab.linux.dirfd import DirFd
from serdab.linux.outside import Walk
from serdab.trust.measurement import package_root
from serdab.trust.records import forget_below, forget_path

Fill = Callable[[DirFd], None]
SKELETON: Final = (
    "bin",
    "dev",
    "etc",
    "host",
    "lib",
    "lib64",
    "opt",
    "proc",
    "root",
    "sbin",
    "sys",
    "tmp",
    "ext2",
)
_INITFS_SKELETON: Final = ("bin", "dev", "etc", "proc")


def templates_dir() -> str:
    """Return the directory of the templates that ship with Serdab."""
    return os.path.join(package_root(), "instance", "templates")


def shipped_init() -> str:
    """Return the path of the default init for this machine.

    Raises:
        EnvironmentRefused: none is shipped for this architecture.
    """
    machine = os.uname().machine
    path = os.path.join(package_root(), "init", "bin", machine, "init")
    if not os.path.isfile(path):
        raise EnvironmentRefused(
            "no init is shipped for this machine",
            subject=machine,
            expected="x86_64",
            found=machine,
            hint="build one from the sources in serdab/init",
        )
    return path


def new_instance(path: str, *, fill: Fill | None = None) -> Instance:
    """Make the directory ``path`` and an instance in it; ``fill`` gets its image/, open.

    Raises:
        UsageError: something is there already, or the directory cannot be made.
    """
    source = shipped_init()
    try:
        parent, name = Walk().parent(path)
    except UsageError as exc:
        cause = exc.__cause__
        if not isinstance(cause, OSError):
            raise
        raise _not_made(path, cause) from exc
    with parent:
        return _new(parent, name, path, source, fill)


def _new(parent: DirFd, name: str, path: str, source: str, fill: Fill | None) -> Instance:
    try:
        os.mkdir(name, 0o755, dir_fd=parent.fd)
    except OSError as exc:
        raise _not_made(path, exc) from exc
    try:
        return _fill(Instance(path, parent.directory(name)), source, fill)
    except BaseException:
        parent.remove(name)  # else it is in the way of another try
        raise


def _not_made(path: str, exc: OSError) -> UsageError:
    exists = isinstance(exc, FileExistsError)
    return UsageError(
        "the instance cannot be made",
        subject=os.path.abspath(path),
        expected="a path where nothing is, in a directory that can be written",
        found="something is there already" if exists else os.strerror(exc.errno or 0),
        hint="`serdab init` makes an instance of the current directory" if exists else "",
    )


def init_instance(path: str, *, fill: Fill | None = None) -> Instance:
    """Make the existing directory ``path`` an instance; ``fill`` gets its image/, open.

    Raises:
        UsageError: it is one already, or it holds something under a name that is needed.
    """
    source = shipped_init()
    instance = Instance(path)
    for name in (CONFIG, IMAGE_SOURCE, INITFS_SOURCE):
        if instance.root.exists(name):
            raise UsageError(
                "the directory is an instance already" if name == CONFIG else "a name is taken",
                subject=os.path.abspath(path),
                expected=f"no {name}",
                found=f"{name} is there",
                hint="`serdab build` builds it" if name == CONFIG else "move it away first",
            )
    return _fill(instance, source, fill)


def _fill(instance: Instance, init: str, fill: Fill | None) -> Instance:
    root = instance.root
    for base, names in ((IMAGE_SOURCE, SKELETON), (INITFS_SOURCE, _INITFS_SKELETON)):
        os.mkdir(base, 0o755, dir_fd=root.fd)
        with root.directory(base) as tree:
            for name in names:
                with tree.make(name) as directory:
                    # The modes are measured: they must not depend on the caller's umask.
                    os.fchmod(directory.fd, 0o1777 if name == "tmp" else 0o755)
            os.fchmod(tree.fd, 0o755)
    if fill is not None:
        with root.directory(IMAGE_SOURCE) as image:
            fill(image)
    root.make(RUN, mode=0o700).close()
    with open(init, "rb") as file:
        program = file.read()
    root.write_new(f"{INITFS_SOURCE}/{INIT}", program)
    fd = root.open_file(f"{INITFS_SOURCE}/{INIT}")
    try:
        os.fchmod(fd, 0o755)
        # mtimes are measured too; the shipped init is the same everywhere, so its time is as well.
        os.utime(fd, (0, 0))
    finally:
        os.close(fd)
    # Whoever makes an instance says that nothing is there yet, whatever was here before: the
    # layers that programs mounted, too. Forgotten, not discarded: it may have been moved away.
    forget_path(root.real(UPPER))  # also if its note is damaged and tells no path
    forget_below(root.real())
    # The configuration comes last: it is what makes the directory an instance.
    with open(os.path.join(templates_dir(), CONFIG), "rb") as file:
        content = file.read()
    root.write_new(CONFIG, content)
    return instance
