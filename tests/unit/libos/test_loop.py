# SPDX-License-Identifier: Apache-2.0
"""The event loop: coroutines, descriptors, timers, threads."""

from __future__ import annotations

import _thread
import os
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from serdab.libos.loop import Cancelled, Future, Loop


def run(loop: Loop, coroutine: Coroutine[Any, None, Any]) -> Any:  # noqa: ANN401
    task = loop.start(coroutine)
    task.when_done(loop.stop)
    loop.run()
    return task.result()


def test_a_coroutine_gets_what_it_waits_for() -> None:
    loop = Loop()
    future: Future[int] = loop.future()

    async def main() -> int:
        loop.call_soon(lambda: future.set_result(7))
        return await future

    assert run(loop, main()) == 7


def test_an_error_is_raised_where_it_is_awaited() -> None:
    loop = Loop()

    async def fails() -> None:
        raise ValueError("x")

    async def main() -> str:
        try:
            await loop.start(fails())
        except ValueError as exc:
            return str(exc)
        return ""

    assert run(loop, main()) == "x"


def test_a_readable_descriptor_wakes_its_reader() -> None:
    loop = Loop()
    reader, writer = os.pipe()
    future: Future[bytes] = loop.future()
    loop.watch(reader, lambda: future.set_result(os.read(reader, 10)))

    async def main() -> bytes:
        os.write(writer, b"hello")
        out = await future
        loop.unwatch(reader)
        return out

    assert run(loop, main()) == b"hello"
    os.close(reader)
    os.close(writer)


def test_timers_fire_in_order_and_cancelled_ones_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = Loop()
    seen: list[str] = []
    now = time.monotonic()
    with monkeypatch.context() as patch:
        # All are asked for at one moment: a pause between two would turn their order round.
        patch.setattr(time, "monotonic", lambda: now)
        loop.call_later(0.02, lambda: seen.append("late"))
        loop.call_later(0.01, lambda: seen.append("early"))
        loop.call_later(0.01, lambda: seen.append("never")).cancel()
        loop.call_later(0.03, loop.stop)
    loop.run()
    assert seen == ["early", "late"]


def test_waiting_for_the_first_of_several_ends_at_the_deadline() -> None:
    loop = Loop()
    never: Future[None] = loop.future()

    async def main() -> tuple[bool, bool]:
        late = await loop.first(never, timeout_s=0.01)
        done: Future[None] = loop.future()
        done.set_result(None)
        return late, await loop.first(never, done, timeout_s=10)

    assert run(loop, main()) == (False, True)


def test_a_thread_can_hand_something_over() -> None:
    loop = Loop()
    future: Future[str] = loop.future()

    async def main() -> str:
        _thread.start_new_thread(
            lambda: loop.call_from_thread(lambda: future.set_result("from a thread")), ()
        )
        return await future

    assert run(loop, main()) == "from a thread"


def test_a_cancelled_task_cleans_up() -> None:
    loop = Loop()
    seen: list[str] = []

    async def waits() -> None:
        try:
            await loop.future()
        finally:
            seen.append("cleaned")

    async def main() -> None:
        task = loop.start(waits())
        await loop.sleep(0)
        task.cancel()
        await task

    with pytest.raises(Cancelled):
        run(loop, main())
    assert seen == ["cleaned"]
