# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs share, and what is read of them.

Above: one module per verb. ``verbparser`` has argparse, which is not to be imported here: this
is on the way of every boot (``plainwords``).
"""

from __future__ import annotations

import os
import stat

from serdab.cli.messages import Context
from serdab.cli.plainwords import REMAINDER
from serdab.errors import UsageError
from serdab.keys import KEY_BYTES, Key

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Final

    from serdab.libos.request import Freshness
    from serdab.trust.signing import Signer

_KEY_FILE_BYTES: Final = 4096
_KINDS_OF_CONTENT: Final = ("something else", "32 hexadecimal digits without hyphens")
_HYPHENS: Final = "put a hyphen between the bytes: `sed 's/../&-/g; s/-$//' FILE` prints it so"
_OCCLUM_OPTIONS: Final = {
    "--sgx-mode": "the platform is chosen by SERDAB_PLATFORM",
    "--enable-edmm": "memory is always dynamic",
    "--config-id": "the measured configuration is part of mrenclave",
    "--config-svn": "metadata.version_number is part of mrenclave",
    "--init-ra": "the init in initfs/ decides what init does",
}


def add_signing(parser: argparse.ArgumentParser) -> None:
    """Add --sign-key and --sign-tool."""
    parser.add_argument(
        "--sign-key",
        metavar="PEM",
        help="RSA-3072 key that signs; without it a development key of this user is made",
    )
    parser.add_argument(
        "--sign-tool",
        metavar="EXE",
        help="run as EXE sign -key PEM, message on stdin, raw signature on stdout",
    )


def signer_of(args: argparse.Namespace) -> Signer | None:
    """Return the signer that :func:`add_signing` read; None: no key was given, and none was made.

    Raises:
        UsageError: a tool without a key, or as ``load_signer`` says.
    """
    from serdab.linux.process import hide_memory
    from serdab.trust.signing import existing_development_signer, load_signer

    hide_memory()
    if args.sign_key is not None:
        return load_signer(args.sign_key, args.sign_tool)
    if args.sign_tool is not None:
        raise UsageError(
            "--sign-tool without a key",
            expected="--sign-key PEM as well",
            found="no key",
            hint="the file may hold the public key alone",
        )
    return existing_development_signer()


def add_boot(parser: argparse.ArgumentParser) -> None:
    """Add what says which instance is to be booted, and with what."""
    parser.add_argument(
        "--image-key", metavar="FILE", help="hand this key to init; - reads standard input"
    )
    parser.add_argument("--expect-signer", metavar="HEX", help="the signer (mrsigner) to require")
    parser.add_argument("--expect-root", metavar="HEX", help="the root FS (root-mac) to require")
    parser.add_argument(
        "--previous",
        action="store_true",
        help="boot the image that the writable layer belongs to, not the one built since",
    )
    parser.add_argument(
        "--cpus", metavar="N", help="run on N processors only, of those that we may run on"
    )
    add_freshness(parser)
    add_occlum(parser, "--config-id", "--config-svn")


def take_cpus(args: argparse.Namespace) -> None:
    """Confine this process, and all that it starts from here on, to as many processors as asked.

    Raises:
        UsageError: that is no number, or there are fewer.
    """
    if args.cpus is None:
        return
    ours = sorted(os.sched_getaffinity(0))
    text = args.cpus
    count = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
    if not 1 <= count <= len(ours):
        raise UsageError(
            "not a number of processors",
            subject="--cpus",
            expected=f"1 to {len(ours)}, the processors that we may run on (sched_setaffinity(2))",
            found=text,
            hint="without the option all of them are used",
        )
    os.sched_setaffinity(0, ours[:count])


def add_freshness(parser: argparse.ArgumentParser) -> None:
    """Add what says which state of the writable layer is wanted."""
    parser.add_argument(
        "--expect-upper", metavar="HEX", help="the MAC that the writable layer must have"
    )
    parser.add_argument(
        "--pin-file", metavar="FILE", help="remember in FILE, too, how far the writable layer came"
    )
    parser.add_argument(
        "--pin-command", metavar="CMD", help="and with CMD get UUID, CMD put UUID POSITION"
    )
    parser.add_argument(
        "--accept-rollback",
        action="store_true",
        help="accept a writable layer, or a build, that is not the newest known one: a backup",
    )


def freshness_of(args: argparse.Namespace) -> Freshness:
    """Return what :func:`add_freshness` read."""
    from serdab.libos.request import Freshness

    return Freshness(
        accept_rollback=args.accept_rollback,
        pin_file=args.pin_file,
        pin_command=args.pin_command,
        expect_upper=args.expect_upper,
    )


def add_program(parser: argparse.ArgumentParser) -> None:
    """Add the program and its arguments, which take the rest of the command line."""
    parser.usage = f"{parser.prog} [OPTION ...] PROGRAM [ARG ...]"
    parser.add_argument(
        "command",
        nargs=REMAINDER,
        metavar="PROGRAM [ARG ...]",
        help="its absolute path inside, below an entry point, and its arguments",
    )


def program_of(args: argparse.Namespace, usage: str) -> list[str]:
    """Return the program and its arguments, the rest of the command line.

    Raises:
        UsageError: there is none.
    """
    command: list[str] = args.command
    if command[:1] == ["--"]:
        del command[0]
    if not command:
        raise UsageError(
            f"{usage.partition(' ')[0]}: no program",
            expected="the absolute path of a program inside",
            found="nothing",
            hint=f"usage: serdab {usage} PROGRAM [ARG ...]",
        )
    return command


def add_occlum(parser: argparse.ArgumentParser, *options: str) -> None:
    """Add options that scripts written for Occlum pass and that change nothing here."""
    for option in options:
        help_text = f"accepted for Occlum's scripts: {_OCCLUM_OPTIONS[option]}"
        parser.add_argument(option, metavar="VALUE", help=help_text)


def say_occlum(args: argparse.Namespace, context: Context) -> None:
    """Say of each such option that was given what it means here."""
    for option, why in _OCCLUM_OPTIONS.items():
        name = option.removeprefix("--").replace("-", "_")
        if getattr(args, name, None) is not None:
            context.say(f"{option}: accepted, changes nothing here: {why}")


def _read_line() -> bytes:
    """Return one line of standard input and leave the rest to the program that will run."""
    out = bytearray()
    while len(out) < _KEY_FILE_BYTES:
        character = os.read(0, 1)
        if character in (b"", b"\n"):
            break
        out += character
    return bytes(out)


def _is_plain_hex(raw: bytes) -> bool:
    """Return whether it is a key as other programs write it, without hyphens."""
    text = raw.strip()
    return len(text) == 2 * KEY_BYTES and all(byte in b"0123456789abcdefABCDEF" for byte in text)


def read_key(path: str, say: Callable[[str], None]) -> Key:
    """Return the key in the file at ``path``; ``-`` is the next line of standard input.

    ``say`` gets a line if others can read it, too.

    Raises:
        UsageError: it cannot be read or holds no key. The message never holds the content.
    """
    from serdab.linux.process import hide_memory

    hide_memory()  # before there is something to hide; our child processes do so themselves
    try:
        if path == "-":
            raw = _read_line()
        else:
            from serdab.linux.outside import Walk

            with open(Walk().file(path), "rb") as file:
                raw = file.read(_KEY_FILE_BYTES)
                if os.fstat(file.fileno()).st_mode & stat.S_IROTH:
                    say(f"warning: every user can read the key file {path}: `chmod 600 {path}`")
    except OSError as exc:
        raise UsageError(
            "the image key cannot be read",
            subject=path,
            expected="a file with a key",
            found=os.strerror(exc.errno or 0),
            hint="`serdab gen-image-key FILE` makes one"
            if isinstance(exc, FileNotFoundError)
            else "",
        ) from exc
    try:
        return Key.parse(raw.decode("ascii", "replace"))
    except UsageError as exc:
        raise UsageError(
            exc.message,
            subject="standard input" if path == "-" else path,
            expected=exc.expected,
            found=_KINDS_OF_CONTENT[_is_plain_hex(raw)],
            hint=_HYPHENS if _is_plain_hex(raw) else exc.hint,
        ) from None
