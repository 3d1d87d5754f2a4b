# SPDX-License-Identifier: Apache-2.0
"""The three files a program needs from the host to use its network: checked, then shown inside.

Above: ``boot``. They are the host's word and as untrusted as the network; a file that is not what
its name says is skipped with a line for the operator. At most 64 KiB each.
"""

from __future__ import annotations

import _socket
import os
import re
from typing import Final

from serdab.structs import frozen

MAX_BYTES: Final = 64 << 10
PATHS: Final = ("/etc/resolv.conf", "/etc/hosts", "/etc/hostname")

_HOST_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9_.-]{1,253}")
_RESOLVER_WORDS: Final = frozenset({"nameserver", "domain", "search", "sortlist", "options"})


@frozen
class HostFile:
    """A file that passed its check."""

    target: str
    content: bytes


def _check_address(text: str, line: int) -> None:
    family = _socket.AF_INET6 if ":" in text else _socket.AF_INET
    try:
        _socket.inet_pton(family, text.partition("%")[0])
    except OSError:
        raise ValueError(f"line {line}: not an address") from None


def check_resolv_conf(text: str) -> None:
    """Check resolv.conf(5).

    Raises:
        ValueError: with the reason.
    """
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0][0] in "#;":
            continue
        if words[0] not in _RESOLVER_WORDS:
            raise ValueError(f"line {number}: unknown keyword")
        if words[0] == "nameserver":
            if len(words) < 2:
                raise ValueError(f"line {number}: no address")
            _check_address(words[1], number)


def check_hosts(text: str) -> None:
    """Check hosts(5).

    Raises:
        ValueError: with the reason.
    """
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) < 2:
            raise ValueError(f"line {number}: an address without a name")
        _check_address(words[0], number)
        for word in words[1:]:
            if not _HOST_NAME.fullmatch(word):
                raise ValueError(f"line {number}: not a host name")


def check_hostname(text: str) -> None:
    """Check hostname(5): one name, comments aside.

    Raises:
        ValueError: with the reason.
    """
    names = [line.strip() for line in text.splitlines()]
    names = [name for name in names if name and not name.startswith("#")]
    if len(names) != 1 or not _HOST_NAME.fullmatch(names[0]):
        raise ValueError("expected one host name")


_CHECKS: Final = dict(zip(PATHS, (check_resolv_conf, check_hosts, check_hostname), strict=True))


def check(path: str, raw: bytes) -> None:
    """Check the content of one of :data:`PATHS`.

    Raises:
        ValueError: with the reason.
    """
    if len(raw) > MAX_BYTES:
        raise ValueError(f"longer than {MAX_BYTES} bytes")
    if b"\0" in raw:
        raise ValueError("holds a NUL byte")
    _CHECKS[path](raw.decode("utf-8"))


def load() -> tuple[list[HostFile], list[str]]:
    """Return the host's files that pass, and a line for each that does not."""
    files: list[HostFile] = []
    lines: list[str] = []
    for path in PATHS:
        try:
            with open(path, "rb", buffering=0) as file:
                raw = file.read(MAX_BYTES + 1) or b""
            check(path, raw)
        except FileNotFoundError:
            continue
        except OSError as exc:
            lines.append(f"host file skipped: {path}: {os.strerror(exc.errno or 0)}")
        except ValueError as exc:
            lines.append(f"host file skipped: {path}: {exc}")
        else:
            files.append(HostFile(path, raw))
    return files, lines
