# SPDX-License-Identifier: Apache-2.0
"""Lays the C library of this machine into a new image, as Occlum's skeleton has one.

Scripts written for Occlum put a program into ``image/bin`` and run it: no BOM names its loader. So
``new`` and ``init`` under the name ``occlum`` lay what programs of this machine start with, glibc's
and, where it is installed, musl's. Where its loader looks for it: elsewhere it is not found.

Above: ``cli`` (new, init). Below: ``bomneeds``, ``bomsteps``, ``elf``.
"""

from __future__ import annotations

import os
from typing import Final

from serdab.instance.bomneeds import Needs
from serdab.instance.bomplan import Plan
from serdab.instance.bomsteps import Steps
from serdab.instance.elf import Program, read_program
from serdab.instance.intree import Tree
from serdab.linux.dirfd import DirFd
from serdab.structs import replace

# What glibc consists of, with what it loads by itself (nsswitch.conf(5), pthread_cancel(3)), and
# the libraries of the compiler. What a version lacks is passed over.
_LIBRARIES: Final = (
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libresolv.so.2",
    "libutil.so.1",
    "libnss_files.so.2",
    "libnss_dns.so.2",
    "libgcc_s.so.1",
    "libstdc++.so.6",
)
_FILES: Final = ("/etc/nsswitch.conf",)
_SHELL: Final = "/bin/sh"  # the one program that every machine has, linked as its others are


def lay_c_library(image: DirFd) -> None:
    """Copy this machine's loaders and C libraries into a tree, and what they read.

    Raises:
        OSError: something cannot be read or written.
    """
    plan, tree = Plan(), Tree(image)
    shell = read_program(os.path.realpath(_SHELL))
    if isinstance(shell, Program) and shell.interpreter and not shell.is_musl:
        needs = Needs(plan, tree, say=_nothing)
        needs.add_present(replace(shell, needed=_LIBRARIES, rpath=(), runpath=()))
    for path in (f"/lib/ld-musl-{os.uname().machine}.so.1", *_FILES):
        if os.path.isfile(path):
            plan.libraries.setdefault(path, path)
    Steps(tree, None, "", None).do_libraries(plan)


def _nothing(_line: str) -> None:
    """Say nothing: what this machine lacks, its programs do not need either."""
