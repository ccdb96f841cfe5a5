"""A training in miniature, run by the tests as a process: it only tracks.

python tests/tracked_run.py DIRECTORY '{"mode": "offline", "epochs": 3}'
"""

import json
import os
import signal
import sys
import time
import types
from pathlib import Path

import numpy as np
from PIL import Image

from src.storage.metrics_log import MetricsLog
from src.tracking import tracker as tracking
from src.tracking import wandb_run
from src.tracking.tracker import Tracker

DEFAULTS = {
    "mode": "auto",
    "epochs": 3,
    "from_epoch": 0,
    "run_id": None,
    "pause": 0.0,
    "kill_after": None,
    "harm_service": None,
    "without_wandb": False,
    "pictures": False,
    "seconds": {},
}


def records(epoch: int) -> list[dict]:
    """What an epoch writes, the same in every run."""
    step = {"kind": "step", "step": 10 * epoch - 5, "epoch": epoch - 0.5, "loss": 1 / epoch}
    step |= {"learning_rate": 1e-3 / epoch, "progress": epoch / 100, "gpu_utilization": 93.0}
    end = {"kind": "epoch", "epoch": epoch, "step": 10 * epoch, "loss": 2 / epoch}
    return [step, end | {"learning_rate": 1e-3 / epoch, "gradient_norm": float("nan")}]


def harm_service(how: str) -> None:
    import wandb

    os.kill(wandb.setup()._connection._proc._process.pid, getattr(signal, how))  # type: ignore


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
    for name, seconds in options.seconds.items():
        setattr(tracking if hasattr(tracking, name) else wandb_run, name, seconds)
    metrics = MetricsLog(directory / "metrics.jsonl", 10 * options.from_epoch)
    started = time.monotonic()
    with Tracker(
        options.mode,
        directory / "wandb",
        group="a group",
        job_type="train",
        run_id=options.run_id,
        config={"epochs": 3, "data_dir": Path("dataset"), "commit": "abc", "fingerprint": "def"},
        earlier=metrics.earlier,
    ) as tracker:
        print(f"started {time.monotonic() - started:.2f} {tracker.run_id}", flush=True)
        if options.harm_service:
            harm_service(options.harm_service)
        for epoch in range(options.from_epoch + 1, options.epochs + 1):
            for record in records(epoch):
                metrics.write(record)
                tracker.log(record, {"step": "train", "epoch": "epoch"}[record["kind"]])
            time.sleep(options.pause)
            if epoch == options.kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
        if options.pictures:
            log_pictures(directory, tracker)
        ended = time.monotonic()
    print(f"finished {time.monotonic() - ended:.2f}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), types.SimpleNamespace(**(DEFAULTS | json.loads(sys.argv[2]))))
