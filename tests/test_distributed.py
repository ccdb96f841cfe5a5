"""The same training on one, two and three processes, and processes that die."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, environment
from test_faults import EPOCHS, command, wait_for_steps, wait_for_writing

from src.runtime.device import one_ahead
from src.storage import checkpoint


def torchrun(processes: int, script: Path, *arguments: object, **more: object) -> list[str]:
    options = {"nproc-per-node": processes, **more}
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--{name}={value}" for name, value in options.items()),
        *map(str, (script, *arguments)),
    ]


def run(call: list[str]) -> None:
    env = {**environment(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=["frozen float32", "train float64"])
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict], float]:
    """What came of five steps in one, two and three processes, and how far gradients may differ."""
    found = []
    for processes in (1, 2, 3):
        output = tmp_path_factory.mktemp("steps") / "kept.pt"
        script, kind = ROOT / "tests/few_steps.py", request.param.split()
        alone = [sys.executable, str(script), *kind, str(output)]
        run(alone if processes == 1 else torchrun(processes, script, *kind, output))
        found.append(torch.load(output))
    return found, 1e-4 if "float32" in request.param else 1e-9


def test_losses_gradients_and_weights_do_not_depend_on_the_number_of_processes(
    runs: tuple[list[dict], float],
) -> None:
    (alone, *others), tolerance = runs
    assert len(alone["losses"]) == len(alone["gradients"]) == 5
    for several in others:
        torch.testing.assert_close(several["losses"], alone["losses"], rtol=0, atol=1e-5)
        for ours, expected in zip(several["gradients"], alone["gradients"], strict=True):
            assert distance(ours, expected) < tolerance
        assert distance(several["model"], alone["model"]) < 1e-4


def distance(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest over the tensors, relative to the tensor's length."""
    return max(
        float((ours[name] - tensor).norm() / tensor.norm().clamp_min(1e-12))
        for name, tensor in expected.items()
        if tensor.is_floating_point()
    )


@pytest.fixture
def launched(stl10_dir: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """Where a training on two processes leaves its files, and the command."""
    call = command(stl10_dir, tmp_path / "several")
    return tmp_path / "several", torchrun(2, Path(call[1]), *call[2:])


def begin(call: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        call, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def workers(launcher: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True
    )
    return sorted(map(int, found.stdout.split()))


def assert_whole(directory: Path) -> None:
    """Nothing half-done under a final name, and nothing left over."""
    for file in checkpoint.listed(directory):
        checkpoint.load(file)
    assert not list(directory.glob(".*.tmp"))


def test_a_killed_process_ends_the_job_and_another_number_goes_on(
    launched: tuple[Path, list[str]], stl10_dir: Path
) -> None:
    """It dies while the first one writes a checkpoint, which the first one still finishes."""
    directory, call = launched
    launcher = begin(call)
    wait_for_writing(directory, 1, launcher)
    os.kill(workers(launcher)[-1], signal.SIGKILL)
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode != 0, errors
    assert_whole(directory)
    found = checkpoint.newest(directory)
    assert found
    assert 0 < found[1]["epoch"] < EPOCHS
    run(command(stl10_dir, directory))  # alone
    state = checkpoint.load(directory / checkpoint.file_name(EPOCHS))
    assert state["step"] == found[1]["scheduler"]["steps"]


def test_torchrun_starts_again_from_the_last_checkpoint(stl10_dir: Path, tmp_path: Path) -> None:
    own = command(stl10_dir, tmp_path)
    launcher = begin(torchrun(2, Path(own[1]), *own[2:], **{"max-restarts": 1}))
    wait_for_steps(tmp_path, 4, launcher)
    os.kill(workers(launcher)[0], signal.SIGKILL)
    output, errors = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, errors
    assert "going on from " in output
    assert checkpoint.load(tmp_path / checkpoint.file_name(EPOCHS))["epoch"] == EPOCHS
    assert_whole(tmp_path)


def test_sigterm_to_the_launcher_leaves_a_checkpoint(
    launched: tuple[Path, list[str]],
) -> None:
    directory, call = launched
    launcher = begin(call)
    wait_for_steps(directory, 2, launcher)
    launcher.send_signal(signal.SIGTERM)
    output, errors = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert "stopped: " in output, errors
    stopped = checkpoint.newest(directory)
    assert stopped
    assert stopped[1]["step"] >= 2
    assert_whole(directory)


def test_features_are_those_of_one_process(stl10_dir: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    run([*command(stl10_dir, checkpoints), "--epochs", "1"])
    flags = ("--checkpoint-dir", checkpoints, "--untrained", "--batch-size", 16)
    script = ROOT / "src/feature_extraction.py"
    run([sys.executable, str(script), *map(str, flags), "--feature-dir", str(tmp_path / "1")])
    for processes in (2, 3):
        own = tmp_path / str(processes)
        run(torchrun(processes, script, *flags, "--feature-dir", own))
        for file in (tmp_path / "1").glob("*.npy"):
            assert np.array_equal(np.load(file), np.load(own / file.name)), file.name
        manifest = (own / "manifest.json").read_text()
        assert manifest == (tmp_path / "1/manifest.json").read_text()
        assert {f.name for f in own.iterdir()} == {f.name for f in (tmp_path / "1").iterdir()}


def test_a_batch_that_cannot_be_shared_out_is_refused(stl10_dir: Path, tmp_path: Path) -> None:
    own = command(stl10_dir, tmp_path)
    call = torchrun(3, Path(own[1]), *own[2:])
    done = subprocess.run(call, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "--batch-size 16 cannot be shared out evenly among 3 processes" in done.stderr


def test_the_loading_thread_is_on_the_gpu_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_of = {}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda gpu: gpu_of.setdefault(threading.get_ident(), gpu)
    )
    threads = list(one_ahead(lambda _: threading.get_ident(), range(3)))
    assert gpu_of == {threads[0]: 3}
    assert threads[0] != threading.get_ident()
