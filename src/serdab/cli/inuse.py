# SPDX-License-Identifier: Apache-2.0
"""Says that it is the instance's own service that has it, where a verb is refused for that.

Above: the verbs that use an instance alone. Below: ``service.client``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from serdab.cli.messages import Context
from serdab.errors import BusyError, Error


@contextmanager
def naming_service(instance: str, context: Context) -> Iterator[None]:
    """Let what is refused within, since the instance is in use, name the service that has it."""
    try:
        yield
    except BusyError as exc:
        if exc.subject != instance:  # that one is the lock of builds
            name_service(exc, instance, context)
        raise


def name_service(error: BusyError, instance: str, context: Context) -> None:
    """Put the service into the error, if there is one."""
    from serdab.service.client import ask_status

    status = None
    with suppress(Error):  # what was refused is what there is to say
        status = ask_status(instance, on_wait=context.say)
    if status is not None:
        error.expected = error.expected or "no other user"
        error.found = f"its service, process {status.pid}, {status.state} since {status.since()}"
        error.hint = "`serdab exec PROGRAM` runs a program in it, `serdab stop` ends it"
