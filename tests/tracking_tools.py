"""What the tests of tracking share: a run as a process, and what W&B's own viewer finds in it."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

from src.storage.metrics_log import read_metrics
from tests.fake_wandb_server import FakeServer
from tests.tracked_run import records

ROOT = Path(__file__).parents[1]
KEY = "0123456789abcdef0123456789abcdef01234567"
QUICK = {"FLUSH_SECONDS": 0.2, "CHECK_SECONDS": 1.0, "INIT_SECONDS": 3.0, "FINISH_SECONDS": 40.0}


def clean_environment(directory: Path) -> dict[str, str]:
    """This one without any trace of the machine's own W&B settings."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "XDG", "NETRC"))}
    home = directory / "home"
    home.mkdir()
    return inherited | {"HOME": str(home), "PYTHONPATH": str(ROOT)}


def online(environment: dict[str, str], server: FakeServer) -> dict[str, str]:
    return environment | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}


def command(directory: Path, **options: object) -> list[str]:
    options = {"seconds": QUICK} | options
    return [sys.executable, str(ROOT / "tests/tracked_run.py"), str(directory), json.dumps(options)]


def track(
    directory: Path, environment: dict[str, str], **options: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(directory, **options),
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def seconds_to(event: str, run: subprocess.CompletedProcess[str]) -> float:
    found = re.search(rf"^{event} ([\d.]+)", run.stdout, re.MULTILINE)
    assert found, run.stdout + run.stderr
    return float(found[1])


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("wandb/*run-*/*.wandb"), key=lambda log: log.parent.name[-40:])


def inspect(log: Path, environment: dict[str, str]) -> list[dict]:
    """The records in a log file, by W&B's own reader."""
    reader = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    run = subprocess.run(reader, env=environment, capture_output=True, cwd=log.parent, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def rows(directory: Path, environment: dict[str, str]) -> list[dict]:
    """The history rows of all segments."""
    return [
        without_wandbs_own(record["history"]["item"])
        for log in segments(directory)
        for record in inspect(log, environment)
        if record["type"] == "history"
    ]


def uploaded(server: FakeServer) -> list[dict]:
    return [without_wandbs_own(row) for row in server.rows]


def without_wandbs_own(row: dict) -> dict:
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


def in_order(history: list[dict]) -> list[dict]:
    """What the kill took from a segment is logged again in a later one."""
    return sorted(
        history, key=lambda row: ("epoch" in row, row.get("epoch", row.get("train/step")))
    )


def assert_trained(run: subprocess.CompletedProcess[str], directory: Path, epochs: int = 3) -> None:
    """It ended well, started in time, and metrics.jsonl has everything."""
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    assert seconds_to("started", run) < 30
    steps = [record["step"] for record in read_metrics(directory / "metrics.jsonl")]
    assert steps == [10 * epoch - late for epoch in range(1, epochs + 1) for late in (5, 0)]


def warnings(run: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in run.stderr.splitlines() if line]
