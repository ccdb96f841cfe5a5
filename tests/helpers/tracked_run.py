"""A training in miniature that only tracks, run by the tests as a process; and how they read what
it left, with W&B's own viewer."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
from PIL import Image

from src.storage.metrics_log import MetricsLog, read_metrics
from src.tracking import wandb_run
from src.tracking.tracker import PREFIXES, Tracker
from tests.helpers import ROOT

KEY = "0123456789abcdef0123456789abcdef01234567"
DEFAULTS = {
    "mode": "auto", "epochs": 3, "from_epoch": 0, "pause": 0.0, "kill_after": None,
    "kill_service": False, "largest_file": None, "without_wandb": False,
}  # fmt: skip


def records(epoch: int) -> list[dict]:
    """What an epoch writes, the same in every run."""
    step = {"kind": "step", "step": 10 * epoch - 5, "epoch": epoch - 0.5, "loss": 1 / epoch}
    end = {"kind": "epoch", "epoch": epoch, "step": 10 * epoch, "loss": 2 / epoch}
    return [step, end | {"gradient_norm": float("nan")}]


def main(directory: Path, options: types.SimpleNamespace) -> None:
    if options.without_wandb:
        sys.modules["wandb"] = types.ModuleType("wandb")  # as the folder `wandb/` would import
    if options.largest_file:  # as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.largest_file,) * 2)
    wandb_run.CHECK_SECONDS, wandb_run.FINISH_SECONDS = 1.0, 3.0
    config = {"epochs": options.epochs, "data_dir": Path("dataset")}
    names = {"group": "a group", "job_type": "train", "run_id": "abcd1234"}
    with (
        MetricsLog(directory / "metrics.jsonl", 10 * options.from_epoch) as metrics,
        Tracker(options.mode, directory / "wandb", config=config, **names) as tracker,
    ):
        print("started", flush=True)
        (directory / "run_id").write_text(str(tracker.run_id))
        if options.kill_service:
            for children in Path("/proc/self/task").glob("*/children"):
                for pid in children.read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
        for epoch in range(options.from_epoch + 1, options.epochs + 1):
            for record in records(epoch):
                metrics.write(record)
                tracker.log(record, PREFIXES[record["kind"]])
            time.sleep(options.pause)
            if epoch == options.kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
        pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
        Image.fromarray(pixels).save(directory / "figure.png")
        tracker.log({"nmi": np.float32(0.25), "method": "a word"}, "test")
        tracker.image("figure", directory / "figure.png")
        tracker.table("examples", ["image", "class"], [[pixels, "<cat>"]])


def clean_environment(directory: Path) -> dict[str, str]:
    """This one without any trace of the machine's own W&B settings."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "XDG", "NETRC"))}
    (directory / "home").mkdir()
    return inherited | {"HOME": str(directory / "home"), "PYTHONPATH": str(ROOT)}


def assert_trained(directory: Path, epochs: int = 3) -> None:
    steps = [record["step"] for record in read_metrics(directory / "metrics.jsonl")]
    assert steps == [10 * epoch - late for epoch in range(1, epochs + 1) for late in (5, 0)]


def segments(directory: Path) -> list[Path]:
    """The log files of all run directories, oldest first."""
    return sorted(directory.glob("wandb/*run-*/*.wandb"), key=lambda log: log.parent.name[-24:])


def inspect(log: Path, environment: dict[str, str]) -> list[dict]:
    """The records in a log file."""
    reader = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    run = subprocess.run(reader, env=environment, capture_output=True, cwd=log.parent, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def history(inspected: list[dict]) -> list[dict]:
    """The logged rows among records."""
    return [own(r["history"]["item"]) for r in inspected if r["type"] == "history"]


def rows(directory: Path, environment: dict[str, str]) -> list[dict]:
    """The logged rows of a training in all segments."""
    logs = segments(directory)
    return distinct([row for log in logs for row in history(inspect(log, environment))])


def own(row: dict) -> dict:
    """Without W&B's own fields."""
    return {key: value for key, value in row.items() if not key.startswith("_")}


def expected_rows(epochs: int) -> list[dict]:
    return [row_of(record) for epoch in range(1, epochs + 1) for record in records(epoch)]


def row_of(record: dict) -> dict:
    """What W&B should hold of a record of `metrics.jsonl`."""
    prefix = {"step": "train", "epoch": "epoch"}[record["kind"]]
    numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and math.isfinite(v)}
    return {"epoch" if k == prefix else f"{prefix}/{k}": v for k, v in numbers.items()}


def distinct(logged: list[dict]) -> list[dict]:
    """The rows of a training in order; what was logged twice with the same values stands once."""
    unique = {json.dumps(row, sort_keys=True): row for row in logged}.values()
    training = [row for row in unique if "epoch" in row or "train/step" in row]
    return sorted(training, key=lambda r: ("epoch" in r, r.get("epoch", r.get("train/step"))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), types.SimpleNamespace(**(DEFAULTS | json.loads(sys.argv[2]))))
