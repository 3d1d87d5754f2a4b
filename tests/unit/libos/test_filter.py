# SPDX-License-Identifier: Apache-2.0
"""The system call filter as a value: every number has the answer the policy gives it."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from serdab.errors import EnvironmentRefused, InternalError
from serdab.libos import filter as filter_module
from serdab.libos.filter import MOUNT_ROOT_FS, X86_64, build, options_for
from serdab.linux import bpf
from serdab.linux.seccomp import (
    ARCH_AARCH64,
    ARCH_I386,
    ARCH_X86_64,
    RET_ALLOW,
    RET_ERRNO,
    RET_USER_NOTIF,
)

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
#: What may be missing in the header of an older kernel: arch/x86/entry/syscalls/syscall_64.tbl
NEWER = {
    "uretprobe": 335,
    "uprobe": 336,
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
}
PROGRAM = build(options_for("x86_64"))
ABSENT = RET_ERRNO | errno.ENOSYS
REFUSED = RET_ERRNO | errno.EPERM


def decide(number: int, *arguments: int, architecture: int = ARCH_X86_64) -> int:
    return bpf.run(PROGRAM, number, architecture, arguments)


def test_every_number_is_answered_as_the_policy_says() -> None:
    notified = {MOUNT_ROOT_FS, X86_64.mount, X86_64.umount2, X86_64.sync, X86_64.syncfs}
    for number in range(1200):
        if number in notified:
            expected = RET_USER_NOTIF
        elif number in X86_64.absent:
            expected = ABSENT
        elif number in X86_64.refused:
            expected = REFUSED
        elif any(low <= number <= high for low, high in X86_64.known):
            expected = RET_ALLOW
        else:
            expected = ABSENT
        # setns with a type other than mount, ioctl with a harmless request
        assert decide(number, 0, 1 << 27) == expected, number


def test_the_known_numbers_are_those_of_the_kernel() -> None:
    """A number that the kernel gives away later is not let through before somebody looked at it."""
    found = re.findall(r"^#define __NR_(\w+) (\d+)$", HEADER.read_text(), re.MULTILINE)
    by_name = {name: int(number) for name, number in found}
    assert len(by_name) > 300
    assert {name: by_name.get(name, number) for name, number in NEWER.items()} == NEWER
    known = {n for low, high in X86_64.known for n in range(low, high + 1)}
    there = {number for number in by_name.values() if number <= max(NEWER.values())}
    assert known == there | set(NEWER.values())


def test_what_is_singled_out_is_what_it_is_called() -> None:
    found = dict(re.findall(r"^#define __NR_(\w+) (\d+)$", HEADER.read_text(), re.MULTILINE))
    for name in (
        "mount",
        "umount2",
        "sync",
        "syncfs",
        "ioctl",
        "setns",
        "prctl",
        "setpriority",
        "ioprio_set",
    ):
        assert getattr(X86_64, name) == int(found[name])
    source = Path(filter_module.__file__).read_text()
    named = re.findall(r"^ {12}(\d+),  # (\w+)$", source, re.MULTILINE)
    kinds = (X86_64.absent, X86_64.refused, X86_64.first_is_pid)
    assert len(named) == sum(map(len, kinds))
    assert not [
        (number, name)
        for number, name in named
        if int(found.get(name, NEWER.get(name, -1))) != int(number)
    ]


@pytest.mark.parametrize("architecture", [ARCH_I386, ARCH_AARCH64, 0])
def test_no_call_of_another_architecture_exists(architecture: int) -> None:
    for number in (0, 1, 20, 165, 363):
        assert decide(number, architecture=architecture) == ABSENT


def test_no_x32_number_exists() -> None:
    for number in (0, 39, 165, 363, 512, 547):
        assert decide(0x40000000 | number) == ABSENT


def test_a_call_that_a_tracer_answered_is_left_alone() -> None:
    assert decide(0xFFFFFFFF) == RET_ALLOW


@pytest.mark.parametrize("high", [0, 1, 0xFFFFFFFF])
def test_terminal_injection_is_judged_by_the_low_half(high: int) -> None:
    for request in (0x5412, 0x541C):
        assert decide(16, 0, high << 32 | request) == REFUSED
    assert decide(16, 0, high << 32 | 0x5401) == RET_ALLOW


def test_setns_is_judged_by_its_type() -> None:
    assert decide(308, 3, 0) == REFUSED
    assert decide(308, 3, 0x20000) == REFUSED
    assert decide(308, 3, 0x10000000) == RET_ALLOW


@pytest.mark.parametrize("high", [0, 1, 0xFFFFFFFF])
def test_no_program_changes_the_link_to_its_own_file(high: int) -> None:
    assert decide(157, high << 32 | 35) == REFUSED  # PR_SET_MM: prctl(2) takes an int
    assert decide(157, high << 32 | 15) == RET_ALLOW


def test_an_unknown_processor_is_refused() -> None:
    with pytest.raises(EnvironmentRefused):
        options_for("pdp11")


def test_jumps_that_lead_nowhere_are_defects() -> None:
    asm = bpf.Assembler()
    asm.jump("missing")
    with pytest.raises(InternalError):
        asm.assemble()
    asm = bpf.Assembler()
    asm.label("here")
    asm.jump("here")
    with pytest.raises(InternalError):
        asm.assemble()


def test_nobody_limits_or_schedules_processes_of_ours() -> None:
    for number in X86_64.first_is_pid:
        for pid in (1, 2, 299, 7 << 32 | 1):
            assert decide(number, pid) == REFUSED, number
        for pid in (0, 300, 301, 0xFFFFFFFF):
            assert decide(number, pid) == RET_ALLOW, number
    for number in (X86_64.setpriority, X86_64.ioprio_set):
        for pid in (1, 2, 299, 7 << 32 | 1):
            assert decide(number, 1, pid) == REFUSED, number
        for pid in (0, 300, 301):
            assert decide(number, 1, pid) == RET_ALLOW, number


@pytest.mark.parametrize("user", [0, 1, 1000])
def test_nobody_schedules_all_processes_of_a_user(user: int) -> None:
    assert decide(X86_64.setpriority, 2, user) == REFUSED
    assert decide(X86_64.setpriority, 1 << 32 | 2, user) == REFUSED
    assert decide(X86_64.ioprio_set, 3, user) == REFUSED
    assert decide(X86_64.ioprio_set, 1 << 32 | 3, user) == REFUSED


def test_the_launcher_keeps_the_numbers_that_the_filter_refuses() -> None:
    header = Path(filter_module.__file__).parents[1] / "init/src/common.h"
    (last,) = re.findall(r"^#define LAST_NUMBER (\d+)$", header.read_text(), re.MULTILINE)
    assert decide(302, int(last)) == REFUSED
    assert decide(302, int(last) + 1) == RET_ALLOW
