# SPDX-License-Identifier: Apache-2.0
"""The text of a systemd unit for an instance. Pure.

Above: ``cli.unit``. systemd.service(5), systemd.exec(5), systemd.syntax(7).

Security: the image key reaches the service as a credential (``LoadCredential=``): a file that only
the service sees, in memory. It is in no argument and in no environment variable.

What systemd could restrict and this unit must not: namespaces, /dev/fuse, mounts, the cgroup tree,
the host name (set inside only), and anything mounted over a part of /proc, since the kernel then
refuses a new proc in the sandbox's user namespace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from serdab.errors import UsageError
from serdab.structs import frozen

_STOP_S: Final = 10
_CREDENTIAL: Final = "image-key"


@frozen
class Unit:
    """What the unit is for. ``command`` is Serdab, absolute; paths are absolute.

    ``is_user``: for the user's own manager, else for the system's, run by root.
    """

    instance: str
    command: Sequence[str]
    image_key: str | None
    is_user: bool
    environment: Mapping[str, str]


def text_of(unit: Unit) -> str:
    """Return the unit file.

    Raises:
        UsageError: a path cannot be written in one.
    """
    serdab = " ".join(_quoted(word) for word in (*unit.command, "-C", unit.instance))
    key = ""
    if unit.image_key is not None:
        # Not a variable of ours: systemd says where it put the credential.
        key = f' --image-key "${{CREDENTIALS_DIRECTORY}}/{_CREDENTIAL}"'
    lines = [
        "[Unit]",
        f"Description=Serdab instance {_plain(unit.instance)}",
        f"RequiresMountsFor={_quoted(unit.instance, variables=False)}",
        "",
        "[Service]",
        "Type=notify",
        f"ExecStart={serdab} start --foreground{key}",
        f"ExecStop={serdab} stop -t {_STOP_S}",
        "# Only the service itself is asked to end; it ends the programs, and closes the volumes.",
        "KillMode=mixed",
        "TimeoutStartSec=120",
        "TimeoutStopSec=300",
        "Restart=no",
    ]
    if unit.image_key is not None:
        lines.append(f"LoadCredential={_CREDENTIAL}:{_plain(unit.image_key)}")
    lines += [
        f"Environment={_quoted(f'{name}={value}', variables=False)}"
        for name, value in sorted(unit.environment.items())
    ]
    if not unit.is_user:
        # An ordinary user's newuidmap(1) is set-id, which this would undo.
        lines += ["NoNewPrivileges=yes", "ProtectKernelModules=yes"]
    lines += [
        "RestrictRealtime=yes",
        "",
        "[Install]",
        f"WantedBy={'default.target' if unit.is_user else 'multi-user.target'}",
        "",
    ]
    return "\n".join(lines)


def _plain(text: str) -> str:
    if not text.isprintable():
        raise UsageError(
            "a path cannot be written into a unit",
            stage="unit",
            subject=repr(text),
            expected="printable characters",
            found="others",
            hint="move the instance, or link to it",
        )
    return text.replace("%", "%%")


def _quoted(word: str, *, variables: bool = True) -> str:
    """Return a word as systemd.syntax(7) reads it; ``variables``: ``$`` would be expanded here."""
    out = _plain(word).replace("\\", "\\\\").replace('"', '\\"')
    if variables:
        out = out.replace("$", "$$")
    return f'"{out}"'
