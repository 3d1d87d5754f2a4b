# SPDX-License-Identifier: Apache-2.0
"""What this machine has and lacks for each feature, found out without changing anything.

Above: ``cli`` (doctor). Below: ``libos.idmaps``, /proc and /dev.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from typing import Final

from serdab.errors import EnvironmentRefused
from serdab.instance.trial import Step, try_namespaces
from serdab.libos.idmaps import choose_here
from serdab.libos.sandbox import refused_proc
from serdab.structs import frozen
from serdab.trust import platform

MINIMUM_KERNEL: Final = (5, 19)


@frozen
class Finding:
    """One feature: ``required`` ones decide the exit code; ``hint`` says how to get it."""

    feature: str
    present: bool
    required: bool
    detail: str
    hint: str = ""


def examine() -> list[Finding]:
    """Return every finding, required ones first."""
    return [check() for check in _CHECKS]


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(4096).strip()
    except OSError:
        return ""


def _kernel() -> Finding:
    release = os.uname().release
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    wanted = ".".join(map(str, MINIMUM_KERNEL))
    return Finding(
        "kernel",
        present=version >= MINIMUM_KERNEL,
        required=True,
        detail=f"Linux {release}",
        hint=f"Linux {wanted} brought SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    )


def _architecture() -> Finding:
    machine = os.uname().machine
    here = machine == "x86_64" and os.sysconf("SC_LONG_BIT") == 64
    return Finding(
        "architecture",
        present=here,
        required=True,
        detail=machine,
        hint="x86_64 is supported so far",
    )


def _user_namespaces() -> Finding:
    limit = _read("/proc/sys/user/max_user_namespaces")
    if not os.path.exists("/proc/self/ns/user"):
        return Finding(
            "user namespaces",
            present=False,
            required=True,
            detail="not in this kernel",
            hint="CONFIG_USER_NS=y",
        )
    if limit == "0":
        hint = "sysctl user.max_user_namespaces=15000"
        return Finding(
            "user namespaces", present=False, required=True, detail="switched off", hint=hint
        )
    if os.geteuid() != 0:
        switches = (
            ("/proc/sys/kernel/unprivileged_userns_clone", "0", "=1"),
            ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "=0"),
        )
        for path, bad, good in switches:
            if _read(path) == bad:
                name = path.removeprefix("/proc/sys/").replace("/", ".")
                detail = f"refused to ordinary users by {name}"
                return Finding(
                    "user namespaces",
                    present=False,
                    required=True,
                    detail=detail,
                    hint=f"sysctl {name}{good}",
                )
    refused = try_namespaces()
    if refused is not None and refused.step is Step.NAMESPACES:
        return Finding(
            "user namespaces",
            present=False,
            required=True,
            detail=f"refused: {refused.words}",
            hint="in a container: a seccomp profile that admits unshare(2) and mount(2) "
            "(--security-opt seccomp=unconfined), nested namespaces admitted by the engine",
        )
    return Finding(
        "user namespaces", present=True, required=True, detail=f"up to {limit or 'any number'}"
    )


def _proc() -> Finding:
    refused = try_namespaces()
    if refused is None:
        return Finding("a new /proc", present=True, required=True, detail="can be mounted")
    if refused.step is Step.NAMESPACES:
        return Finding(
            "a new /proc",
            present=False,
            required=True,
            detail="not tried: no namespaces",
            hint="see user namespaces",
        )
    error = refused_proc()
    return Finding(
        "a new /proc",
        present=False,
        required=True,
        detail=f"{refused.words}: {error.found}",
        hint=error.hint,
    )


def _fuse() -> Finding:
    hint = "modprobe fuse; in a container: --device /dev/fuse"
    if not os.path.exists("/dev/fuse"):
        return Finding("FUSE", present=False, required=True, detail="no /dev/fuse", hint=hint)
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        mode = f"/dev/fuse has mode {os.stat('/dev/fuse').st_mode & 0o777:04o}"
        return Finding(
            "FUSE",
            present=False,
            required=True,
            detail=mode,
            hint="root: chmod 666 /dev/fuse, as udev does",
        )
    return Finding("FUSE", present=True, required=True, detail="/dev/fuse can be opened")


def _seccomp() -> Finding:
    actions = _read("/proc/sys/kernel/seccomp/actions_avail").split()
    return Finding(
        "seccomp notification",
        present="user_notif" in actions,
        required=True,
        detail=" ".join(actions) or "no seccomp",
        hint="CONFIG_SECCOMP_FILTER=y",
    )


def _id_maps() -> Finding:
    # What a run would do, not what is installed: without ranges the tools are of no use.
    try:
        ids = choose_here()
    except EnvironmentRefused as exc:
        return Finding("id maps", present=False, required=True, detail=exc.found, hint=exc.hint)
    if not ids.is_single:
        count = sum(line[2] for line in ids.uids)
        how = f"{count} ids of this user namespace"
        if ids.through_newuidmap:
            how = f"{count} ids through newuidmap"
        elif ids.uids[0][1] != 0:
            how = "root maps a subordinate range"
        return Finding("id maps", present=True, required=False, detail=how)
    if os.geteuid() == 0:
        return Finding(
            "id maps",
            present=False,
            required=False,
            detail="one id only: this user namespace has no more",
            hint="give the container a range of ids; without it files of all owners are shown as "
            "root's inside, and chown and setuid to others fail",
        )
    tools = shutil.which("newuidmap") and shutil.which("newgidmap")
    lacking = "this user has no range in /etc/subuid and /etc/subgid" if tools else "no newuidmap"
    return Finding(
        "id maps",
        present=False,
        required=False,
        detail=f"one id only: {lacking}",
        hint="install uidmap and give this user ranges (usermod --add-subuids --add-subgids); "
        "without them files of all owners are shown as root's inside, and chown and setuid to "
        "others fail",
    )


def _host_mounts() -> Finding:
    feature = "mounting on the host"
    if os.geteuid() == 0:
        return Finding(feature, present=True, required=False, detail="root calls mount(2)")
    program = shutil.which("fusermount3")
    return Finding(
        feature,
        present=program is not None,
        required=False,
        detail=f"through {program}" if program else "no fusermount3",
        hint="install fuse3; only `serdab mount` needs it",
    )


def _limits() -> Finding:
    hint = "without a cgroup the limits of the configuration are process limits only"
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        path = _read("/proc/self/cgroup").rpartition("::")[2]
        mine = "/sys/fs/cgroup" + path.splitlines()[0] if path else ""
        can = bool(mine) and os.access(mine, os.W_OK)
        detail = "cgroup v2, delegated" if can else "cgroup v2, not delegated"
        return Finding(
            "memory and process limits", present=can, required=False, detail=detail, hint=hint
        )
    both = all(os.access(f"/sys/fs/cgroup/{name}", os.W_OK) for name in ("memory", "pids"))
    detail = "cgroup v1, memory and pids" if both else "no cgroup that can be written"
    return Finding(
        "memory and process limits", present=both, required=False, detail=detail, hint=hint
    )


def _landlock() -> Finding:
    modules = _read("/sys/kernel/security/lsm").split(",")
    return Finding(
        "Landlock",
        present="landlock" in modules,
        required=False,
        detail="on" if "landlock" in modules else "not among the active security modules",
        hint="boot with lsm=landlock,...; without it abstract sockets of the host can be reached "
        "unless the network is none",
    )


def _machine_identity() -> Finding:
    bound = platform.machine_name() != ""
    return Finding(
        "machine id",
        present=bound,
        required=False,
        detail="automatic keys are bound to this machine" if bound else "none",
        hint="systemd-machine-id-setup; without it the simulation's secret is bound to its file",
    )


_CHECKS: Final[tuple[Callable[[], Finding], ...]] = (
    _kernel,
    _architecture,
    _user_namespaces,
    _proc,
    _fuse,
    _seccomp,
    _id_maps,
    _host_mounts,
    _limits,
    _landlock,
    _machine_identity,
)
