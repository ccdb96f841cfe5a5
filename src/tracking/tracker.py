"""Weights & Biases as a mirror of what is on disk: it may fail, the run continues."""

import base64
import contextlib
import dataclasses
import html
import io
import json
import math
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from src.runtime.cli import printable
from src.runtime.flag_choices import WandbMode
from src.storage.artifacts import ExtractionRecord
from src.tracking import wandb_run

AXES = {"train": "train/step", "epoch": "epoch", "pca": "pca/component"}
"""The x-axis of the metrics of a prefix. A resumed run repeats steps with equal values, which
coincide on this axis; W&B's own step counts rows and would shift them."""

PREFIXES = {"step": "train", "epoch": "epoch"}
"""From the kind of a record in `metrics.jsonl`."""


class Tracker(contextlib.AbstractContextManager["Tracker"]):
    """One W&B run. No method raises: an error of W&B is a warning on standard error, printed once.

    Args:
        mode: `auto` is online with a key and a reachable server, otherwise offline.
        directory: of the runs if it is called `wandb`, otherwise the parent of such a folder.
        run_id: of the run to continue; None begins a new one.
        options: `group`, `job_type` and `config`, for `wandb.init`.
    """

    def __init__(
        self, mode: WandbMode, directory: Path, *, run_id: str | None = None, **options: Any
    ) -> None:
        self.run_id = run_id
        """Kept in the checkpoint, so that a resumed run continues this one."""
        self._run: Any = None
        self._warnings: set[str] = set()
        if mode == "disabled":
            return
        self.run_id = run_id or secrets.token_hex(4)
        options |= {"id": self.run_id, "resume": "allow"}
        options["config"] = json.loads(json.dumps(options["config"], default=str))
        self._run = self._attempt(
            lambda: wandb_run.open_run(mode, directory.resolve(), options), "; nothing is recorded"
        )
        if self._run is not None:
            self.run_id = self._run.id  # a sweep gives its own
        self._with_run(_define_axes)

    def __exit__(self, kind: object, *_: object) -> None:
        self.finish(exit_code=1 if kind else 0)

    def log(self, record: Mapping[str, Any], prefix: str) -> None:
        """Log the finite numbers in `record` as `prefix/field`."""
        self._with_run(lambda run: run.log(_row(record, prefix)))

    def image(self, key: str, picture: Path | np.ndarray) -> None:
        """Log a picture: a file, or uint8 (height, width, 3)."""
        self._with_run(lambda run: run.log({key: import_module("wandb").Image(picture)}))

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; a cell that is an array is a picture, as in `image`."""
        self._with_run(lambda run: run.log({key: _table(columns, rows)}))

    def finish(self, exit_code: int = 0) -> None:
        """Wait for what is still to be written or uploaded; a second call does nothing."""
        self._with_run(lambda run: wandb_run.close_run(run, exit_code))
        self._run = None

    def _with_run(self, call: Callable[[Any], None]) -> None:
        if self._run is not None:
            self._attempt(lambda: call(self._run))

    def _attempt(self, call: Callable[[], Any], consequence: str = "") -> Any:
        """The result, or None after a warning: W&B's errors have no common class."""
        try:
            return call()
        except Exception as error:
            text = wandb_run.first_line(error) + consequence
            if text not in self._warnings:
                self._warnings.add(text)
                tqdm.write(f"W&B: {text}", file=sys.stderr)


def stage_tracker(
    mode: WandbMode, directory: Path, job_type: str, config: Any, extraction: ExtractionRecord
) -> Tracker:
    """The run of a stage with the flags `config`, in one group with the training that
    `extraction`, the record of the extraction, belongs to."""
    from src.storage.provenance import git_commit  # imports torch, which tracking does without

    made_by = extraction["checkpoint"]
    about = {
        "commit": git_commit(),
        "dataset_fingerprint": extraction["dataset"]["fingerprint"],
        "checkpoint_digest": made_by and made_by["digest"],
        "features_id": extraction["id"],
    }
    about |= dataclasses.asdict(config)
    group = extraction["tracking"]["group"]
    return Tracker(mode, directory, group=group, job_type=job_type, config=about)


def _row(record: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        field if field == prefix else f"{prefix}/{field}": value  # `epoch`, not `epoch/epoch`
        for field, value in record.items()
        if isinstance(value, (int, float, np.number)) and math.isfinite(value)
    }


def _define_axes(run: Any) -> None:
    for prefix, axis in AXES.items():
        run.define_metric(axis)
        run.define_metric(f"{prefix}/*", step_metric=axis)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """An HTML table. W&B's own table is an artifact, and an offline run remembers artifacts by
    absolute paths: they would be lost where the folder is copied to another machine."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return import_module("wandb").Html(f"<table><tr>{head}</tr>{body}</table>")


def _cell(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return f"<td>{html.escape(printable(str(value)))}</td>"
    png = io.BytesIO()
    Image.fromarray(value).save(png, "png")
    return f'<td><img src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"></td>'
