"""Training that is killed and resumed, compared bit by bit with one that was not.

The short version runs with the other tests; `make faults` kills twenty times.
"""

import fcntl
import json
import os
import pty
import random
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from src.storage import checkpoint
from tests.helpers import HELPERS
from tests.helpers.processes import assert_refused, run_python, start_python, wait_for_steps
from tests.helpers.training_process import (
    EPOCHS,
    assert_whole,
    command,
    finish,
    small,
    wait_for_writing,
)

TIMINGS = ("images_per_second", "seconds_left")


def result(directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    state = checkpoint.load(directory / checkpoint.file_name(EPOCHS))
    lines = [json.loads(x) for x in (directory / checkpoint.METRICS_LOG).read_text().splitlines()]
    return state, [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def assert_same_run(ours: Path, theirs: Path) -> None:
    (state, log), (expected_state, expected_log) = result(ours), result(theirs)
    for part in ("model", "optimizer", "scaler", "loss", "step", "totals"):
        torch.testing.assert_close(state[part], expected_state[part], rtol=0, atol=0, msg=part)
    assert log == expected_log


@pytest.fixture(scope="module")
def undisturbed(pictures_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    finish(*command(pictures_dir, directory))
    return directory


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_in_the_middle_of_an_epoch(
    pictures_dir: Path, tmp_path: Path, undisturbed: Path, number: int, code: int
) -> None:
    process = start_python(*command(pictures_dir, tmp_path, slowly=True))
    wait_for_steps(tmp_path, 4, process)
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "run the same command to resume" in out
    assert "Traceback" not in errors
    assert "_step_" in checkpoint.listed(tmp_path)[-1].name
    finish(*command(pictures_dir, tmp_path))
    assert_same_run(tmp_path, undisturbed)
    assert not [p for p in checkpoint.listed(tmp_path) if "_step_" in p.name]


def test_a_closed_terminal_stops_with_a_checkpoint(
    pictures_dir: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """Its progress bar cannot be drawn from then on."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *command(pictures_dir, tmp_path, slowly=True)],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    log = tmp_path / checkpoint.METRICS_LOG
    while not (log.exists() and log.read_text().count('"kind": "step"') >= 4):
        os.read(ours, 65536)
    os.close(ours)
    assert process.wait(60) == 129
    assert checkpoint.listed(tmp_path)[-1].name < checkpoint.file_name(EPOCHS)
    finish(*command(pictures_dir, tmp_path))
    assert_same_run(tmp_path, undisturbed)


def test_a_pipe_that_ends_does_not_stop_a_run(
    pictures_dir: Path, tmp_path: Path, undisturbed: Path
) -> None:
    ours, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, *command(pictures_dir, tmp_path)], stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.close(ours)
    assert process.wait(120) == 0
    assert_same_run(tmp_path, undisturbed)


def kill_and_resume(data: Path, directory: Path, times: int, seed: int) -> None:
    """SIGKILL at a random moment after at least one more epoch and a step that is not saved."""
    chance = random.Random(seed)
    while times:
        process = start_python(*command(data, directory, slowly=True))
        try:
            wait_for_steps(directory, steps_on_disk(directory) + chance.randint(4, 5), process)
        except AssertionError:
            if process.returncode == 0:  # it ended before it could be killed: try again
                for file in checkpoint.listed(directory)[1:]:
                    file.unlink()
                continue
            raise
        time.sleep(chance.uniform(0, 0.6))
        process.kill()
        process.communicate()
        times -= 1


def steps_on_disk(directory: Path) -> int:
    """The number of steps that a resumed training starts with."""
    files = checkpoint.listed(directory)
    return checkpoint.load(files[-1])["step"] if files else 0


@pytest.mark.parametrize(
    "times", [2, pytest.param(20, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])]
)
def test_sigkill(pictures_dir: Path, tmp_path: Path, undisturbed: Path, times: int) -> None:
    kill_and_resume(pictures_dir, tmp_path, times, seed=times)
    finish(*command(pictures_dir, tmp_path))
    assert_same_run(tmp_path, undisturbed)


def test_killed_while_a_checkpoint_is_written(
    pictures_dir: Path, tmp_path: Path, undisturbed: Path
) -> None:
    process = start_python(*command(pictures_dir, tmp_path, slowly=True))
    temporary = wait_for_writing(tmp_path, 2, process)
    process.kill()
    process.communicate()
    assert temporary.exists()
    assert not (tmp_path / checkpoint.file_name(2)).exists()
    (tmp_path / f".{checkpoint.file_name(2, 1)}.tmp").touch()  # of an earlier kill
    finish(*command(pictures_dir, tmp_path))
    assert_same_run(tmp_path, undisturbed)
    assert_whole(tmp_path)


def test_a_disk_that_fills_up(pictures_dir: Path, tmp_path: Path, undisturbed: Path) -> None:
    """In training and in extraction: one line, exit code 1, and earlier files are intact."""
    limited = HELPERS / "full_disk.py"
    run = run_python(limited, 300_000, *command(pictures_dir, tmp_path / "checkpoints"))
    assert_refused(run, 1, "could not be written")
    assert not list((tmp_path / "checkpoints").glob("*.pt*"))

    features = tmp_path / "features"
    flags = ("--checkpoint-dir", undisturbed, "--feature-dir", features, "--device", "cpu")
    extract = (*small("src/feature_extraction.py"), *flags)
    finish(*extract)
    before = {p.name: p.read_bytes() for p in features.glob("*.npy")}
    assert_refused(run_python(limited, 4000, *extract), 1, "too large")
    assert {p.name: p.read_bytes() for p in features.glob("*.npy")} == before
    assert not list(features.glob(".*.tmp"))


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs Linux's read-only /sys")
def test_a_read_only_directory(pictures_dir: Path, undisturbed: Path) -> None:
    """/sys takes no files, not even from root."""
    read_only = Path("/sys/kernel/run")
    extract = [*small("src/feature_extraction.py"), "--checkpoint-dir", str(undisturbed)]
    for script in (command(pictures_dir, read_only), [*extract, "--feature-dir", str(read_only)]):
        assert_refused(run_python(*script), 1, "not permitted")


def test_two_trainers_at_once(pictures_dir: Path, tmp_path: Path) -> None:
    first = start_python(*command(pictures_dir, tmp_path, slowly=True), "--epochs", 100)
    wait_for_steps(tmp_path, 1, first)
    second = run_python(*command(pictures_dir, tmp_path))
    first.kill()
    first.communicate()
    assert_refused(second, 2, "another training run")
