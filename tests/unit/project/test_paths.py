# SPDX-License-Identifier: Apache-2.0
"""No path is opened, made or removed by its name where others write, but for what is listed here.

What a program, or the storage, can write is reached through ``linux.dirfd`` and ``linux.outside``.
Every other place that hands a path to the kernel stands in ``ALLOWED``, with the reason. The check
sees calls, not values: one with ``dir_fd`` (or both of a rename) is one through a descriptor.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

PACKAGE: Final = Path(__file__).resolve().parents[3] / "src/serdab"
ROOMS: Final = ("instance", "libos", "trust", "sefs", "pal", "service", "cli")

#: Calls that take a path, and the arguments that make them relative to a descriptor.
_CALLS: Final[dict[str, frozenset[str]]] = {
    **{name: frozenset({"dir_fd"}) for name in (
        "open", "stat", "lstat", "mkdir", "mkfifo", "mknod", "unlink", "remove", "rmdir", "chmod",
        "chown", "readlink", "access", "utime", "symlink",
    )},
    "rename": frozenset({"src_dir_fd", "dst_dir_fd"}),
    "replace": frozenset({"src_dir_fd", "dst_dir_fd"}),
    "link": frozenset({"src_dir_fd", "dst_dir_fd"}),
    **{name: frozenset() for name in (
        "listdir", "scandir", "walk", "makedirs", "removedirs", "truncate", "statvfs", "getxattr",
        "setxattr", "listxattr", "lchown", "chdir", "chroot",
    )},
}  # fmt: skip
_OS_PATH: Final = frozenset(
    {"realpath", "exists", "lexists", "isfile", "isdir", "islink", "ismount", "getsize", "samefile"}
)
_PATH_METHODS: Final = frozenset(
    {"resolve", "exists", "is_file", "is_dir", "is_symlink", "iterdir", "glob", "rglob", "mkdir",
     "rmdir", "touch", "read_bytes", "read_text", "write_bytes", "write_text", "symlink_to",
     "hardlink_to", "lstat", "open", "stat", "unlink", "rename", "replace", "chmod"}
)  # fmt: skip
_SHUTIL: Final = frozenset({"rmtree", "copytree", "copy", "copy2", "copyfile", "move", "chown"})

OWN: Final = "a directory of the user's own, outside of every instance"
PROC: Final = "what the kernel shows, below /proc, /sys or /dev"
OURS: Final = "Serdab's own code"
NAMED: Final = "named by the user; what it leads to is the user's to say"
SOURCE: Final = "a source of a BOM: the author of the BOM says what of the host is copied"
FD: Final = "the argument is a descriptor"
LABEL: Final = "a name for records and messages, nothing is opened by it"
AGAIN: Final = "only refuses once more; what is opened was judged by its descriptors"

#: file, or file:function, by the reason.
ALLOWED: Final[dict[str, str]] = {
    "instance/bomfile.py:_find": NAMED,
    "instance/bomneeds.py": SOURCE,
    "instance/bomplan.py": SOURCE,
    "instance/bomsteps.py:_replace": FD,
    "instance/bomsteps.py:_write": FD,
    "instance/carried.py:own_code": OURS,
    "instance/create.py:_fill": OURS,
    "instance/create.py:shipped_init": OURS,
    "instance/fingerprint.py:record_path": LABEL,
    "instance/hostmount.py:_detach": NAMED,
    "instance/intree.py:exists": SOURCE,
    "instance/intree.py:real": SOURCE,
    "instance/layout.py:package_parts": OURS,
    "instance/loaders.py:_programs": PROC,
    "instance/locks.py:_describe": PROC,
    "instance/locks.py:_find_holder": PROC,
    "instance/machine.py": PROC,
    "instance/movable.py:_like": FD,
    "instance/mountpoint.py": NAMED,
    "instance/ownersfrom.py:owners_of_tree": PROC,
    "instance/ownersfrom.py:owners_of_file": NAMED,
    "instance/publish.py:copy_sealed": FD,
    "instance/reach.py": NAMED,
    "instance/rekeynote.py": OWN,
    "instance/skeleton.py:lay_c_library": SOURCE,
    "instance/trial.py:try_namespaces": FD,
    "libos/begin.py:_fill_standard_streams": PROC,
    "libos/bytecode.py": OWN,
    "libos/caller.py:current_umask": PROC,
    "libos/caller.py:open_descriptors": PROC,
    "libos/callerplace.py:check_program": PROC,
    "libos/early.py:launcher_file": OURS,
    "libos/ground.py:open": PROC,
    "libos/ground.py:real": PROC,
    "libos/idslots.py:take": OWN,
    "libos/jobs.py:_parent_of": PROC,
    "libos/hostfiles.py:load": NAMED,
    "libos/idmaps.py": PROC,
    "libos/intake.py:unreadable": PROC,
    "libos/kernel.py:_raise_read_ahead": PROC,
    "libos/launcher.py:sync": PROC,
    "libos/limits.py": PROC,
    "libos/main.py:main": OWN,
    "libos/mountkeys.py": PROC,
    "libos/mounts.py": PROC,
    "libos/nursery.py:main": OWN,
    "libos/sandbox.py:enter": PROC,
    "libos/signals.py:_controlling_terminal": PROC,
    "libos/streams.py:_is_of_kernel": PROC,
    "libos/streams.py:admit": PROC,
    "libos/worker.py:_is_unlinked": PROC,
    "trust/codetree.py:code_hash": OURS,
    "trust/pins.py": NAMED,
    "trust/platform.py": OWN,
    "trust/records.py": OWN,
    "trust/signers.py": OWN,
    "trust/signing.py": OWN,
    "sefs/hostdir.py:at": NAMED,
    "sefs/hostdir.py:names": FD,
    "sefs/hostplace.py:writable_place": NAMED,
    "sefs/imagewalk.py:_kept_xattrs": PROC,
    "service/background.py:main": OWN,
    "service/log.py": OWN,
    "service/place.py": OWN,
    "service/starter.py": LABEL,
    "pal/booting.py:_private": NAMED,
    "cli/main.py:_open_closed_streams": PROC,
    "cli/main.py:finish": PROC,
    "cli/interrupts.py:end": PROC,
    "cli/messages.py:show": PROC,
    "cli/messages.py:enter": NAMED,
    "cli/mount.py:_mount": LABEL,
    "cli/mount.py:_tell_ready": PROC,
    "cli/named.py:notice_of_bom": NAMED,
    "cli/package.py:main": OURS,
    "cli/unit.py": NAMED,
}


def offences(text: str) -> Iterator[tuple[str, int, str]]:
    """Yield (function, line, call) of each call that hands a path to the kernel by its name."""
    tree = ast.parse(text)
    for function, node in _nodes(tree, ""):
        if isinstance(node, ast.Call) and (what := _offence(node)):
            yield function, node.lineno, what
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "os.path.realpath":
            yield function, node.lineno, "os.path.realpath"  # also where it is only passed on


def _nodes(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        inner = child.name if is_function else function  # type: ignore[attr-defined]
        yield inner, child
        yield from _nodes(child, inner)


def _offence(call: ast.Call) -> str:
    words = ast.unparse(call.func)
    given = {keyword.arg for keyword in call.keywords}
    module, _, name = words.rpartition(".")
    if words == "open":
        # open(descriptor) is how a file object is made of one.
        first = call.args[0] if call.args else None
        of_descriptor = (
            isinstance(first, ast.Call) and not ast.unparse(first.func).startswith("os.path.")
        ) or (isinstance(first, ast.Name) and first.id == "fd")
        return "" if of_descriptor else words
    if module == "os" and name in _CALLS:
        needed = _CALLS[name]
        return "" if needed and needed <= given else words
    if module == "os.path" and name in _OS_PATH - {"realpath"}:
        return words
    if module == "shutil" and name in _SHUTIL:
        return "" if "dir_fd" in given else words
    if name == "replace" and len(call.args) == 2:
        return ""  # of a str: a Path is replaced by one other
    if name in _PATH_METHODS and module not in ("os", "os.path", "re", "shutil"):
        # DirFd has methods of the same names; they are the door.
        return words if _is_path(call) else ""
    return ""


def _is_path(call: ast.Call) -> bool:
    receiver = call.func.value if isinstance(call.func, ast.Attribute) else call.func
    words = ast.unparse(receiver)
    return "Path(" in words or isinstance(receiver, ast.BinOp) or words == "path"


def found() -> Iterator[tuple[str, str, int, str]]:
    for room in ROOMS:
        for path in sorted((PACKAGE / room).rglob("*.py")):
            name = str(path.relative_to(PACKAGE))
            for function, line, what in offences(path.read_text()):
                yield name, function, line, what


def test_paths_go_through_a_descriptor_or_are_listed_with_a_reason() -> None:
    strays = [
        f"{name}:{line} {function}: {what}"
        for name, function, line, what in found()
        if name not in ALLOWED and f"{name}:{function}" not in ALLOWED
    ]
    assert strays == []


def test_nothing_is_listed_that_is_not_there() -> None:
    there = {name for name, *_ in found()} | {f"{name}:{inner}" for name, inner, *_ in found()}
    assert set(ALLOWED) - there == set()


@pytest.mark.parametrize(
    "text",
    [
        "os.path.realpath(p)",
        "list(map(os.path.realpath, paths))",
        "(folder / name).open()",
        "open(os.path.join(a, b))",
        "open(path)",
        "os.open(path, flags)",
        "os.stat(path)",
        "os.rename(a, b, src_dir_fd=fd)",
        "shutil.rmtree(path)",
        "Path(name).exists()",
        "(path / name).read_bytes()",
        "with os.scandir(path) as listing: pass",
    ],
)
def test_a_planted_offence_is_seen(text: str) -> None:
    ((function, line, what),) = offences(f"def planted():\n    {text}\n")
    assert (function, line) == ("planted", 2)
    assert what


@pytest.mark.parametrize(
    "text",
    [
        "os.open(name, flags, dir_fd=fd)",
        "os.rename(a, b, src_dir_fd=fd, dst_dir_fd=fd)",
        "root.exists(name)",
        "open(root.open_file(name), 'rb')",
        "os.path.join(a, b)",
    ],
)
def test_the_door_itself_is_none(text: str) -> None:
    assert list(offences(text)) == []
