# SPDX-License-Identifier: Apache-2.0
"""Which system calls a program inside may make: the policy, and its filter. Pure.

Above: ``sandbox``. Below: ``linux.bpf``, ``linux.seccomp``.

Four answers, decided in this order:

* ENOSYS: calls of another architecture, x32 numbers, numbers unknown when this was written,
  ``clone3`` (its flags lie in memory, where a filter cannot see them; the C library then falls
  back to ``clone``), and the new mount API, so that mount(2) is the one way to mount;
* EPERM: what a container's default profile refuses to a program without privileges, ``setns``
  into a mount namespace, the two terminal requests that type into somebody else's terminal, and
  PR_SET_MM of prctl(2), by which a program would tell us another file as the one it runs;
  limits and scheduling of processes that are ours, which have the numbers up to 299 (in a pid
  namespace of a program's own, too), and of all processes of a user, ours among them;
* the kernel process answers: ``MountRootFS``, mount, umount2, sync, syncfs;
* everything else goes to the kernel.

Security: a call that is checked is answered by us, never passed on after the check
(seccomp_unotify(2): the arguments may change in between).
"""

from __future__ import annotations

import errno
from typing import Final

from serdab.errors import EnvironmentRefused
from serdab.linux import bpf
from serdab.linux.seccomp import (
    ARCH_X86_64,
    RET_ALLOW,
    RET_ERRNO,
    RET_USER_NOTIF,
)
from serdab.structs import frozen

MOUNT_ROOT_FS: Final = 363

_X32_BIT: Final = 0x40000000
_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C
_PR_SET_MM: Final = 35
_CLONE_NEWNS: Final = 0x00020000
_PRIO_USER: Final = 2
_IOPRIO_WHO_USER: Final = 3
#: Ours have the ids of the inner root: nothing but their numbers tells them apart. No program
#: gets one of these (init/src/numbers.c), not even as a thread, group or session.
_LAST_OF_OURS: Final = 299


@frozen
class Numbers:
    """System call numbers of one architecture. ``known``: ranges of assigned numbers."""

    architecture: int
    has_x32: bool
    known: tuple[tuple[int, int], ...]
    mount: int
    umount2: int
    sync: int
    syncfs: int
    ioctl: int
    setns: int
    prctl: int
    first_is_pid: frozenset[int]
    setpriority: int
    ioprio_set: int
    absent: frozenset[int]
    refused: frozenset[int]


# Linux 6.18, arch/x86/entry/syscalls/syscall_64.tbl.
X86_64: Final = Numbers(
    architecture=ARCH_X86_64,
    has_x32=True,
    known=((0, 336), (424, 469)),
    mount=165,
    umount2=166,
    sync=162,
    syncfs=306,
    ioctl=16,
    setns=308,
    prctl=157,
    first_is_pid=frozenset(
        {
            142,  # sched_setparam
            144,  # sched_setscheduler
            203,  # sched_setaffinity
            302,  # prlimit64
            314,  # sched_setattr
        }
    ),
    setpriority=141,
    ioprio_set=251,
    absent=frozenset(
        {
            435,  # clone3
            428,  # open_tree
            429,  # move_mount
            430,  # fsopen
            431,  # fsconfig
            432,  # fsmount
            433,  # fspick
            442,  # mount_setattr
            467,  # open_tree_attr
        }
    ),
    refused=frozenset(
        {
            134,  # uselib
            136,  # ustat
            139,  # sysfs
            153,  # vhangup
            155,  # pivot_root
            156,  # _sysctl
            163,  # acct
            164,  # settimeofday
            167,  # swapon
            168,  # swapoff
            169,  # reboot
            172,  # iopl
            173,  # ioperm
            174,  # create_module
            175,  # init_module
            176,  # delete_module
            177,  # get_kernel_syms
            178,  # query_module
            179,  # quotactl
            180,  # nfsservctl
            212,  # lookup_dcookie
            227,  # clock_settime
            246,  # kexec_load
            248,  # add_key
            249,  # request_key
            250,  # keyctl
            298,  # perf_event_open
            304,  # open_by_handle_at
            313,  # finit_module
            320,  # kexec_file_load
            321,  # bpf
            323,  # userfaultfd
            425,  # io_uring_setup
            426,  # io_uring_enter
            427,  # io_uring_register
            443,  # quotactl_fd
        }
    ),
)

BY_MACHINE: Final = {"x86_64": X86_64}


@frozen
class Options:
    """What a filter is made for."""

    numbers: Numbers


def options_for(machine: str) -> Options:
    """Return the options for a processor as ``uname -m`` names it.

    Raises:
        EnvironmentRefused: there is no table for it.
    """
    numbers = BY_MACHINE.get(machine)
    if numbers is None:
        raise EnvironmentRefused(
            "there is no system call table for this processor",
            stage="sandbox",
            expected=" or ".join(BY_MACHINE),
            found=machine,
        )
    return Options(numbers)


def _refuse(code: int) -> int:
    return RET_ERRNO | code


def _decisions(numbers: Numbers) -> list[tuple[int, str]]:
    """Return (first number, answer) pairs: each answer holds up to the next pair."""
    answers: dict[int, str] = {}
    for low, high in numbers.known:
        for number in range(low, high + 1):
            answers[number] = "allow"
    answers.update(dict.fromkeys(numbers.absent, "absent"))
    answers.update(dict.fromkeys(numbers.refused, "refuse"))
    ours = (MOUNT_ROOT_FS, numbers.mount, numbers.umount2, numbers.sync, numbers.syncfs)
    answers.update(dict.fromkeys(ours, "notify"))
    answers.update(dict.fromkeys(numbers.first_is_pid, "first-pid"))
    answers[numbers.setpriority] = "setpriority"
    answers[numbers.ioprio_set] = "ioprio_set"
    answers[numbers.ioctl] = "ioctl"
    answers[numbers.setns] = "setns"
    answers[numbers.prctl] = "prctl"
    out: list[tuple[int, str]] = []
    for number in range(max(answers) + 2):
        answer = answers.get(number, "absent")
        if not out or out[-1][1] != answer:
            out.append((number, answer))
    return out


def build(options: Options) -> bytes:
    """Return the filter program."""
    numbers = options.numbers
    asm = bpf.Assembler()
    asm.load(bpf.ARCHITECTURE)
    asm.jump_if(bpf.JUMP_IF_EQUAL, numbers.architecture, "ours", "foreign")
    asm.label("foreign")
    asm.give(_refuse(errno.ENOSYS))
    asm.label("ours")
    asm.load(bpf.NUMBER)
    # -1 is what a tracer leaves behind when it has answered a call itself.
    asm.jump_if(bpf.JUMP_IF_EQUAL, 0xFFFFFFFF, "traced", "untraced")
    asm.label("traced")
    asm.give(RET_ALLOW)
    asm.label("untraced")
    _search(asm, _decisions(numbers), "n")
    asm.label("ioctl")
    asm.load(bpf.argument_low(1))
    asm.jump_if(bpf.JUMP_IF_EQUAL, _TIOCSTI, "refuse")
    asm.jump_if(bpf.JUMP_IF_EQUAL, _TIOCLINUX, "refuse", "allow")
    asm.label("setns")
    asm.load(bpf.argument_low(1))
    asm.jump_if(bpf.JUMP_IF_EQUAL, 0, "refuse")  # any kind of namespace, so a mount one too
    asm.jump_if(bpf.JUMP_IF_BITS, _CLONE_NEWNS, "refuse", "allow")
    asm.label("prctl")
    asm.load(bpf.argument_low(0))  # an int to the kernel
    asm.jump_if(bpf.JUMP_IF_EQUAL, _PR_SET_MM, "refuse", "allow")
    asm.label("setpriority")
    asm.load(bpf.argument_low(0))
    asm.jump_if(bpf.JUMP_IF_EQUAL, _PRIO_USER, "refuse", "second-pid")
    asm.label("ioprio_set")
    asm.load(bpf.argument_low(0))
    asm.jump_if(bpf.JUMP_IF_EQUAL, _IOPRIO_WHO_USER, "refuse", "second-pid")
    asm.label("second-pid")
    asm.load(bpf.argument_low(1))
    asm.jump("pid")
    asm.label("first-pid")
    asm.load(bpf.argument_low(0))
    asm.label("pid")
    asm.jump_if(bpf.JUMP_IF_EQUAL, 0, "allow")  # the caller itself, or its group
    asm.jump_if(bpf.JUMP_IF_GREATER, _LAST_OF_OURS, "allow", "refuse")
    asm.label("absent")
    asm.give(_refuse(errno.ENOSYS))
    asm.label("refuse")
    asm.give(_refuse(errno.EPERM))
    asm.label("notify")
    asm.give(RET_USER_NOTIF)
    asm.label("allow")
    asm.give(RET_ALLOW)
    return asm.assemble()


def _search(asm: bpf.Assembler, decisions: list[tuple[int, str]], name: str) -> None:
    """Emit a binary search; conditional jumps go short ways, long ones through a plain jump."""
    if len(decisions) == 1:
        asm.jump(decisions[0][1])
        return
    middle = len(decisions) // 2
    asm.jump_if(bpf.JUMP_IF_AT_LEAST, decisions[middle][0], name + "h", name + "l")
    asm.label(name + "l")
    _search(asm, decisions[:middle], name + "l")
    asm.label(name + "h")
    _search(asm, decisions[middle:], name + "h")
