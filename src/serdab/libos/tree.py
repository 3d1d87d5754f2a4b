# SPDX-License-Identifier: Apache-2.0
"""Which mounts an instance has, as a list of steps for the launcher. Pure.

Above: ``sandbox``. The launcher (``init/src/steps.c``) only carries out; what is mounted where,
with which attributes, is decided here and can be read and tested here.

Security:
    1. Everything is nosuid; nodev but for the six devices, which are bound from the host.
    2. What containers mask or make read-only in /proc is masked or read-only here too.
    3. The root is attached, filled, and only then made the root of everyone; a step that fails
       before leaves the old root in place.
"""

from __future__ import annotations

import os
import struct
from enum import IntEnum
from typing import Final

from serdab.fuse.abi import ROOT_ALIAS
from serdab.libos.shares import tmpfs_options
from serdab.structs import frozen

FUSE_OPTIONS: Final = (
    "source=serdab,subtype=serdab,rootmode=40000,user_id=0,group_id=0"
    ",allow_other,default_permissions"
)
_STEP: Final = struct.Struct("<BBBBIQHHI")

RDONLY: Final = 1
NOSUID: Final = 2
NODEV: Final = 4
NOEXEC: Final = 8

_OPTIONAL: Final = 1
_EXIST_OK: Final = 2
_OWN_ROOT: Final = 255
_NO_FILE: Final = (1 << 64) - 1

# Registers of the launcher.
_ROOT: Final = 0
_PROC: Final = 1
_DEV: Final = 2
_SCRATCH: Final = 3
_FILES: Final = 4

_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_DEV_LINKS: Final = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("arandom", "urandom"),  # Occlum has it, and a BSD program that was ported may ask for it
)
_PROC_READ_ONLY: Final = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_PROC_MASKED_FILES: Final = (
    "interrupts",
    "kcore",
    "keys",
    "key-users",
    "latency_stats",
    "sched_debug",
    "timer_list",
    "timer_stats",
)
_PROC_MASKED_DIRS: Final = ("acpi", "asound", "scsi")


class _Op(IntEnum):
    FUSE = 1
    NEW = 2
    CLONE = 3
    ATTACH = 4
    MKDIR = 5
    SYMLINK = 6
    FILE = 7
    CLOSE = 8
    PIVOT = 9
    HOSTNAME = 10
    SETATTR = 11


@frozen
class HostDirectory:
    """A host directory shown inside, by the fs server whose descriptor has that index."""

    target: str
    fuse: int
    read_only: bool = False


@frozen
class Memory:
    """A file system in memory (``ramfs`` in the configuration)."""

    target: str
    size_bytes: int | None = None


@frozen
class TextFile:
    """A file bound over one of the image's; the content is the descriptor of that number."""

    target: str
    number: int


@frozen
class Tree:
    """Everything that one stage sees. ``root_fuse`` is the index of the root's descriptor."""

    root_fuse: int
    read_only: bool = False
    has_id_range: bool = True
    host_directories: tuple[HostDirectory, ...] = ()
    memory: tuple[Memory, ...] = ()
    shm_bytes: int | None = None
    files: tuple[TextFile, ...] = ()
    terminal: str | None = None
    hostname: str = ""


@frozen
class Plan:
    """The steps as the launcher reads them, and what each is for, for messages."""

    raw: bytes
    words: tuple[str, ...]


class _Builder:
    def __init__(self) -> None:
        self.raw = bytearray()
        self.words: list[str] = []

    def step(
        self,
        op: _Op,
        words: str,
        *,
        dst: int = 0,
        src: int = 0,
        flags: int = 0,
        value: int = 0,
        attr: int = 0,
        a: str = "",
        b: str = "",
    ) -> None:
        first = a.encode("utf-8", "surrogateescape") + b"\0" if a else b""
        second = b.encode("utf-8", "surrogateescape") + b"\0" if b else b""
        total = _STEP.size + len(first) + len(second)
        padding = -total % 8
        self.raw += _STEP.pack(
            op, dst, src, flags, value, attr, len(first), len(second), total + padding
        )
        self.raw += first + second + bytes(padding)
        self.words.append(words)

    def fuse(self, register: int, index: int, attr: int) -> None:
        self.step(_Op.FUSE, "a FUSE mount", dst=register, value=index, attr=attr, a=FUSE_OPTIONS)

    def new(self, register: int, fstype: str, options: str, attr: int) -> None:
        self.step(_Op.NEW, f"a new {fstype}", dst=register, attr=attr, a=fstype, b=options)

    def clone(
        self,
        register: int,
        src: int,
        path: str,
        attr: int,
        *,
        flags: int = 0,
    ) -> None:
        self.step(
            _Op.CLONE,
            f"taking {path}",
            dst=register,
            src=src,
            attr=attr,
            a=path,
            flags=flags,
        )

    def attach(self, register: int, where: int, path: str) -> None:
        self.step(_Op.ATTACH, f"mounting {path}", src=register, dst=where, a=path)
        self.step(_Op.CLOSE, f"after {path}", src=register)


def plan(tree: Tree) -> Plan:
    """Return the steps that build ``tree`` and make it the root."""
    b = _Builder()
    read_only = RDONLY if tree.read_only else 0
    # Not the root of that mount, but what its server shows there under a name that it gives once:
    # see ROOT_ALIAS. Only of what is mounted somewhere a part can be taken. That mount must not lie
    # over /: pivot_root(2) would leave it, and the old root below it. It goes with the old root.
    b.fuse(_SCRATCH, tree.root_fuse, NOSUID | NODEV | read_only)
    b.step(_Op.ATTACH, "attaching the file system", src=_SCRATCH, dst=_OWN_ROOT, a="/proc")
    b.clone(_ROOT, _SCRATCH, os.fsdecode(ROOT_ALIAS), NOSUID | NODEV | read_only)
    b.step(_Op.CLOSE, "after the file system", src=_SCRATCH)
    b.step(_Op.ATTACH, "attaching the root", src=_ROOT, dst=_OWN_ROOT, a="/")
    _proc(b)
    _dev(b, tree)
    for memory in tree.memory:
        _memory(b, memory)
    for directory in tree.host_directories:
        _host_directory(b, directory)
    if tree.hostname:
        b.step(_Op.HOSTNAME, "setting the host name", a=tree.hostname)
    b.step(_Op.PIVOT, "switching to the new root", src=_ROOT)
    return Plan(bytes(b.raw), tuple(b.words))


def _mount_point(b: _Builder, path: str) -> None:
    """Make a missing mount point. A built image has them all; one made by hand may not."""
    b.step(_Op.MKDIR, f"making {path}", src=_ROOT, value=0o755, a=path.lstrip("/"), flags=_EXIST_OK)


def _proc(b: _Builder) -> None:
    _mount_point(b, "/proc")
    b.new(_PROC, "proc", "", NOSUID | NODEV | NOEXEC)
    b.step(_Op.ATTACH, "mounting /proc", src=_PROC, dst=_ROOT, a="proc")
    for name in _PROC_READ_ONLY:
        b.clone(_SCRATCH, _PROC, name, RDONLY | NOSUID | NODEV | NOEXEC, flags=_OPTIONAL)
        _cover(b, name)
    for name in _PROC_MASKED_FILES:
        b.clone(_SCRATCH, _OWN_ROOT, "/dev/null", RDONLY | NOSUID | NOEXEC)
        _cover(b, name)
    for name in _PROC_MASKED_DIRS:
        b.new(_SCRATCH, "tmpfs", "mode=555,size=4k", RDONLY | NOSUID | NODEV | NOEXEC)
        _cover(b, name)
    b.step(_Op.CLOSE, "after /proc", src=_PROC)


def _cover(b: _Builder, name: str) -> None:
    """Attach what the scratch register holds over a part of /proc that this kernel may lack."""
    b.step(_Op.ATTACH, f"covering /proc/{name}", src=_SCRATCH, dst=_PROC, a=name, flags=_OPTIONAL)
    b.step(_Op.CLOSE, f"after /proc/{name}", src=_SCRATCH)


def _dev(b: _Builder, tree: Tree) -> None:
    _mount_point(b, "/dev")
    b.new(_DEV, "tmpfs", "mode=755,size=64k,nr_inodes=64", NOSUID | NOEXEC)
    b.step(_Op.ATTACH, "mounting /dev", src=_DEV, dst=_ROOT, a="dev")
    for name in _DEVICES:
        b.step(_Op.FILE, f"making /dev/{name}", src=_DEV, value=0o666, attr=_NO_FILE, a=name)
        b.clone(_SCRATCH, _OWN_ROOT, f"/dev/{name}", NOSUID | NOEXEC)
        b.attach(_SCRATCH, _DEV, name)
    if tree.terminal:
        # ttyname(3) looks below /dev for the terminal that a program was started on.
        b.step(_Op.FILE, "making /dev/console", src=_DEV, value=0o600, attr=_NO_FILE, a="console")
        b.clone(_SCRATCH, _OWN_ROOT, tree.terminal, NOSUID | NOEXEC, flags=_OPTIONAL)
        b.step(
            _Op.ATTACH,
            "mounting /dev/console",
            src=_SCRATCH,
            dst=_DEV,
            a="console",
            flags=_OPTIONAL,
        )
        b.step(_Op.CLOSE, "after /dev/console", src=_SCRATCH)
    for name, target in _DEV_LINKS:
        b.step(_Op.SYMLINK, f"making /dev/{name}", src=_DEV, a=name, b=target)
    for name in ("pts", "shm"):
        b.step(_Op.MKDIR, f"making /dev/{name}", src=_DEV, value=0o755, a=name)
    # Group 5 owns terminals by convention; with one mapped id there is no group 5.
    group = ",gid=5" if tree.has_id_range else ""
    b.new(_SCRATCH, "devpts", f"ptmxmode=0666,mode=0620{group}", NOSUID | NOEXEC)
    b.attach(_SCRATCH, _DEV, "pts")
    _files(b, tree.files)
    b.new(_SCRATCH, "tmpfs", "mode=1777" + tmpfs_options(tree.shm_bytes), NOSUID | NODEV | NOEXEC)
    b.attach(_SCRATCH, _DEV, "shm")
    b.step(_Op.CLOSE, "after /dev", src=_DEV)


def _memory(b: _Builder, memory: Memory) -> None:
    _mount_point(b, memory.target)
    b.new(_SCRATCH, "tmpfs", "mode=1777" + tmpfs_options(memory.size_bytes), NOSUID | NODEV)
    b.attach(_SCRATCH, _ROOT, memory.target.lstrip("/"))


def _host_directory(b: _Builder, directory: HostDirectory) -> None:
    target = directory.target.lstrip("/")
    _mount_point(b, directory.target)
    read_only = RDONLY if directory.read_only else 0
    b.fuse(_SCRATCH, directory.fuse, NOSUID | NODEV | read_only)
    b.attach(_SCRATCH, _ROOT, target)


def _files(b: _Builder, files: tuple[TextFile, ...]) -> None:
    """Bind small files over the image's, so that the volume under them stays clean.

    A file can only be cloned from a mount that is attached, so their tmpfs lies at /dev/shm, where
    the real one is mounted over it at once; nothing inside can take that off again.
    """
    if not files:
        return
    b.new(_FILES, "tmpfs", "mode=755,size=256k,nr_inodes=16", NOSUID | NODEV | NOEXEC)
    b.step(_Op.ATTACH, "a place for files", src=_FILES, dst=_DEV, a="shm")
    for file in files:
        name = f"file{file.number}"
        b.step(
            _Op.FILE, f"writing {file.target}", src=_FILES, value=0o644, attr=file.number, a=name
        )
        b.clone(_SCRATCH, _FILES, name, NOSUID | NODEV | NOEXEC)
        b.step(
            _Op.ATTACH,
            f"mounting {file.target}",
            src=_SCRATCH,
            dst=_ROOT,
            a=file.target.lstrip("/"),
            flags=_OPTIONAL,
        )
        b.step(_Op.CLOSE, f"after {file.target}", src=_SCRATCH)
    b.step(_Op.CLOSE, "after the files", src=_FILES)
