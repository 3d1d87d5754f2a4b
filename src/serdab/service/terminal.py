# SPDX-License-Identifier: Apache-2.0
"""A client's terminal and the program's: two terminals, made to feel like one.

Above: ``client``. The program's is a pseudo-terminal of the instance's own devpts (pty(7)), so it
has a name inside, belongs to the inner root, and injects nothing into ours. We hold its master
side: what is typed goes in, what is shown comes out, the window's size follows. Line editing,
Ctrl-C and Ctrl-Z happen in the program's terminal; ours is raw meanwhile, and put back whenever we
stop or end.

A terminal is ours to read and set only while we are its foreground job (tcgetpgrp(3)); in the
background the program's output is still shown, and nothing is typed.

Of the three standard streams those that are the terminal are replaced by the program's, others go
through as they are. Where standard input is none, ours stays as it is, and the program's terminal
leaves the line ends to it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import termios
import tty
from collections.abc import Mapping
from select import POLLERR, POLLHUP, POLLIN, POLLOUT, poll
from signal import SIGINT, SIGQUIT

from serdab.structs import frozen

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

_TIOCGPTPEER: Final = 0x5441
_CHUNK: Final = 4096
_MAX_TAIL_BYTES: Final = 1 << 20
_LOOK_AGAIN_MS: Final = 200
_OUTPUT_FLAGS: Final = 1  # where tcgetattr(3) has them in Python's list
_LOCAL_FLAGS: Final = 3
_CONTROL_KEYS: Final = 6

Attributes = list[int | list[bytes | int]]


@frozen
class Found:
    """Our terminal: ``places`` of the standard streams it is (0 to 2), where to read and write."""

    places: tuple[int, ...]
    reader: int
    writer: int


def find(streams: tuple[int, int, int]) -> Found | None:
    """Return the terminal among our standard streams, the first if there are several."""
    devices = [os.fstat(fd).st_rdev if os.isatty(fd) else None for fd in streams]
    device = next((device for device in devices if device is not None), None)
    if device is None:
        return None
    places = tuple(index for index in range(3) if devices[index] == device)
    writer = next((streams[index] for index in (1, 2) if index in places), streams[places[0]])
    return Found(places, streams[0] if 0 in places else -1, writer)


class NoTerminal:
    """What a client without a terminal has instead of a :class:`Relay`."""

    typed: Final[frozenset[int]] = frozenset()

    def begin(self) -> None:
        """Nothing."""

    end = enter = leave = resize = hang_up = begin

    def interests(self) -> list[tuple[int, int]]:
        """Return nothing to poll."""
        return []

    def patience_ms(self) -> int | None:
        """Return no deadline."""
        return None

    def relay(self, ready: Mapping[int, int]) -> None:
        """Nothing."""

    def has_hung_up(self) -> bool:
        """Return False."""
        return False


class Relay:
    """Between our terminal and the program's, whose master side it owns."""

    def __init__(self, ours: Found, master: int) -> None:
        self._ours = ours
        self._master = master
        self._typed = b""
        #: The signals that the last keys send in the program's terminal (termios(3), ISIG).
        self.typed: frozenset[int] = frozenset()
        self._before: Attributes | None = None  # while ours is raw
        self._is_quiet = False  # nobody has the other side open now
        self._hung_up = False
        os.set_blocking(master, False)
        attributes = termios.tcgetattr(ours.reader if ours.reader >= 0 else ours.writer)
        if ours.reader < 0:
            attributes[_OUTPUT_FLAGS] &= ~termios.OPOST
        termios.tcsetattr(master, termios.TCSANOW, attributes)
        self.resize()

    def open_slave(self) -> int:
        """Return the side that becomes the program's: ioctl_tty(2), TIOCGPTPEER."""
        return fcntl.ioctl(self._master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)

    def resize(self) -> None:
        """Give the program's terminal the size of ours."""
        if self._master < 0:
            return
        try:
            size = fcntl.ioctl(self._ours.writer, termios.TIOCGWINSZ, b"\0" * 8)
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
        except OSError:
            pass  # hung up: the read says so

    # Ours: raw while we are in the foreground ---------------------------------------------------

    def begin(self) -> None:
        """Start relaying."""
        self.enter()

    def _is_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._ours.reader) == os.getpgrp()
        except OSError as exc:
            # Not the terminal that controls us: then nobody else's job control is in the way.
            return exc.errno == errno.ENOTTY

    def enter(self) -> None:
        """Make ours raw, if it is ours to read."""
        if self._ours.reader < 0 or self._hung_up or not self._is_foreground():
            return
        try:
            if self._before is None:
                self._before = termios.tcgetattr(self._ours.reader)
            tty.setraw(self._ours.reader, termios.TCSADRAIN)
        except termios.error:
            self._hung_up = True
        self.resize()

    def leave(self) -> None:
        """Put ours back as it was, if it is still ours to set."""
        before, self._before = self._before, None
        if before is None or not self._is_foreground():
            return
        try:
            termios.tcsetattr(self._ours.reader, termios.TCSADRAIN, before)
        except termios.error:
            pass  # hung up

    def end(self) -> None:
        """Show what the program wrote last, and put ours back."""
        shown = 0
        while self._master >= 0 and shown < _MAX_TAIL_BYTES:
            piece = self._read_master()
            if not piece:
                break
            shown += len(piece)
            self._show(piece)
        self.leave()

    # Relaying -----------------------------------------------------------------------------------

    def interests(self) -> list[tuple[int, int]]:
        """Return what to poll."""
        out = []
        if self._master >= 0 and not self._is_quiet:  # which reports POLLHUP all the time
            out.append((self._master, POLLIN | (POLLOUT if self._typed else 0)))
        if self._before is not None and not self._typed and not self._hung_up:
            out.append((self._ours.reader, POLLIN))
        return out

    def patience_ms(self) -> int | None:
        """Return when to look again although nothing came."""
        in_background = self._ours.reader >= 0 and self._before is None and not self._hung_up
        return _LOOK_AGAIN_MS if in_background or self._is_quiet else None

    def relay(self, ready: Mapping[int, int]) -> None:
        """Pass on what there is."""
        if self._before is None:
            self.enter()  # a shell may have put us into the foreground without telling
        if self._before is not None and ready.get(self._ours.reader, 0):
            self._read_ours()
        events = ready.get(self._master, 0)
        if events & POLLOUT and self._typed:
            self._type()
        if events & (POLLIN | POLLHUP | POLLERR) or self._is_quiet:
            piece = self._read_master()
            self._is_quiet = piece is None
            if piece:
                self._show(piece)

    def _read_ours(self) -> None:
        if not self._is_foreground():
            self._before = None
            return
        try:
            piece = os.read(self._ours.reader, _CHUNK)
        except OSError:
            piece = b""
        if not piece:
            self._hung_up = True
            return
        self.typed = self._signals_in(piece)
        self._typed += piece
        self._type()

    def _signals_in(self, piece: bytes) -> frozenset[int]:
        try:
            attributes = termios.tcgetattr(self._master)
        except termios.error:
            return frozenset()
        keys = attributes[_CONTROL_KEYS]
        modes = attributes[_LOCAL_FLAGS]
        if not isinstance(keys, list) or not isinstance(modes, int) or not modes & termios.ISIG:
            return frozenset()
        return frozenset(
            sent
            for sent, key in ((SIGINT, keys[termios.VINTR]), (SIGQUIT, keys[termios.VQUIT]))
            if isinstance(key, bytes) and key != b"\0" and key in piece
        )

    def _type(self) -> None:
        try:
            self._typed = self._typed[os.write(self._master, self._typed) :]
        except BlockingIOError:
            pass
        except OSError:
            self._typed = b""

    def _read_master(self) -> bytes | None:
        """Return what the program wrote, ``b""`` if nothing, None if nobody can write."""
        try:
            return os.read(self._master, _CHUNK)
        except BlockingIOError:
            return b""
        except OSError:
            return None

    def _show(self, piece: bytes) -> None:
        try:
            while piece:
                piece = self._write_ours(piece)
        except OSError:
            self._hung_up = True

    def _write_ours(self, piece: bytes) -> bytes:
        """Write some of it, return what is left. Whoever shares ours may have it non-blocking."""
        try:
            return piece[os.write(self._ours.writer, piece) :]
        except BlockingIOError:
            waiting = poll()
            waiting.register(self._ours.writer, POLLOUT)
            waiting.poll()
            return piece

    def has_hung_up(self) -> bool:
        """Return whether ours is gone while the program's is not."""
        return self._hung_up and self._master >= 0

    def hang_up(self) -> None:
        """Let the program's terminal go: its session gets SIGHUP from the kernel."""
        self._hung_up = True
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
