"""The same training on one, two and three processes, and processes that die."""

import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed import run

from src.runtime.prefetch import prefetch
from src.storage import checkpoint
from tests.helpers import HELPERS
from tests.helpers.processes import Process, start_python, wait_for_steps
from tests.helpers.training_process import (
    EPOCHS,
    assert_whole,
    command,
    finish,
    small,
    wait_for_writing,
)


def torchrun(processes: int, *script: object, **more: object) -> list[str]:
    """The command of a script and its flags under torchrun, whose processes are forked, without the
    seconds that importing torch takes."""
    options = {"nproc-per-node": processes, "start-method": "fork", **more}
    return [
        *(run.__file__, "--standalone", "--run-path"),
        *(f"--{name}={value}" for name, value in options.items()),
        *map(str, script),
    ]


def together(processes: int, *script: object) -> list[subprocess.CompletedProcess[str]]:
    """The script in several processes, started as torchrun does, without its seconds."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = []
    for rank in map(str, range(processes)):
        env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(processes)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        started.append(start_python(*script, **env))
    outputs = [process.communicate(timeout=240) for process in started]
    return [
        subprocess.CompletedProcess(script, process.wait(), *texts)
        for process, texts in zip(started, outputs, strict=True)
    ]


@pytest.mark.parametrize(
    ("bn", "dtype", "tolerance"), [("frozen", "float32", 1e-4), ("train", "float64", 1e-9)]
)
def test_losses_gradients_and_weights_do_not_depend_on_the_number_of_processes(
    bn: str, dtype: str, tolerance: float, tmp_path: Path
) -> None:
    results = []
    for processes in (1, 2, 3):
        output = tmp_path / str(processes) / "results.pt"
        output.parent.mkdir()
        script = (HELPERS / "few_steps.py", bn, dtype, output)
        for done in together(processes, *script):
            assert done.returncode == 0, done.stderr
        results.append(torch.load(output))
    alone, *others = results
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


def workers(launcher: Process) -> list[int]:
    children = subprocess.run(
        ["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True
    )
    return sorted(map(int, children.stdout.split()))


def test_a_killed_process_ends_the_job_and_another_number_resumes_it(
    pictures_dir: Path, tmp_path: Path
) -> None:
    """It dies while the main process writes a checkpoint, which the main process still finishes."""
    launcher = start_python(*torchrun(2, *command(pictures_dir, tmp_path, slowly=True)))
    wait_for_writing(tmp_path, 1, launcher)
    os.kill(workers(launcher)[-1], signal.SIGKILL)
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode != 0, errors
    assert_whole(tmp_path)
    newest = checkpoint.load(checkpoint.listed(tmp_path)[-1])
    assert 0 < newest["epoch"] < EPOCHS
    assert "resuming from" in finish(*command(pictures_dir, tmp_path))  # one process
    assert checkpoint.load(tmp_path / checkpoint.file_name(EPOCHS))["epoch"] == EPOCHS


@pytest.mark.faults
def test_torchrun_restarts_from_the_last_checkpoint(pictures_dir: Path, tmp_path: Path) -> None:
    """With --fresh too, which holds for the first start only."""
    training = (*command(pictures_dir, tmp_path, slowly=True), "--fresh")
    launcher = start_python(*torchrun(2, *training, **{"max-restarts": 1}))
    wait_for_steps(tmp_path, 4, launcher)
    os.kill(workers(launcher)[0], signal.SIGKILL)
    output, errors = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, errors
    assert "resuming from " in output
    assert checkpoint.load(tmp_path / checkpoint.file_name(EPOCHS))["epoch"] == EPOCHS
    assert_whole(tmp_path)


def test_sigterm_to_the_launcher_leaves_a_checkpoint(pictures_dir: Path, tmp_path: Path) -> None:
    launcher = start_python(*torchrun(2, *command(pictures_dir, tmp_path, slowly=True)))
    wait_for_steps(tmp_path, 2, launcher)
    launcher.send_signal(signal.SIGTERM)
    output, errors = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert "stopped: " in output, errors
    assert checkpoint.load(checkpoint.listed(tmp_path)[-1])["step"] >= 2
    assert_whole(tmp_path)


def test_features_are_those_of_one_process(pictures_dir: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    finish(*command(pictures_dir, checkpoints), "--epochs", 1)
    flags = ("--checkpoint-dir", checkpoints, "--untrained", "--batch-size", 16)
    script = small("src/feature_extraction.py")
    finish(*script, *flags, "--feature-dir", tmp_path / "1")
    for processes in (2, 3):
        own = tmp_path / str(processes)
        for done in together(processes, *script, *flags, "--feature-dir", own):
            assert done.returncode == 0, done.stderr
        for file in (tmp_path / "1").glob("*.npy"):
            assert np.array_equal(np.load(file), np.load(own / file.name)), file.name
        manifest = (own / "manifest.json").read_text()
        assert manifest == (tmp_path / "1/manifest.json").read_text()
        assert {f.name for f in own.iterdir()} == {f.name for f in (tmp_path / "1").iterdir()}


def test_a_batch_that_processes_cannot_share_is_refused(pictures_dir: Path, tmp_path: Path) -> None:
    for done in together(3, *command(pictures_dir, tmp_path)):
        assert done.returncode == 2
        assert "--batch-size 16 must be a multiple of the 3 processes" in done.stderr


def test_the_loading_thread_is_on_the_gpu_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_of = {}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda gpu: gpu_of.setdefault(threading.get_ident(), gpu)
    )
    threads = list(prefetch(lambda _: threading.get_ident(), range(3)))
    assert gpu_of == {threads[0]: 3}
    assert threads[0] != threading.get_ident()
