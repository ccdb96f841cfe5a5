"""`metrics.jsonl`, the log of a run: one JSON object per line for each logged step and epoch."""

import contextlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt
from typing_extensions import NotRequired, TypedDict

from src.storage.files import misfit, open_regular, replacing

Number = FiniteFloat | None
"""None stands for NaN and infinity."""


class Record(TypedDict):
    """A line: a step, or the end of an epoch with what `src/training/health.py` measures."""

    kind: Literal["step", "epoch"]
    step: NonNegativeInt
    epoch: Annotated[FiniteFloat, Field(ge=0)]
    learning_rate: NotRequired[Number]
    progress: NotRequired[Number]
    loss: NotRequired[Number]
    gpu_utilization: NotRequired[Number]
    gradient_norm: NotRequired[Number]
    skipped_steps: NotRequired[Number]
    activation_rms: NotRequired[Number]
    projection_std: NotRequired[Number]
    projection_rank: NotRequired[Number]
    knn_accuracy: NotRequired[Number]
    kmeans_accuracy: NotRequired[Number]
    images_per_second: NotRequired[Number]
    seconds_left: NotRequired[Number]


class MetricsLog(contextlib.AbstractContextManager["MetricsLog"]):
    """Appends records to `file`; each line reaches the operating system before `write` returns.

    Args:
        file: the log; created if missing, with its directory.
        keep_until_step: the step of the checkpoint that training starts from. Records of later
            steps are removed, as training will write them again; 0 starts a new file.
    """

    def __init__(self, file: Path, keep_until_step: int) -> None:
        earlier = read_metrics(file) if keep_until_step else []
        kept = [record for record in earlier if record["step"] <= keep_until_step]
        with replacing(file) as temporary:
            temporary.write_text("".join(map(_line, kept)), encoding="utf-8")
        self._file = file.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append `record`; NaN and infinite numbers become null."""
        self._file.write(_line(record))
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_metrics(file: Path) -> list[Record]:
    """The records in `file`, if it exists. Invalid lines are left out with a note, except for an
    incomplete last line, as a kill leaves it."""
    try:
        with open_regular(file) as stream:
            lines = stream.read().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        print(f"note: {file} is left out: {error.strerror}", file=sys.stderr)
        return []
    records = [record for line in lines if (record := _record(line))]
    damaged = len(lines) - len(records) - bool(lines and not lines[-1].endswith(b"\n"))
    if damaged > 0:
        print(f"note: {damaged:,} damaged lines of {file} are left out", file=sys.stderr)
    return records


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return None if misfit(record, Record) else record


def _line(record: Mapping[str, Any]) -> str:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
