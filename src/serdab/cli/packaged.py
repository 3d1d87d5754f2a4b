# SPDX-License-Identifier: Apache-2.0
"""Where a packaged instance starts: the launcher of the package runs this file as a script.

It checks that this interpreter is of the kind that the package was made for, puts the package's
code on the import path, and becomes the command line, with the instance of the package as default.

Written for every Python from 3.6 on, so that a wrong one gets a message: no ``annotations`` from
``__future__``, no syntax and no module of ours before the check.

Security: byte code is read and written below the user's cache directory only, in a place that the
digest of the code names. Beside the code it could be other than the code that is hashed.
"""

import _imp
import os
import sys


def _glibc() -> "list[int]":
    text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    return [int(part) for part in text.split()[-1].split(".")[:2]]


def _misfit(suffix: str, glibc: str) -> "tuple[str, str, str] | None":
    """Return (what, expected, found) of the first thing that does not fit."""
    found = _imp.extension_suffixes()[0]
    if found != suffix:
        return f"interpreter {sys.executable}", _words(suffix), _words(found)
    if _glibc() < [int(part) for part in glibc.split(".")]:
        return "C library", f"glibc {glibc} or newer", "glibc {}.{}".format(*_glibc())
    return None


def _words(suffix: str) -> str:
    """Turn ``.cpython-311-x86_64-linux-gnu.so`` into words."""
    parts = suffix.split(".")[1].split("-", 2)
    if len(parts) != 3:
        return suffix
    name, version, machine = parts
    return f"{name} {version[:1]}.{version[1:]} on {machine}"


def _refuse(misfit: "tuple[str, str, str]", words: "list[str]") -> int:
    import json

    subject, expected, found = misfit
    hint = "install the one that is expected, or name one in SERDAB_PYTHON"
    fields = {
        "error": "environment",
        "exit_code": 6,
        "message": "this package does not run on this Python",
        "stage": "package",
        "subject": subject,
        "expected": expected,
        "found": found,
        "hint": hint,
    }
    as_json, starts_program = _look_at(words)
    stream = sys.stderr if starts_program or not as_json else sys.stdout
    if as_json:
        stream.write(json.dumps(fields, sort_keys=True) + "\n")
    else:
        stream.write(
            "serdab: error: package: {message}: {subject} (expected {expected}, found {found})\n"
            "hint: {hint}\n".format(**fields)
        )
    return 125 if starts_program else 6


def _look_at(words: "list[str]") -> "tuple[bool, bool]":
    """Return whether --json was given, and whether the verb starts a program."""
    as_json, verb = False, ""
    rest = iter(words)
    for word in rest:
        if word in ("-C", "--instance", "--log-level"):
            next(rest, None)
        elif word == "--json":
            as_json = True
        elif not word.startswith("-"):
            if verb in ("run", "exec"):
                break  # the program, or the value of an option: what follows may be the program's
            verb = verb or word
    return as_json, verb in ("run", "exec")


def _keep_byte_code_away() -> None:
    # First of what the next imports need, the modules that are not ours: they have byte code.
    for name in ("functools", "hashlib", "typing"):
        __import__(name)

    sys.dont_write_bytecode = True
    sys.pycache_prefix = os.devnull
    from serdab.errors import Error
    from serdab.libos.bytecode import byte_code_cache, has_room

    try:
        cache = byte_code_cache()
        is_kept = has_room(cache)
    except (Error, OSError):
        return  # slower, but `doctor` works; a verb that needs the directory says what is wrong
    sys.pycache_prefix = cache
    sys.dont_write_bytecode = not is_kept


def main() -> int:
    """Check, prepare, run the command line."""
    suffix, glibc = sys.argv[1:3]
    top = os.path.abspath(sys.argv[3])
    words = sys.argv[4:]
    misfit = _misfit(suffix, glibc)
    if misfit is not None:
        return _refuse(misfit, words)
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, os.path.dirname(os.path.dirname(here)))
    _keep_byte_code_away()
    from serdab.cli import door, interrupts

    door.enter()
    from serdab.cli import main as command_line

    own = os.path.join(top, "serdab")
    interrupts.end(command_line.main([own, *words], instance=os.path.join(top, "instance")))


if __name__ == "__main__":
    sys.exit(main())
