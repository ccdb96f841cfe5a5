"""Upload offline Weights & Biases runs, and check that each really arrived.

    python src/sync_wandb.py                   every offline run that has not arrived yet
    python src/sync_wandb.py wandb/run-...     this one, also if it was online and cut off

One directory at a time, oldest first: those of an interrupted and resumed run become one run, and a
damaged one does not stop the others. W&B marks what arrived with a `*.wandb.synced` file. Exit code
1 when something did not arrive. Log in first, with `wandb login`, and let running runs end.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's own packages

from src.runtime.cli import run_script
from src.tracking.sync import SyncConfig


def main(config: SyncConfig) -> int:
    from src.tracking.sync import run

    return run(config)


if __name__ == "__main__":
    run_script(main, SyncConfig)
