# SPDX-License-Identifier: Apache-2.0
"""What a hostile program inside tries, one act per test; each is refused and says how."""

from __future__ import annotations

import os
import socket

import pytest

from tests.sandbox.conftest import Box, Shell

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


class TestHostState:
    @pytest.mark.parametrize(
        "path",
        [
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/hostname",
            "/proc/sys/vm/drop_caches",
            "/proc/sysrq-trigger",
            "/proc/irq/default_smp_affinity",
        ],
    )
    def test_kernel_settings_cannot_be_opened_for_writing(self, shell: Shell, path: str) -> None:
        assert shell.probe("write", path) in ("EROFS", "EACCES", "ENOENT")

    @pytest.mark.parametrize("path", ["/proc/keys", "/proc/timer_list", "/proc/key-users"])
    def test_what_tells_about_the_host_is_masked(self, shell: Shell, path: str) -> None:
        assert shell.probe("readbytes", path) in ("0", "ENOENT", "EACCES")

    @pytest.mark.parametrize(
        "path", ["/dev/mem", "/dev/fuse", "/dev/kmsg", "/dev/sda", "/proc/kcore"]
    )
    def test_devices_of_the_host_are_not_there(self, shell: Shell, path: str) -> None:
        assert shell.probe("read", path) in ("ENOENT", "EACCES", "EPERM")

    def test_a_device_node_cannot_be_made(self, shell: Shell) -> None:
        assert shell.probe("mknod") == "EPERM"

    def test_the_host_name_cannot_be_set(self, shell: Shell) -> None:
        assert shell.probe("sethostname") == "EPERM"

    def test_a_raw_socket_cannot_be_opened(self, shell: Shell) -> None:
        assert shell.probe("rawsocket") == "EPERM"


class TestSupervisor:
    @pytest.mark.parametrize("name", ["exe", "mem", "environ", "root/etc", "fd/3", "maps"])
    def test_pid_1_shows_nothing_of_itself(self, shell: Shell, name: str) -> None:
        assert shell.probe("read", f"/proc/1/{name}") in ("EACCES", "EPERM", "ENOENT")

    @pytest.mark.parametrize("name", ["exe", "mem"])
    def test_pid_1_cannot_be_overwritten(self, shell: Shell, name: str) -> None:
        assert shell.probe("write", f"/proc/1/{name}") in ("EACCES", "EPERM", "ETXTBSY")

    def test_pid_1_cannot_be_traced(self, shell: Shell) -> None:
        assert shell.probe("ptrace", "1") == "EPERM"

    def test_no_process_of_the_host_can_be_named(self, shell: Shell) -> None:
        assert shell.probe("kill", str(os.getpid())) == "ESRCH"

    def test_only_processes_of_the_instance_are_seen(self, box: Box) -> None:
        pids = [int(name) for name in box.out("/bin/ls", "/proc").split() if name.isdecimal()]
        assert 1 in pids
        assert len(pids) == 2

    def test_a_program_has_three_descriptors_and_no_more(self, box: Box) -> None:
        assert box.probe("fds") == "0 1 2"


class TestSystemCalls:
    @pytest.mark.parametrize(
        ("number", "name"),
        [
            (428, "open_tree"),
            (429, "move_mount"),
            (430, "fsopen"),
            (431, "fsconfig"),
            (432, "fsmount"),
            (433, "fspick"),
            (442, "mount_setattr"),
            (467, "open_tree_attr"),
            (435, "clone3"),
            (364, "an unassigned number"),
            (1000, "a number of the future"),
            (0x40000027, "x32 getpid"),
        ],
    )
    def test_call_does_not_exist(self, shell: Shell, number: int, name: str) -> None:
        assert shell.probe("syscall", str(number)) == "ENOSYS", name

    @pytest.mark.parametrize(
        ("number", "name"),
        [
            (155, "pivot_root"),
            (248, "add_key"),
            (249, "request_key"),
            (250, "keyctl"),
            (298, "perf_event_open"),
            (304, "open_by_handle_at"),
            (313, "finit_module"),
            (320, "kexec_file_load"),
            (321, "bpf"),
            (323, "userfaultfd"),
            (425, "io_uring_setup"),
            (167, "swapon"),
            (169, "reboot"),
            (363, "MountRootFS after the boot"),
        ],
    )
    def test_call_is_refused(self, shell: Shell, number: int, name: str) -> None:
        assert shell.probe("syscall", str(number)) == "EPERM", name

    @pytest.mark.parametrize("number", [20, 45, 358])
    def test_calls_of_the_32_bit_architecture_do_not_exist(self, shell: Shell, number: int) -> None:
        assert shell.probe("int80", str(number)) == "ENOSYS"

    @pytest.mark.parametrize("request_number", ["0x5412", "0x541c", "0x100005412"])
    def test_nothing_can_be_typed_into_a_terminal(self, shell: Shell, request_number: str) -> None:
        assert shell.probe("ioctl", request_number) == "EPERM"

    @pytest.mark.parametrize("flags", ["0", "0x20000", "0x20020000"])
    def test_a_mount_namespace_cannot_be_joined(self, shell: Shell, flags: str) -> None:
        assert shell.probe("setns", flags) == "EPERM"

    def test_a_listener_of_its_own_is_busy(self, shell: Shell) -> None:
        assert shell.probe("listener") == "EBUSY"


class TestMounts:
    def test_mount_is_refused(self, shell: Shell) -> None:
        # A type of the kernel's own: the kernel process knows none but those it mounts itself.
        assert shell.probe("mount") == "EINVAL"

    def test_mount_from_namespaces_of_its_own_is_refused(self, shell: Shell) -> None:
        assert shell.probe("nested") == "EPERM"

    @pytest.mark.parametrize("target", ["/", "/proc", "/dev", "/proc/sys"])
    def test_our_mounts_cannot_be_taken_off(self, shell: Shell, target: str) -> None:
        assert shell.probe("umount", target) == "EPERM"

    def test_chroot_does_not_lead_out(self, shell: Shell) -> None:
        assert shell.probe("chroot") == "same root"

    def test_every_mount_is_nosuid_and_only_devices_are_not_nodev(self, box: Box) -> None:
        for line in box.out("/bin/cat", "/proc/self/mountinfo").splitlines():
            fields = line.split()
            target, options = fields[4], fields[5].split(",")
            assert "nosuid" in options, line
            if not target.startswith("/dev") and fields[-3] != "devtmpfs":
                assert "nodev" in options, line


class TestPrivileges:
    def status(self, box: Box, field: str) -> str:
        for line in box.out("/bin/cat", "/proc/self/status").splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return value.strip()
        raise AssertionError(field)

    def test_capabilities_are_the_default_set_of_containers(self, box: Box) -> None:
        for field in ("CapPrm", "CapEff", "CapBnd"):
            assert int(self.status(box, field), 16) == 0x800405FB
        for field in ("CapInh", "CapAmb"):
            assert int(self.status(box, field), 16) == 0

    def test_new_privileges_cannot_be_gained(self, box: Box) -> None:
        assert self.status(box, "NoNewPrivs") == "1"

    def test_host_root_is_not_mapped(self, box: Box) -> None:
        for which in ("uid_map", "gid_map"):
            for line in box.out("/bin/cat", f"/proc/self/{which}").splitlines():
                _, outside, count = map(int, line.split())
                assert not outside <= 0 < outside + count

    def test_a_set_id_program_gives_nothing(self, box: Box) -> None:
        if not box.is_root:
            assert box.probe("setuid", "1000") == "EINVAL"  # there is one user only
            return
        copy = "/bin/busybox cp /bin/probe /tmp/p; chmod 4755 /tmp/p"
        assert box.out("/bin/sh", "-c", f"{copy}; /bin/probe as 1000 /tmp/p euid") == "1000"

    def test_abstract_sockets_of_the_host_are_out_of_reach(self, shell: Shell) -> None:
        name = f"serdab-test-{os.urandom(4).hex()}"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("\0" + name)
            listener.listen(1)
            assert shell.probe("abstract", name) == "EPERM"
