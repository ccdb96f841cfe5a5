"""A training that rests after every record in its log and while it writes a checkpoint, so that a
test can interrupt it there. The rests take none of the processor's time.

python tests/helpers/slow_training.py src/train.py FLAGS
"""

import functools
import runpy
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from src.storage.metrics_log import MetricsLog

REST = 0.1  # seconds


def rests_after(function: Callable) -> Callable:
    @functools.wraps(function)
    def rest_after(*arguments: Any, **more: Any) -> None:
        function(*arguments, **more)
        time.sleep(REST)

    return rest_after


if __name__ == "__main__":
    MetricsLog.write = rests_after(MetricsLog.write)  # type: ignore[method-assign]
    torch.save = rests_after(torch.save)
    sys.argv.pop(0)
    runpy.run_path(sys.argv[0], run_name="__main__")
