"""Output that ends before the program does: a closed terminal, `| head`, a log on a full disk."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


class _Unbreakable:
    """A text stream that writes into the null device from its first failure on."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._forgiving():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._forgiving():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # What is still in the buffer goes there as well, instead of failing at the exit.
            with open(os.devnull, "wb") as null:  # noqa: PTH123
                os.dup2(null.fileno(), self._stream.fileno())


@contextlib.contextmanager
def unbreakable_output() -> Iterator[None]:
    """In the block, standard output and error that nobody can take any more are dropped."""
    with (
        contextlib.redirect_stdout(_Unbreakable(sys.stdout)),  # type: ignore[type-var]
        contextlib.redirect_stderr(_Unbreakable(sys.stderr)),  # type: ignore[type-var]
    ):
        yield
