"""A short training of a small network as a process: its command line, and how far it has come."""

import time
from pathlib import Path

from src.storage import checkpoint, files
from tests.helpers import HELPERS, ROOT
from tests.helpers.processes import Process, run_python, wait_for_steps

EPOCHS = 4


def command(data: Path, directory: Path, slowly: bool = False) -> list[str]:
    """`src/train.py` and its flags, after what makes the network small; `slowly` for a training to
    interrupt."""
    flags = {
        "dataset": "folder", "data-dir": data, "image-size": 48, "checkpoint-dir": directory,
        "arch": "resnet18", "epochs": EPOCHS, "batch-size": 16, "checkpoint-every": 1,
        "log-every": 1, "monitor-every": 2, "warmup-epochs": 1,
        "wandb": "disabled", "device": "cpu",
    }  # fmt: skip
    pairs = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    scripts = ("tests/helpers/slow_training.py", "src/train.py") if slowly else ("src/train.py",)
    return [*small(*scripts), *pairs]


def small(*scripts: str) -> list[str]:
    """The command of a script that is to find the small network."""
    return [str(HELPERS / "small_network.py"), *(str(ROOT / script) for script in scripts)]


def finish(*arguments: object) -> str:
    """Run Python until it ends well; returns what it printed."""
    run = run_python(*arguments)
    assert run.returncode == 0, run.stderr
    return run.stdout


def wait_for_writing(directory: Path, epoch: int, process: Process) -> Path:
    """Wait until the checkpoint after `epoch` is being written; returns its file then."""
    wait_for_steps(directory, epoch, process)
    deadline = time.monotonic() + 60
    final = directory / checkpoint.file_name(epoch)
    while time.monotonic() < deadline and not final.exists():
        for temporary in files.half_written(directory, final.name):
            return temporary
        time.sleep(0.001)
    return final


def assert_whole(directory: Path) -> None:
    """Every checkpoint is intact, and no temporary file is left."""
    for file in checkpoint.listed(directory):
        checkpoint.load(file)
    assert not list(directory.glob(".*.tmp"))
