# SPDX-License-Identifier: Apache-2.0
"""``serdab mount PATH``: the sealed root on the host, in the foreground."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from serdab.cli.messages import Context
from serdab.cli.parsing import (
    add_freshness,
    add_occlum,
    add_signing,
    freshness_of,
    read_key,
    say_occlum,
    signer_of,
)
from serdab.errors import UsageError

if TYPE_CHECKING:
    from serdab.instance.layout import Instance
    from serdab.libos.orders import Opened

SUMMARY: Final = "show the sealed root on the host, until Ctrl-C or umount"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_signing(parser)
    parser.add_argument(
        "--image-key", metavar="FILE", help="the key of the build; - reads standard input"
    )
    parser.add_argument("--read-only", action="store_true", help="change nothing")
    parser.add_argument(
        "--layer",
        choices=("image", "upper", "union"),
        default="union",
        help="what to show: what was built, what was changed since (both read-only), or both",
    )
    parser.add_argument(
        "--previous",
        action="store_true",
        help="insist on the image that the writable layer belongs to",
    )
    parser.add_argument(
        "--allow-other",
        action="store_true",
        help="let other users in, as far as modes allow; root always does",
    )
    parser.add_argument(
        "--ready-fd", metavar="N", type=int, help="write a line to this descriptor once mounted"
    )
    add_freshness(parser)
    add_occlum(parser, "--sgx-mode")
    parser.add_argument("path", metavar="PATH", help="an empty directory")


def main(args: argparse.Namespace, context: Context) -> int:
    """Mount, serve, unmount; 0 when everything is durable."""
    from serdab.cli.inuse import naming_service
    from serdab.fuse.mounting import check_available
    from serdab.instance.layout import Instance
    from serdab.instance.locks import lock_run
    from serdab.instance.mountpoint import usable_mount_point
    from serdab.linux.process import forbid_core, hide_memory

    # Before there is a key in this process.
    hide_memory()
    forbid_core()
    say_occlum(args, context)
    _check_ready_fd(args.ready_fd)
    instance = Instance.open_built(context.instance)
    handler = _Printer(context)
    log = logging.getLogger("serdab")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with (
            naming_service(instance.path, context),
            lock_run(instance, on_wait=context.say) as lock,
        ):
            # After the lock: the same command once more is in use, not a bad mount point.
            target = usable_mount_point(args.path, instance.path, say=context.say)
            check_available(allow_other=args.allow_other)
            _mount(args, context, instance, target, handler, lock.end_use)
    finally:
        log.removeHandler(handler)
    context.say(f"{args.path}: unmounted, everything is durable")
    return 0


def _mount(
    args: argparse.Namespace,
    context: Context,
    instance: Instance,
    target: str,
    printer: _Printer,
    end_use: Callable[[], None],
) -> None:
    from serdab.instance.hostmount import Wanted, serve_on_host

    opened = _open(args, context, instance)
    for line in opened.notices:
        printer.tell("notice", line)
    wanted = Wanted(
        target,
        fsname=f"serdab:{os.path.realpath(instance.path)}",
        read_only=opened.read_only,
        allow_other=args.allow_other or os.geteuid() == 0,
    )

    def on_ready() -> None:
        how = "read-only" if opened.read_only else "read-write"
        if context.as_json:
            context.result(
                {
                    "mounted": target,
                    "layer": args.layer,
                    "read_only": opened.read_only,
                    "root-mac": opened.root_mac.hex(),
                    "pid": os.getpid(),
                }
            )
        else:
            context.say(f"{args.path}: mounted {args.layer}, {how}; Ctrl-C or umount ends it")
        _tell_ready(args.ready_fd)

    # Who comes right after umount(8) waits for our last flush, instead of being refused.
    serve_on_host(opened.fs, wanted, on_ready=on_ready, on_unmounted=end_use, log=printer.tell)


def _open(args: argparse.Namespace, context: Context, instance: Instance) -> Opened:
    from serdab.instance.rootview import Layer, View, open_view
    from serdab.instance.sealedroot import prove_owner, verified_chain

    freshness = freshness_of(args).placed_outside(instance.path)
    chain = verified_chain(instance)
    prove_owner(chain, signer_of(args))
    key = None if args.image_key is None else read_key(args.image_key, context.say)
    view = View(
        Layer(args.layer),
        read_only=args.read_only,
        previous=args.previous,
        freshness=freshness,
    )
    return open_view(instance, chain, key, view)


def _check_ready_fd(fd: int | None) -> None:
    if fd is None:
        return
    try:
        os.set_inheritable(fd, False)
    except (OSError, OverflowError):
        raise UsageError(
            "no such descriptor",
            subject="--ready-fd",
            expected="the number of an open descriptor",
            found=str(fd),
            hint="a shell opens one with 3>FILE",
        ) from None


def _tell_ready(fd: int | None) -> None:
    if fd is None:
        return
    try:
        os.write(fd, b"ready\n")
    except OSError:
        pass  # who wanted to know has gone; the mount is there all the same
    if fd > 2:
        os.close(fd)
        return
    # A later message must not go to whatever gets the number next.
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, fd)
    os.close(null)


class _Printer(logging.Handler):
    """Shows what the store and the session have to say, by level."""

    def __init__(self, context: Context) -> None:
        from serdab.pal import log_to_stderr

        super().__init__()
        self.tell = log_to_stderr(context.shown_level())

    def emit(self, record: logging.LogRecord) -> None:
        self.tell(record.levelname.lower(), record.getMessage())
