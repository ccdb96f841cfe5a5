"""Upload offline Weights & Biases runs, and check that each really arrived.

    python src/sync_wandb.py                   every offline run that has not arrived yet
    python src/sync_wandb.py wandb/run-...     this one, also if it was online and cut off

Uploads the run directories in `wandb/` one at a time, oldest first: the segments of a run that was
interrupted and resumed become one run, and a damaged one does not stop the others. W&B marks what
arrived with a `*.wandb.synced` file. Exit code 1 when something did not arrive. Log in first, with
`wandb login`.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from src.runtime.cli import RunError, UserError, run_script
from src.tracking.wandb_run import has_ended, load_wandb, why_not_online

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
    runs = config.runs or waiting(config.wandb_dir)
    for run in runs:
        if not any(run.glob("run-*.wandb")):
            raise UserError(f"{run} is not a run directory: it holds no run-*.wandb")
    if not runs:
        print(f"nothing to sync in {config.wandb_dir}")
        return 0
    wandb, problem = load_wandb(config.wandb_dir.resolve())
    if problem := problem or why_not_online(wandb):
        raise RunError(f"cannot sync {len(runs)} run(s): {problem}")
    # By 20260131_235959 in offline-run-20260131_235959-abcd1234.
    arrived = [sync(run) for run in sorted(runs, key=lambda run: run.name.partition("run-")[2])]
    print(f"{sum(arrived)} of {len(arrived)} arrived")
    return 0 if all(arrived) else 1


def waiting(directory: Path) -> list[Path]:
    """The directories of offline runs under `directory` that W&B has not marked as synced."""
    logs = directory.glob("**/offline-run-*/run-*.wandb")
    return [log.parent for log in logs if not log.with_name(f"{log.name}.synced").exists()]


def sync(run: Path) -> bool:
    """Upload one run directory and print a line; returns whether all of it arrived."""
    log = next(run.glob("run-*.wandb"))
    marker = log.with_name(f"{log.name}.synced")
    if is_running(log):
        print(f"{run}: still running, sync it when it has ended")
        return False
    marker.unlink(missing_ok=True)
    errors = upload(run)
    if [TORN in error for error in errors] == [True]:
        marker.touch()
        print(f"{run}: arrived, up to where it was killed")
    elif marker.exists():  # W&B exits with 0 in any case
        print(f"{run}: arrived")
    else:
        print(f"{run}: did NOT arrive: {' '.join(errors) or 'no reason given'}")
    return marker.exists()


def is_running(log: Path) -> bool:
    """Whether the log was written to just now and does not record the end of the run."""
    if time.time() - log.stat().st_mtime > LIVE_SECONDS:
        return False
    try:
        return not has_ended(log)
    except subprocess.SubprocessError:  # damaged: the upload says how
        return False


def upload(run: Path) -> list[str]:
    """Run `wandb sync` on one directory; returns the errors it prints."""
    directory = run.resolve()
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", str(directory)]
    try:  # two levels up its own log file lands in `wandb/` too
        process = subprocess.run(
            command, cwd=directory.parents[1], capture_output=True, text=True, timeout=SYNC_SECONDS
        )
    except subprocess.TimeoutExpired:
        return [f"no end after {SYNC_SECONDS} s"]
    lines = (process.stdout + process.stderr).splitlines()
    return [line.split("ERROR", 1)[1].strip() for line in lines if "ERROR" in line]


if __name__ == "__main__":
    run_script(main, SyncConfig)
