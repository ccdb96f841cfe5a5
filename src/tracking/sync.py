"""Upload offline Weights & Biases runs, and check that each really arrived."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from src.runtime.cli import RunError, UserError
from src.tracking.wandb_run import load_wandb, why_not_online


@dataclass(frozen=True)
class SyncConfig:
    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run directories; without any, all offline ones that have not arrived."""
    wandb_dir: Path = Path("wandb")
    """Where to look for them."""


def run(config: SyncConfig) -> int:
    logs = list(config.wandb_dir.glob("**/offline-run-*/run-*.wandb"))
    runs = config.runs or [log.parent for log in logs if not Path(f"{log}.synced").exists()]
    for run in runs:
        if not any(run.glob("run-*.wandb")):
            raise UserError(
                f"{run} is not a run directory: it holds no run-*.wandb; without a directory, all "
                f"offline runs are uploaded, of which {config.wandb_dir} holds {len(logs)}"
            )
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


def sync(run: Path) -> bool:
    """Upload one run directory and print a line; returns whether all of it arrived."""
    log = next(run.resolve().glob("run-*.wandb"))
    marker = Path(f"{log}.synced")
    marker.unlink(missing_ok=True)
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", str(log.parent)]
    # Started two levels up, W&B puts the log of the upload into `wandb/` too.
    process = subprocess.run(
        command, cwd=log.parents[2], capture_output=True, encoding="utf-8", errors="replace"
    )
    lines = (process.stdout + process.stderr).splitlines()
    errors = [line.split("ERROR", 1)[1].strip() for line in lines if "ERROR" in line]
    if len(errors) == 1 and "ends with an incomplete record" in errors[0]:  # all others arrived
        marker.touch()
        print(f"{run}: arrived, up to where it was killed")
    elif marker.exists():  # W&B exits with 0 in any case
        print(f"{run}: arrived")
    else:
        print(f"{run}: did NOT arrive: {' '.join(errors) or 'no reason given'}")
    return marker.exists()
