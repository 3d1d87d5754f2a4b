# SPDX-License-Identifier: Apache-2.0
"""What the process that stands for a program remembers of signals."""

from __future__ import annotations

import signal

import pytest

from serdab.pal.foreground import _Foreground


def test_a_second_signal_does_not_undo_the_first() -> None:
    """timeout(1) passes on what the terminal sent: Ctrl-C comes twice, from two senders."""
    state = _Foreground()
    assert state.on_ending(signal.SIGINT, is_of_terminal=True)
    assert state.on_ending(signal.SIGTERM, is_of_terminal=False)
    assert (state.ended_by, state.died_of) == (signal.SIGINT, signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_what_keys_send_is_died_of_whoever_sent_it(number: signal.Signals) -> None:
    state = _Foreground()
    state.on_ending(number, is_of_terminal=False)
    assert (state.ended_by, state.died_of) == (number, number)


def test_what_ends_a_boot_otherwise_is_a_number() -> None:
    state = _Foreground()
    state.on_ending(signal.SIGTERM, is_of_terminal=False)
    assert (state.ended_by, state.died_of) == (signal.SIGTERM, 0)


def test_the_program_s_signals_are_the_program_s() -> None:
    state = _Foreground()
    state.program_follows()
    assert not state.on_ending(signal.SIGINT, is_of_terminal=True)
    assert state.died_of == 0


@pytest.mark.parametrize("is_of_terminal", [False, True])
def test_what_keys_send_after_the_program_is_died_of(*, is_of_terminal: bool) -> None:
    state = _Foreground()
    state.program_follows()
    state.program_is(None)
    if is_of_terminal:
        # It may have been sent before: the kernel process tells at its end, and tells no more.
        assert state.on_ending(signal.SIGINT, is_of_terminal=True)
        assert state.died_of == 0
        state.is_over(0)
    assert state.on_ending(signal.SIGINT, is_of_terminal=is_of_terminal)
    assert not state.on_ending(signal.SIGTERM, is_of_terminal=False)
    assert (state.ended_by, state.died_of) == (0, signal.SIGINT)


def test_what_the_kernel_process_heard_after_the_program_is_died_of() -> None:
    state = _Foreground()
    state.program_follows()
    state.program_is(None)
    state.is_over(signal.SIGINT)
    assert state.died_of == signal.SIGINT
