"""A training in miniature that only tracks, run by the tests as a process; and how they read what
it left, with W&B's own viewer.

    python tests/tracked_run.py DIRECTORY '{"mode": "offline", "epochs": 3}'
"""

import json
import math
import os
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

ROOT = Path(__file__).parents[1]
KEY = "0123456789abcdef0123456789abcdef01234567"
DEFAULTS = {
    "mode": "auto", "epochs": 3, "from_epoch": 0, "pause": 0.0, "pictures": False,
    "kill_after": None, "kill_service": False, "without_wandb": False,
}  # fmt: skip


def records(epoch: int) -> list[dict]:
    """What an epoch writes, the same in every run."""
    step = {"kind": "step", "step": 10 * epoch - 5, "epoch": epoch - 0.5, "loss": 1 / epoch}
    end = {"kind": "epoch", "epoch": epoch, "step": 10 * epoch, "loss": 2 / epoch}
    return [step | {"gpu_utilization": 93.0}, end | {"gradient_norm": float("nan")}]


def log_pictures(directory: Path, tracker: Tracker) -> None:
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    Image.fromarray(pixels).save(directory / "figure.png")
    tracker.log({"hungarian_accuracy": 0.5, "nmi": np.float32(0.25)}, "test")
    tracker.log({"component": 1, "cumulative": 0.75}, "pca")
    tracker.image("figures/confusion", directory / "figure.png")
    tracker.table("examples", ["image", "cluster", "class"], [[pixels, 3, "<cat>"]])


def main(directory: Path, options: types.SimpleNamespace) -> None:
    if options.without_wandb:
        sys.modules["wandb"] = types.ModuleType("wandb")  # as the folder `wandb/` would import
    wandb_run.CHECK_SECONDS, wandb_run.FINISH_SECONDS = 1.0, 6.0
    with (
        MetricsLog(directory / "metrics.jsonl", 10 * options.from_epoch) as metrics,
        Tracker(
            options.mode, directory / "wandb", group="a group", job_type="train", run_id="abcd1234",
            config={"epochs": options.epochs, "data_dir": Path("dataset"), "commit": "abc"},
        ) as tracker,
    ):  # fmt: skip
        print("started", flush=True)
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
        if options.pictures:
            log_pictures(directory, tracker)


def clean_environment(directory: Path) -> dict[str, str]:
    """This one without any trace of the machine's own W&B settings."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "XDG", "NETRC"))}
    (directory / "home").mkdir()
    return inherited | {"HOME": str(directory / "home"), "PYTHONPATH": str(ROOT)}


def command(directory: Path, **options: object) -> list[str]:
    return [sys.executable, str(ROOT / "tests/tracked_run.py"), str(directory), json.dumps(options)]


def track(
    directory: Path, environment: dict[str, str], **options: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(directory, **options),
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def assert_trained(run: subprocess.CompletedProcess[str], directory: Path, epochs: int = 3) -> None:
    """It ended well, and metrics.jsonl has everything."""
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
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
    """The logged rows among records, without W&B's own fields."""
    return [own(r["history"]["item"]) for r in inspected if r["type"] == "history"]


def rows(directory: Path, environment: dict[str, str]) -> list[dict]:
    """The logged rows of all segments."""
    return [row for log in segments(directory) for row in history(inspect(log, environment))]


def own(row: dict) -> dict:
    return {key: value for key, value in row.items() if not key.startswith("_")}


def expected_rows(epochs: int) -> list[dict]:
    return [row_of(record) for epoch in range(1, epochs + 1) for record in records(epoch)]


def row_of(record: dict) -> dict:
    """What W&B should hold of a record of `metrics.jsonl`."""
    prefix = {"step": "train", "epoch": "epoch"}[record["kind"]]
    numbers = {
        f"{prefix}/{k}": v
        for k, v in record.items()
        if k != "kind" and v is not None and math.isfinite(v)
    }
    return {"epoch" if k == "epoch/epoch" else k: v for k, v in numbers.items()}


def distinct(logged: list[dict]) -> list[dict]:
    """In order of the steps; what was logged twice with the same values stands once."""
    unique = {json.dumps(row, sort_keys=True): row for row in logged}
    return sorted(
        unique.values(), key=lambda r: ("epoch" in r, r.get("epoch", r.get("train/step")))
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), types.SimpleNamespace(**(DEFAULTS | json.loads(sys.argv[2]))))
