"""Training that is killed, and the run that comes out of it compared bit by bit.

The short version runs with the other tests; `make faults` kills twenty times.
"""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, environment, wait_for_steps

from src.storage import artifacts, checkpoint

EPOCHS = 4
TIMINGS = ("images_per_second", "seconds_left")


def command(data: Path, directory: Path) -> list[str]:
    flags = {
        "data-dir": data, "checkpoint-dir": directory, "arch": "resnet18", "epochs": EPOCHS,
        "batch-size": 16, "checkpoint-every": 1, "log-every": 1, "monitor-every": 2,
        "warmup-epochs": 1, "wandb": "disabled", "device": "cpu",
    }  # fmt: skip
    pairs = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    return [sys.executable, str(ROOT / "src/train.py"), *pairs]


def begin(data: Path, directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(data, directory), env=environment(), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(data: Path, directory: Path) -> None:
    process = begin(data, directory)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def result(directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    state = checkpoint.load(directory / checkpoint.file_name(EPOCHS))
    lines = [json.loads(x) for x in (directory / checkpoint.METRICS_LOG).read_text().splitlines()]
    return state, [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def assert_equal(ours: Any, theirs: Any, name: str = "") -> None:
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), name
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), name
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{name}.{key}")
    else:
        assert ours == theirs, name


def assert_same_run(ours: Path, theirs: Path) -> None:
    (state, log), (expected_state, expected_log) = result(ours), result(theirs)
    for part in ("model", "optimizer", "scaler", "loss", "step", "totals"):
        assert_equal(state[part], expected_state[part], part)
    assert log == expected_log


@pytest.fixture(scope="module")
def undisturbed(stl10_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    finish(stl10_dir, directory)
    return directory


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_middle_of_an_epoch(
    stl10_dir: Path, tmp_path: Path, undisturbed: Path, number: int, code: int
) -> None:
    process = begin(stl10_dir, tmp_path)
    wait_for_steps(tmp_path, 4, process)
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "the same command goes on" in out
    assert "Traceback" not in errors
    assert "_step_" in checkpoint.listed(tmp_path)[-1].name
    finish(stl10_dir, tmp_path)
    assert_same_run(tmp_path, undisturbed)
    assert not [p for p in checkpoint.listed(tmp_path) if "_step_" in p.name]


def kill_and_resume(data: Path, directory: Path, times: int, seed: int) -> None:
    """SIGKILL after a random number of steps, at a random moment of the next one."""
    chance = random.Random(seed)
    done = 0
    while done < times:
        process = begin(data, directory)
        try:
            wait_for_steps(directory, steps_on_disk(directory) + chance.randint(0, 2), process)
        except AssertionError:
            if process.returncode == 0:  # it came to its end before its death: once more
                for file in checkpoint.listed(directory)[1:]:
                    file.unlink()
                continue
            raise
        time.sleep(chance.uniform(0, 0.6))
        process.kill()
        process.communicate()
        done += 1


def steps_on_disk(directory: Path) -> int:
    """How many step lines a resumed run starts with."""
    files = checkpoint.listed(directory)
    return checkpoint.load(files[-1])["step"] if files else 0


def test_sigkill(stl10_dir: Path, tmp_path: Path, undisturbed: Path) -> None:
    kill_and_resume(stl10_dir, tmp_path, times=2, seed=0)
    finish(stl10_dir, tmp_path)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_sigkill_twenty_times(stl10_dir: Path, tmp_path: Path, undisturbed: Path) -> None:
    kill_and_resume(stl10_dir, tmp_path, times=20, seed=1)
    finish(stl10_dir, tmp_path)
    assert_same_run(tmp_path, undisturbed)


def wait_for_writing(directory: Path, epoch: int, process: subprocess.Popen[str]) -> Path:
    """Until the checkpoint after `epoch` is being written; returns the temporary file."""
    wait_for_steps(directory, epoch, process)
    deadline = time.monotonic() + 60
    final = directory / checkpoint.file_name(epoch)
    temporary = artifacts.temporary_path(final)
    while not (temporary.exists() or final.exists()) and time.monotonic() < deadline:
        time.sleep(0.001)
    return temporary


def test_killed_while_a_checkpoint_is_written(
    stl10_dir: Path, tmp_path: Path, undisturbed: Path
) -> None:
    process = begin(stl10_dir, tmp_path)
    temporary = wait_for_writing(tmp_path, 2, process)
    process.kill()
    process.communicate()
    assert temporary.exists()
    assert not (tmp_path / checkpoint.file_name(2)).exists()
    finish(stl10_dir, tmp_path)
    assert_same_run(tmp_path, undisturbed)
    assert not list(tmp_path.glob(".*.tmp"))


def limited(kilobytes: int, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a script that cannot write files longer than this, as on a disk that fills up."""
    shell = f'ulimit -f {kilobytes}; trap "" XFSZ; exec "$@"'
    return subprocess.run(
        ["bash", "-c", shell, "limited", *map(str, command)],
        env=environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_a_disk_that_fills_up(stl10_dir: Path, tmp_path: Path, undisturbed: Path) -> None:
    """In training and in extraction: one line, exit code 1, and what was there is intact."""
    run = limited(10_000, *command(stl10_dir, tmp_path / "checkpoints"))
    assert run.returncode == 1, run.stderr
    assert "could not be written" in run.stderr
    assert "Traceback" not in run.stderr
    assert not list((tmp_path / "checkpoints").glob("*.pt*"))

    features = tmp_path / "features"
    flags = ("--checkpoint-dir", undisturbed, "--feature-dir", features, "--device", "cpu")
    extract = (sys.executable, ROOT / "src/feature_extraction.py", *flags)
    assert subprocess.run(list(map(str, extract)), env=environment()).returncode == 0
    before = {p.name: p.read_bytes() for p in features.glob("*.npy")}
    run = limited(20, *extract)
    assert run.returncode == 1, run.stderr
    assert "too large" in run.stderr
    assert "Traceback" not in run.stderr
    assert {p.name: p.read_bytes() for p in features.glob("*.npy")} == before
    assert not list(features.glob(".*.tmp"))


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs Linux's read-only /sys")
def test_a_read_only_directory(stl10_dir: Path, undisturbed: Path) -> None:
    """/sys takes no files, not even from root."""
    nowhere = Path("/sys/kernel/run")
    extract = [ROOT / "src/feature_extraction.py", "--checkpoint-dir", undisturbed]
    for script in (
        command(stl10_dir, nowhere),
        [sys.executable, *map(str, extract), "--feature-dir", str(nowhere)],
    ):
        run = subprocess.run(script, env=environment(), capture_output=True, text=True, timeout=120)
        assert run.returncode == 1
        assert "not permitted" in run.stderr
        assert len(run.stderr.strip().splitlines()) == 1


def test_two_trainers_at_once(stl10_dir: Path, tmp_path: Path) -> None:
    first = begin(stl10_dir, tmp_path)
    wait_for_steps(tmp_path, 1, first)
    second = begin(stl10_dir, tmp_path)
    _, errors = second.communicate(timeout=120)
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert "another training run" in errors
    assert len(errors.strip().splitlines()) == 1
