"""Upload offline Weights & Biases runs, and check that each really arrived.

    python src/sync_wandb.py                   every offline run that has not arrived yet
    python src/sync_wandb.py wandb/run-...     this one, also if it was online and cut off

Reads the run directories in `wandb/`, oldest first, one at a time: the segments of a run that was
interrupted and resumed become one run, and a damaged one does not stop the others. W&B marks what
arrived with a `*.wandb.synced` file. Exit code 1 when something did not arrive. Log in before,
with `wandb login`.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from src.runtime.cli import RunError, UserError, run_script
from src.tracking import wandb_run

SYNC_SECONDS = 3600
"""For one directory."""
LIVE_SECONDS = 60
"""A running run writes its log every 15 seconds, if only how busy the machine is."""

TORN = "ends with an incomplete record"
"""What W&B says after it uploaded all whole records of a run that was killed while writing. The
resumed run has logged again what was lost."""


@dataclass(frozen=True)
class SyncConfig:
    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run directories; without any, all offline ones that have not arrived."""
    wandb_dir: Path = Path("wandb")
    """Where to look for them."""


def main(config: SyncConfig) -> int:
    logs = [log_of(run) for run in config.runs] or waiting(config.wandb_dir)
    if not logs:
        print(f"nothing to sync in {config.wandb_dir}")
        return 0
    directory = config.wandb_dir.resolve()
    try:
        why = wandb_run.why_not_online(wandb_run.load_wandb(directory))
    except wandb_run.Unavailable as error:
        why = str(error)
    if why:
        raise RunError(f"cannot sync {len(logs)} run(s): {why}")
    arrived = [sync(log) for log in sorted(logs, key=wandb_run.start_time)]
    print(f"{sum(arrived)} of {len(arrived)} arrived")
    return 0 if all(arrived) else 1


def log_of(run: Path) -> Path:
    logs = sorted(run.glob("run-*.wandb"))
    if not logs:
        raise UserError(f"{run} is not a run directory: it holds no run-*.wandb")
    return logs[0]


def waiting(directory: Path) -> list[Path]:
    """The logs of offline runs under `directory` that W&B has not marked as synced."""
    logs = directory.glob("**/offline-run-*/run-*.wandb")
    return [log for log in logs if not marker(log).exists()]


def marker(log: Path) -> Path:
    return log.with_name(f"{log.name}.synced")


def sync(log: Path) -> bool:
    """Upload one run directory and print a line; whether all that is in it arrived."""
    if is_running(log):
        print(f"{log.parent}: still running, sync it when it has ended")
        return False
    marker(log).unlink(missing_ok=True)
    errors = upload(log)
    # W&B leaves with 0 in any case.
    if [TORN in error for error in errors] == [True]:
        marker(log).touch()
        print(f"{log.parent}: arrived, up to where it was killed")
    elif marker(log).exists():
        print(f"{log.parent}: arrived")
    else:
        print(f"{log.parent}: did NOT arrive: {' '.join(errors) or 'no reason given'}")
    return marker(log).exists()


def is_running(log: Path) -> bool:
    """Whether the log was written to just now and says nothing of an end."""
    if time.time() - log.stat().st_mtime > LIVE_SECONDS:
        return False
    try:
        return not wandb_run.has_ended(log)
    except subprocess.SubprocessError:  # damaged: the upload says how
        return False


def upload(log: Path) -> list[str]:
    """Run `wandb sync` on one directory; returns the errors it prints."""
    directory = log.resolve().parent
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", str(directory)]
    try:  # two levels up its own log file lands in `wandb/` too
        run = subprocess.run(
            command, cwd=directory.parents[1], capture_output=True, text=True, timeout=SYNC_SECONDS
        )
    except subprocess.TimeoutExpired:
        return [f"no end after {SYNC_SECONDS} s"]
    lines = (run.stdout + run.stderr).splitlines()
    return [line.split("ERROR", 1)[1].strip() for line in lines if "ERROR" in line]


if __name__ == "__main__":
    run_script(main, SyncConfig)
