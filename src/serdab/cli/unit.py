# SPDX-License-Identifier: Apache-2.0
"""``serdab unit [--user|--system] [--image-key FILE]``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

from serdab.cli.messages import Context

SUMMARY: Final = "print a systemd unit for the instance"
_KEPT: Final = ("SERDAB_PLATFORM", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument(
        "--user", action="store_true", help="for systemd --user (default for an ordinary user)"
    )
    whose.add_argument("--system", action="store_true", help="for the system, run by root")
    parser.add_argument(
        "--image-key", metavar="FILE", help="the key, loaded as a credential when it starts"
    )


def main(args: argparse.Namespace, context: Context) -> int:
    """Print it."""
    from serdab.instance.layout import Instance
    from serdab.service.unit import Unit, text_of

    instance = Instance.open_built(context.instance)
    if args.image_key is not None and not os.path.exists(args.image_key):
        context.say(
            f"warning: there is no {args.image_key} yet: without it the unit fails to start"
        )
    unit = Unit(
        os.path.realpath(instance.path),
        _command(),
        None if args.image_key is None else os.path.abspath(args.image_key),
        is_user=args.user or (not args.system and os.geteuid() != 0),
        environment=_environment(),
    )
    text = text_of(unit)
    context.result({"unit": text}, *text.rstrip("\n").split("\n"))
    return 0


def _environment() -> dict[str, str]:
    """Return the variables that say where our directories are, and which Python this is."""
    from serdab.instance.layout import package_parts
    from serdab.trust.codetree import package_root

    kept = {name: os.environ[name] for name in _KEPT if os.environ.get(name)}
    if package_parts(os.path.realpath(package_root())):
        # The launcher of a package looks on the PATH, and that of a service manager is another.
        kept["SERDAB_PYTHON"] = sys.executable
    return kept


def _command() -> list[str]:
    """Return how this Serdab is called from anywhere, isolated from what lies there."""
    import site

    from serdab.instance.layout import package_parts
    from serdab.libos.interpreter import import_path
    from serdab.trust.codetree import package_root

    root = os.path.realpath(package_root())
    if parts := package_parts(root):
        return [parts[-1]]
    home = os.path.dirname(root)
    if home in map(os.path.realpath, site.getsitepackages()):
        return [sys.executable, "-I", "-m", "serdab"]
    # A checkout: the interpreter does not find it by itself.
    code = f"import sys; sys.path[:0] = {import_path()!r}; from serdab.cli.main import main"
    return [sys.executable, "-I", "-c", f"{code}; sys.exit(main())"]
