# SPDX-License-Identifier: Apache-2.0
"""Makes an instance: configuration, skeleton directories and the default init.

Above: ``cli`` (new, init). Below: ``layout``, the templates and the shipped init.
"""

from __future__ import annotations

import os
import shutil
from typing import Final

from serdab.errors import EnvironmentRefused, UsageError
from serdab.instance.layout import (
    CONFIG,
    IMAGE_SOURCE,
    INIT,
    INITFS_SOURCE,
    RUN,
    UPPER,
    Instance,
)
from serdab.trust.measurement import package_root
from serdab.trust.records import forget_path

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


def new_instance(path: str) -> Instance:
    """Make the directory ``path`` and an instance in it.

    Raises:
        UsageError: something is there already, or the directory cannot be made.
    """
    source = shipped_init()
    try:
        os.mkdir(path, 0o755)
    except OSError as exc:
        exists = isinstance(exc, FileExistsError)
        raise UsageError(
            "the instance cannot be made",
            subject=os.path.abspath(path),
            expected="a path where nothing is, in a directory that can be written",
            found="something is there already" if exists else os.strerror(exc.errno or 0),
            hint="`serdab init` makes an instance of the current directory" if exists else "",
        ) from exc
    try:
        return _fill(path, source)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)  # else it is in the way of another try
        raise


def init_instance(path: str) -> Instance:
    """Make the existing directory ``path`` an instance.

    Raises:
        UsageError: it is one already, or it holds something under a name that is needed.
    """
    source = shipped_init()
    for name in (CONFIG, IMAGE_SOURCE, INITFS_SOURCE):
        if os.path.lexists(os.path.join(path, name)):
            raise UsageError(
                "the directory is an instance already" if name == CONFIG else "a name is taken",
                subject=os.path.abspath(path),
                expected=f"no {name}",
                found=f"{name} is there",
                hint="`serdab build` builds it" if name == CONFIG else "move it away first",
            )
    return _fill(path, source)


def _fill(path: str, init: str) -> Instance:
    instance = Instance(path)
    for base, names in ((IMAGE_SOURCE, SKELETON), (INITFS_SOURCE, _INITFS_SKELETON)):
        os.mkdir(instance.at(base), 0o755)
        for name in names:
            directory = instance.at(f"{base}/{name}")
            os.mkdir(directory)
            # The modes are measured: they must not depend on the caller's umask.
            os.chmod(directory, 0o1777 if name == "tmp" else 0o755)
        os.chmod(instance.at(base), 0o755)  # noqa: S103 - no secret in it
    os.makedirs(instance.at(RUN), 0o700, exist_ok=True)
    target = instance.at(f"{INITFS_SOURCE}/{INIT}")
    shutil.copyfile(init, target)
    os.chmod(target, 0o755)  # noqa: S103 - a program
    # mtimes are measured too; the shipped init is the same everywhere, so its time is as well.
    os.utime(target, (0, 0))
    # Whoever makes an instance says that nothing is there yet, whatever was here before.
    forget_path(instance.at(UPPER))
    # The configuration comes last: it is what makes the directory an instance.
    with open(os.path.join(templates_dir(), CONFIG), "rb") as file:
        content = file.read()
    with open(instance.at(CONFIG), "xb") as file:
        file.write(content)
    return instance
