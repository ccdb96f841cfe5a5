"""Loading ahead in a thread."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Key = TypeVar("Key")
Value = TypeVar("Value")


def prefetch(load: Callable[[Key], Value], keys: Iterable[Key]) -> Iterator[Value]:
    """`load(key)` for every key, in order; a thread loads the next value while one is in use."""
    # A new thread would use the first GPU instead of this process's own; -1 means no GPU.
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else -1
    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(gpu,)) as loader:
        upcoming = None
        for key in keys:
            loading = loader.submit(load, key)
            if upcoming is not None:
                yield upcoming.result()
            upcoming = loading
        if upcoming is not None:
            yield upcoming.result()
