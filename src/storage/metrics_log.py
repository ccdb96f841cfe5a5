"""`metrics.jsonl`, the record of a training: a JSON object in a line per logged step and epoch."""

import json
import math
from pathlib import Path
from typing import Any

from src.storage.artifacts import replacing

Record = dict[str, Any]


class MetricsLog:
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

    def write(self, record: Record) -> None:
        """Append `record`; NaN and infinite numbers become null."""
        self._file.write(_line(record))
        self._file.flush()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_metrics(file: Path) -> list[Record]:
    """The records in `file`, if it exists, without a line that a kill left incomplete."""
    if not file.exists():
        return []
    records = []
    for line in file.read_bytes().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if isinstance(record, dict) and "step" in record]


def _line(record: Record) -> str:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
