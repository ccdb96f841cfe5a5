"""Weights & Biases as a mirror of what is on disk: it may fail or hang, the run goes on.

All that W&B does happens in one background thread, fed by a queue. The training thread waits for
it twice, at most `START_SECONDS` and `FINISH_SECONDS`.
"""

import base64
import html
import io
import json
import math
import os
import queue
import secrets
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from src.tracking import wandb_run
from src.tracking.wandb_run import WandbMode

PROJECT = "simclr-clusters"

START_SECONDS = 25.0
"""A run starts after this long whatever W&B does."""
FINISH_SECONDS = 60.0
"""How long the end of a run waits for uploads. What is left is on disk, for `make sync`."""

AXES = {"train": "step", "epoch": "epoch", "pca": "component"}
"""The field that numbers the records of a prefix and is their axis in W&B. W&B's own step is left
alone: it counts rows, and shifts what a resumed run gives it explicitly."""

PREFIXES = {"step": "train", "epoch": "epoch"}
"""From the kind of a record in `metrics.jsonl`."""


class Tracker:
    """One W&B run. No method raises or hangs; a failure is a warning on standard error.

    Args:
        mode: `auto` is online where a key is configured and the server answers, else offline.
        directory: takes all that W&B writes. The runs lie right inside where it is called
            `wandb`, else in a `wandb` inside it.
        group: joins the stages of one experiment.
        job_type: the stage.
        run_id: of the run to continue; None begins a new one.
        config: recorded with the run; what JSON has no type for becomes a string.
        earlier: of a continued run, `MetricsLog.earlier`. What the segments in `directory` lack
            of it is logged first, and nothing that they hold is logged again.
    """

    def __init__(
        self,
        mode: WandbMode,
        directory: Path,
        *,
        group: str,
        job_type: str,
        run_id: str | None = None,
        config: dict[str, Any],
        earlier: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.run_id = run_id
        """Kept in the checkpoint, so that a resumed run continues this one."""
        self._continues = run_id is not None
        self._jobs: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None
        self._logged: set[tuple[str, float]] = set()
        self._warned: set[str] = set()
        self._quiet = False
        self._exit_code = 0
        if mode == "disabled":
            return
        self.run_id = run_id or secrets.token_hex(4)
        options = {
            "id": self.run_id,
            "resume": "allow",
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "group": group,
            "job_type": job_type,
            "config": json.loads(json.dumps(config, default=str)),
            "allow_val_change": True,
        }
        started = threading.Event()
        self._worker = threading.Thread(
            target=self._work, args=(mode, directory.resolve(), options, earlier, started),
            daemon=True,
        )  # fmt: skip
        self._worker.start()
        if not started.wait(START_SECONDS):
            self._warn("no answer yet; the run starts without waiting for it")

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.finish(exit_code=1 if kind else 0)

    def log(self, record: dict[str, Any], prefix: str) -> None:
        """Log the finite numbers in `record` as `prefix/field`; one of `AXES` once a point."""
        row = _row(record, prefix)
        self._do(lambda run: self._log_once(run, row, prefix))

    def image(self, key: str, picture: Path | np.ndarray) -> None:
        """Log a picture: a file, or uint8 (height, width, 3)."""
        self._do(lambda run: run.log({key: _picture(picture)}))

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; a cell that is a path or an array is a picture, as in `image`."""
        self._do(lambda run: run.log({key: _table(columns, rows)}))

    def finish(self, exit_code: int = 0) -> None:
        """Wait for what is still to be written or uploaded; calling it again does nothing."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        self._exit_code = exit_code
        self._jobs.put(None)
        worker.join(FINISH_SECONDS)
        if worker.is_alive():
            self._warn("still busy at the end, left behind; what it wrote is on disk")
            self._quiet = True  # about what follows from that
            self._attempt(wandb_run.kill_service)
            worker.join(5.0)  # the kill wakes it; Python must not end while it is busy

    def _do(self, job: Callable[[Any], None]) -> None:
        if self._worker is not None and self._worker.is_alive():
            self._jobs.put(job)

    def _work(
        self,
        mode: WandbMode,
        directory: Path,
        options: dict[str, Any],
        earlier: Sequence[dict[str, Any]],
        started: threading.Event,
    ) -> None:
        segments = self._attempt(wandb_run.segments, directory, options["id"]) or []
        opened = self._attempt(wandb_run.open_run, mode, directory, FINISH_SECONDS / 2, options)
        if opened is None:
            started.set()
            return
        why = opened.why_offline and f"{opened.why_offline}; "
        unwanted = why and mode == "online"
        tqdm.write(f"W&B: {why}{opened.place}", file=sys.stderr if unwanted else sys.stdout)
        started.set()
        run = opened.run
        self._attempt(_define_axes, run)
        self._attempt(self._catch_up, run, segments, earlier)
        while (job := self._jobs.get()) is not None:
            self._attempt(job, run)
        self._attempt(wandb_run.close_run, run, self._exit_code)

    def _catch_up(self, run: Any, segments: list[Path], earlier: Sequence[dict[str, Any]]) -> None:
        """Bring the run level with `metrics.jsonl`: a kill takes the last second of a segment.

        A run whose segments are not here, as they were synced and removed, is taken to be level.
        """
        rows = [
            (_row(record, prefix), prefix)
            for record in earlier
            if (prefix := PREFIXES.get(record["kind"])) is not None
        ]
        there = self._attempt(_points_in, segments, run) if segments else None
        if there is None and self._continues:
            there = {_point(row, prefix) for row, prefix in rows}
        self._logged = there or set()
        for row, prefix in rows:
            self._log_once(run, row, prefix)

    def _log_once(self, run: Any, row: dict[str, float], prefix: str) -> None:
        if prefix in AXES:
            point = _point(row, prefix)
            if point in self._logged:
                return
            self._logged.add(point)
        run.log(row)

    def _attempt(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The one place that catches anything: W&B's errors have no common class, and none of
        them may end a training. Returns None in place of a result."""
        try:
            return call(*arguments)
        except Exception as error:
            self._warn(wandb_run.first_line(error))

    def _warn(self, text: str) -> None:
        """Print a warning once."""
        if text not in self._warned and not self._quiet:
            self._warned.add(text)
            tqdm.write(f"W&B: {text}", file=sys.stderr)


def _row(record: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {
        _name(prefix, field): value
        for field, value in record.items()
        if isinstance(value, (int, float, np.number)) and math.isfinite(value)
    }


def _name(prefix: str, field: str) -> str:
    """`epoch` rather than `epoch/epoch`."""
    return field if field == prefix else f"{prefix}/{field}"


def _axis(prefix: str) -> str:
    return _name(prefix, AXES[prefix])


def _point(row: dict[str, float], prefix: str) -> tuple[str, float]:
    return _axis(prefix), row[_axis(prefix)]


def _points_in(segments: list[Path], run: Any) -> set[tuple[str, float]]:
    """The points of all axes that W&B has, or gets when these segments are synced.

    An online segment that was killed keeps rows that it had not sent yet. The server says with
    its summary how far it got.
    """
    axes = [_axis(prefix) for prefix in AXES]
    arrived = {axis: math.inf if run.offline else run.summary.get(axis, -1) for axis in axes}
    return {
        (axis, row[axis])
        for segment in segments
        for row in wandb_run.history(segment)
        for axis in axes
        if axis in row and (wandb_run.is_offline(segment) or row[axis] <= arrived[axis])
    }


def _define_axes(run: Any) -> None:
    for prefix in AXES:
        run.define_metric(_axis(prefix))
        run.define_metric(f"{prefix}/*", step_metric=_axis(prefix))


def _picture(picture: Path | np.ndarray) -> Any:
    import wandb

    return wandb.Image(str(picture) if isinstance(picture, Path) else picture)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """An HTML table. W&B's own table is an artifact, and an offline run remembers artifacts by
    absolute paths: they would be lost where the folder is copied to another machine."""
    import wandb

    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return wandb.Html(f"<table><tr>{head}</tr>{body}</table>")


def _cell(value: Any) -> str:
    if isinstance(value, Path):
        value = np.asarray(Image.open(value).convert("RGB"))
    if not isinstance(value, np.ndarray):
        return f"<td>{html.escape(str(value))}</td>"
    png = io.BytesIO()
    Image.fromarray(value).save(png, "png")
    return f'<td><img src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"></td>'
