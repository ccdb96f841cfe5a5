"""Ctrl-C, SIGTERM and a closed terminal as a flag that training checks between steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Windows has no SIGHUP."""


class StopSignal:
    """Context manager that turns the first of `STOPS` into a flag, `received`.

    A second Ctrl-C interrupts at once. Signals that are ignored stay so, as SIGHUP under nohup. The
    old handlers are restored at the end.
    """

    class Interrupt(BaseException):
        """The first signal, while the block of `at_once` runs."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._at_once = False

    def __enter__(self) -> "StopSignal":
        heard = [s for s in STOPS if signal.getsignal(s) is not signal.SIG_IGN]
        self._old = {s: signal.signal(s, self._receive) for s in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """In the block, which may take minutes, the first signal raises `Interrupt`."""
        if self.received is not None:
            raise self.Interrupt
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if self._at_once:
            self._at_once = False
            raise self.Interrupt

    @property
    def exit_code(self) -> int:
        """By convention 128 plus the signal's number: 130 for Ctrl-C, 143 for SIGTERM, 129 for
        SIGHUP."""
        return 128 + (self.received or signal.SIGTERM)
