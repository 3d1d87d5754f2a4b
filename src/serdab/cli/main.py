# SPDX-License-Identifier: Apache-2.0
"""The entry point: options before the verb, the verb itself, and what becomes of its errors.

The start is on the way of every boot, so nothing is imported that the verb does not need, and
``--version`` imports nothing at all. Above: the console script. Below: one module per verb with
``SUMMARY``, ``configure(parser)`` and ``main(args, context) -> exit code``.
"""

from __future__ import annotations

import os
import sys

from serdab.cli import interrupts
from serdab.version import VERSION

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from serdab.cli.messages import Context
    from serdab.errors import Error

# verb: (module below serdab.cli, does it start a program of the instance?)
VERBS = {
    "new": ("new", False),
    "init": ("init", False),
    "copy-bom": ("copy_bom", False),
    "build": ("build", False),
    "run": ("run", True),
    "start": ("start", False),
    "exec": ("exec_", True),
    "stop": ("stop", False),
    "status": ("status", False),
    "unit": ("unit", False),
    "mount": ("mount", False),
    "gen-image-key": ("gen_image_key", False),
    "print": ("print_", False),
    "package": ("package", False),
    "fsck": ("fsck", False),
    "reset": ("reset", False),
    "rebind": ("rebind", False),
    "rekey": ("rekey", False),
    "doctor": ("doctor", False),
}
# Without the libraries and the sources that the others want (docs/package.md).
_PACKAGED = frozenset(VERBS) - {"new", "init", "copy-bom", "build", "package"}

# On the way of every program that starts: their options are such that they can do without argparse.
_PLAIN_VERBS = frozenset({"run", "start", "exec"})

_GLOBALS_HELP = """
options, before the verb or after it:
  -C, --instance DIR  the instance; by default the current directory
  --log-level LEVEL   what the instance logs: off, error, warning, info, debug
  --json              results and errors as JSON, one object a line
  -q, --quiet         no output but results and errors
  -v, --verbose       all that is logged, and where an error comes from
  --version           the version

`serdab VERB --help` shows the options of a verb."""


def main(argv: list[str] | None = None, *, instance: str = ".") -> int:
    """Run the command line and return its exit code; ``instance`` is the one without ``-C``."""
    _import_nothing_from_here()
    _open_closed_streams()
    words = list(sys.argv if argv is None else argv)
    name = os.path.basename(words[0]) if words else ""
    del words[:1]
    if name == "copy_bom":
        # Scripts written for Occlum call it by this name.
        words.insert(0, "copy-bom")
    elif words == ["--version"]:
        print(f"serdab {VERSION}")
        return 0
    return _run(words, instance, is_occlum=name == "occlum")


def _import_nothing_from_here() -> None:
    """Take the current directory off the import path: it may be an instance, or any other's.

    It gets there by ``python -m``, and by an empty or relative element of PYTHONPATH, a common
    slip. What the interpreter imported before us is beyond our reach (docs/threat-model.md).
    """
    relative = [e for e in os.environ.get("PYTHONPATH", "").split(os.pathsep) if e[:1] != "/"]
    try:
        places = {os.path.abspath(element) for element in ("", *relative)}
    except FileNotFoundError:
        places = set()  # the current directory was removed: nothing can be found in it
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.path[:] = [e for e in sys.path if e[:1] == "/" and (e not in places or e == ours)]


def _open_closed_streams() -> None:
    """Put /dev/null where a standard stream is closed, or a file of ours would become one."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(fd, "r" if fd == 0 else "w", closefd=False))


def _run(words: list[str], instance: str, *, is_occlum: bool) -> int:
    from serdab.cli.messages import Context

    context = Context(instance)
    context.is_occlum = is_occlum
    call = Call()

    def work() -> int:
        if is_occlum:
            context.take_occlum_level(os.environ.get("OCCLUM_LOG_LEVEL", ""))
        call.verb = _take_globals(words, context)
        if call.verb is None:
            return _help(None if instance == "." else _PACKAGED)
        entry = VERBS.get(call.verb)
        if entry is None:
            raise _unknown_verb(call.verb)
        call.starts_program = entry[1]
        if call.starts_program:
            interrupts.let_end_us()
        return _dispatch(call.verb, entry[0], words, context)

    return finish(work, context, call)


class Call:
    """What is known of a call when it fails: its verb, and whether that starts a program."""

    __slots__ = ("starts_program", "verb")

    def __init__(self, verb: str | None = None) -> None:
        self.verb = verb
        self.starts_program = False


def finish(work: Callable[[], int], context: Context, call: Call) -> int:
    """Return what ``work`` returns; tell of its errors, and return their exit code."""
    from serdab.cli import exitcodes
    from serdab.cli.messages import report
    from serdab.errors import Error, fullness_of, shortage_of, swap_of

    failure: Error
    try:
        return work()
    except Error as exc:
        failure = exc
        if call.verb in VERBS and not exc.stage:
            # No stage of the boot refused: the verb did.
            exc.stage = call.verb
            exc.message = exc.message.removeprefix(f"{call.verb}: ")
    except KeyboardInterrupt:
        interrupts.leave_pending()
        return exitcodes.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output went away; nothing is left to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exitcodes.FAILED
    except OSError as exc:
        # An I/O error that no layer gave a meaning to: no defect of ours.
        _traceback(context.verbose)
        words_of_system = exc.strerror or str(exc)
        failure = (
            shortage_of(exc)
            or fullness_of(exc, call.verb or "")
            or swap_of(exc)
            or Error(
                f"the system refused: {words_of_system}",
                subject=str(exc.filename or ""),
                hint="" if context.verbose else "-v shows where it happened",
            )
        )
    except Exception as exc:  # whatever else escapes is a defect, and is said to be one
        _traceback(context.verbose)
        missing = _missing_library(exc) or shortage_of(exc)
        # A defect of another process of ours comes with its whole traceback: the last line says it.
        said = (str(exc).strip().splitlines() or [""])[-1]
        failure = missing or Error(
            f"internal error, please report: {type(exc).__name__}: {said}",
            hint="" if context.verbose else "-v shows where it happened",
        )
    code = exitcodes.of_error(failure, starts_program=call.starts_program)
    report(failure, context, starts_program=call.starts_program)
    return code


def _missing_library(exc: Exception) -> Error | None:
    """Return what to say if a library is not there: a package carries those of its own verbs."""
    from serdab.errors import EnvironmentRefused

    if not isinstance(exc, ModuleNotFoundError) or (exc.name or "serdab").startswith("serdab"):
        return None
    return EnvironmentRefused(
        f"a library of Python is missing: {exc.name}",
        expected="an installed Serdab with all its dependencies",
        found=f"no module {exc.name}",
        hint="a packaged instance carries what is needed to run it; `pip install` has the rest",
    )


def _traceback(wanted: bool) -> None:  # noqa: FBT001 - private, the option -v
    if wanted:
        import traceback

        from serdab.errors import printable

        for line in traceback.format_exc().splitlines():
            print("|", printable(line), file=sys.stderr)


def _dispatch(verb: str, module_name: str, words: list[str], context: Context) -> int:
    import importlib

    from serdab.cli import plainwords
    from serdab.cli.named import require_out_of_reach

    module = importlib.import_module(f"serdab.cli.{module_name}")
    args: Any = plainwords.read(module.configure, words, context) if verb in _PLAIN_VERBS else None
    if args is None:
        from serdab.cli.verbparser import VerbParser

        parser = VerbParser(verb, module.SUMMARY, context)
        module.configure(parser)
        try:
            args = parser.parse_args(words)
        except SystemExit as exc:  # --help
            return int(exc.code or 0)
    context.enter()
    require_out_of_reach(args, context)
    if not VERBS[verb][1]:
        interrupts.hear()
    code: int = module.main(args, context)
    return code


_LONG = {"-C": "--instance", "-q": "--quiet", "-v": "--verbose", "-h": "--help"}
_WITH_VALUE = ("--instance", "--log-level")
_PLAIN = ("--json", "--quiet", "--verbose")


def _take_globals(words: list[str], context: Context) -> str | None:
    """Take the options before the verb off ``words``; return the verb, None for help."""
    from serdab.errors import UsageError

    taken: list[str] = []
    while words:
        word = words.pop(0)
        option, equals, attached = word.partition("=")
        if equals and option.startswith("--"):
            words.insert(0, attached)
        option = _LONG.get(word, option)
        if option in _WITH_VALUE:
            if not words:
                raise UsageError(f"{word} needs a value", hint="`serdab --help` shows its place")
            taken += [word, words[0]]
            context.take(option, words.pop(0))
        elif option in _PLAIN and not equals:
            taken.append(word)
            context.take(option)
        elif option == "--help" and not equals:
            return None
        elif option == "--version" and not equals:
            print(f"serdab {VERSION}")
            raise SystemExit(0)
        elif word.startswith("-"):
            raise UsageError(f"unknown option {word}", hint="`serdab --help` lists them")
        else:
            return word
    if taken:
        raise UsageError(
            "no verb",
            expected="a verb after the options",
            found=f"nothing after {' '.join(taken)}",
            hint="-C takes a directory: `serdab -C DIR VERB`"
            if context.directory in VERBS
            else "`serdab --help` lists the verbs",
        )
    return None


def _unknown_verb(verb: str) -> Exception:
    import difflib

    from serdab.errors import UsageError

    if verb == "gdb":  # Occlum has it
        return UsageError(
            "there is no verb gdb: programs are ordinary processes",
            hint="pack gdb and `serdab run /bin/gdb --args PROGRAM`, or, from outside, `gdb -p PID "
            "image/PROGRAM` (docs/occlum.md)",
        )
    near = difflib.get_close_matches(verb, VERBS, n=1)
    return UsageError(
        f"unknown verb {verb}",
        hint=f"did you mean {near[0]}?" if near else "`serdab --help` lists the verbs",
    )


def _help(verbs: frozenset[str] | None) -> int:
    """Print the help; ``verbs`` are those that work here, None for all."""
    import importlib

    from serdab.cli.messages import show
    from serdab.cli.verbparser import wrapped

    lines = ["usage: serdab [-C DIR] [--log-level LEVEL] [--json] [-q|-v] VERB ...", "", "verbs:"]
    for verb, (module_name, _) in VERBS.items():
        if verbs is not None and verb not in verbs:
            continue
        summary = importlib.import_module(f"serdab.cli.{module_name}").SUMMARY
        lines.append(f"  {verb:15}{summary}")
    show("\n".join(wrapped(line) for line in (*lines, *_GLOBALS_HELP.split("\n"))))
    return 0
