# SPDX-License-Identifier: Apache-2.0
"""The text of the launcher of a package: a shell script that finds a Python that fits.

Above: ``package``. What it starts is ``cli.packaged``, which checks the interpreter it got.

Security: neither is more to be trusted than the place the package lies in; the detached signature
covers both. It runs the interpreter isolated (``-I -S``: no environment, no user directory, no
``.pth``), so that nothing but the package and the interpreter's own library is imported.
"""

from __future__ import annotations

from typing import Final

from serdab.structs import frozen

_TEXT: Final = """\
#!/bin/sh
# Runs the packaged instance beside this file. SERDAB_PYTHON names the interpreter to use; without
# it that is a Python @VERSION@ on the PATH or in the usual places.
case $0 in
*/*) self=$0 ;;
*) self=$(command -v -- "$0") ;;
esac
if [ -L "$self" ]; then self=$(readlink -f -- "$self"); fi
top=${self%/*}
start() {
    found=$(command -v "$1") || return 0
    # A version switcher has a name for every version it knows, also for those that are not active.
    case $found in */shims/*) "$1" -c '' 2>/dev/null || return 0 ;; esac
    shift
    # It holds Ctrl-C back while the interpreter starts. Not where nothing here may be executed.
    if [ -x "$top/@DOOR@" ]; then exec "$top/@DOOR@" "$found" "$@"; fi
    exec "$found" "$@"
}
run() {
    python=$1
    shift
    start "$python" -I -S "$top/@ENTRY@" @SUFFIX@ @GLIBC@ "$top" "$@"
}
if [ -n "${SERDAB_PYTHON:-}" ]; then
    run "$SERDAB_PYTHON" "$@"
else
    for name in python@VERSION@ /usr/local/bin/python@VERSION@ /usr/bin/python@VERSION@ python3
    do
        run "$name" "$@"
    done
fi
# Nothing was found. As everywhere: 6, or 125 for a verb that starts a program.
code=6 json= skip= verb=
for word do
    if [ -n "$skip" ]; then
        skip=
        continue
    fi
    case $word in
    -C | --instance | --log-level) skip=yes ;;
    --json) json=yes ;;
    -*) ;;
    *)
        if [ $code = 125 ]; then break; fi
        case $verb$word in run | exec) code=125 ;; esac
        verb=$verb$word
        ;;
    esac
done
hint='install Python @VERSION@, or name one in SERDAB_PYTHON'
if [ -n "${SERDAB_PYTHON:-}" ]; then hint='SERDAB_PYTHON names no program: mend it, or unset it'; fi
if [ -n "$json" ]; then
    message='{"error": "environment", "exit_code": 6, "expected": "Python @VERSION@"'
    message=$message', "found": "none", "hint": "'$hint'", "message": "no Python that fits"'
    message=$message', "stage": "package", "subject": "python@VERSION@"}'
    if [ $code = 125 ]; then printf '%s\\n' "$message" >&2; else printf '%s\\n' "$message"; fi
else
    echo 'serdab: error: package: no Python that fits (expected Python @VERSION@, found none)' >&2
    echo "hint: $hint" >&2
fi
exit $code
"""


@frozen
class Runtime:
    """The interpreters that a package runs on.

    ``suffix`` is that of extension modules (PEP 3149): it stands for implementation, version,
    threading, machine and kind of C library at once.
    """

    version: str
    suffix: str
    glibc: str


def launcher(runtime: Runtime, entry: str, door: str) -> bytes:
    """Return the launcher; the paths of ``packaged.py`` and ``door`` are below the top folder."""
    text = _TEXT
    for name, value in (
        ("VERSION", runtime.version),
        ("SUFFIX", runtime.suffix),
        ("GLIBC", runtime.glibc),
        ("ENTRY", entry),
        ("DOOR", door),
    ):
        text = text.replace(f"@{name}@", value)
    return text.encode("ascii")
