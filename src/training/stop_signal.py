"""Ctrl-C and SIGTERM as a flag that the training loop checks between steps."""

import signal
from types import FrameType


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a flag that a loop looks at between steps.

    A second Ctrl-C leaves at once. Used as a context manager; the old handlers come back.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopSignal":
        self._old = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    @property
    def exit_code(self) -> int:
        """By convention 128 plus the signal's number: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.received or signal.SIGTERM)
