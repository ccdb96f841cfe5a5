"""Ctrl-C and SIGTERM as a flag that the training loop checks between steps."""

import signal
from types import FrameType


class StopSignal:
    """Context manager that turns the first SIGINT or SIGTERM into a flag, `received`.

    A second Ctrl-C interrupts at once. The old handlers are restored at the end.
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
