"""The benchmarks of a finished run and of minutes of training, on the digits."""

import itertools
import json
import math
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import inference_check, inference_throughput, naming, time_to_target
from benchmarks.inference_check import CheckConfig, calibration_error
from benchmarks.inference_throughput import ThroughputConfig
from benchmarks.simclr_contestants import Ours, new_contestant
from benchmarks.time_to_target import TargetConfig, cpu_seconds, minutes_to, table
from src.models.architectures import ARCHITECTURES
from src.runtime.cli import UserError
from src.training.flags import DEFAULTS, TrainConfig
from tests.helpers.blobs import blobs
from tests.helpers.digits import digits, write_digits
from tests.helpers.finished_run import FinishedRun


@pytest.fixture(scope="module")
def features(digits_run: FinishedRun) -> Path:
    return digits_run.features


@pytest.mark.faults
def test_every_image_in_its_cluster(features: Path, capsys: pytest.CaptureFixture) -> None:
    inference_check.main(CheckConfig(features, onnx_images=70))
    train, test = map(json.loads, capsys.readouterr().out.splitlines())
    for result, images in ((train, 1438), (test, 359)):
        assert (result["images"], result["cluster_differences"]) == (images, 0)
        assert (result["onnx_compared"], result["onnx_differences"]) == (70, 0)
    # The confidence scale was fitted to these labels.
    assert train["calibration_error"] < 0.15
    assert train["calibration_error"] != train["calibration_error_without_labels"]


@pytest.mark.faults
def test_throughput_on_a_folder(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for i in range(3):
        Image.new("RGB", (40, 50), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
    inference_throughput.main(ThroughputConfig(tmp_path, features, rounds=1, json=True))
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 3
    rates = result["images_per_second"]
    assert result["ratios"]["ONNX Runtime / PyTorch"] == pytest.approx(
        rates["ONNX Runtime float32"] / rates["PyTorch float32"]
    )


def test_calibration_error_bin_by_bin() -> None:
    rng = np.random.default_rng(0)
    sure = rng.random(1000)
    right = rng.random(1000) < sure**2
    expected = 0.0
    for low in np.arange(15) / 15:
        chosen = (sure >= low) & (sure < low + 1 / 15)
        if chosen.any():
            expected += chosen.mean() * abs(sure[chosen].mean() - right[chosen].mean())
    assert calibration_error(sure, right) == pytest.approx(expected)
    assert calibration_error(np.ones(4), np.array([True, True, True, False])) == 0.25


@pytest.fixture
def seconds_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute of a small network in which every step takes a second."""
    small = ARCHITECTURES["resnet8"]._replace(widths=(8, 16, 32))
    monkeypatch.setitem(ARCHITECTURES, "resnet8", small)
    monkeypatch.setitem(DEFAULTS["digits"], "warmup_epochs", 0.1)  # 4 steps
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)))
    monkeypatch.setattr(time_to_target, "time", clock)
    monkeypatch.setattr(time_to_target, "SAVE_SECONDS", 10)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)


def rows_of(config: TargetConfig) -> list[dict[str, Any]]:
    lines = (config.output / "results.jsonl").read_text().splitlines()
    return list(map(json.loads, lines))


@pytest.mark.usefixtures("seconds_of_steps")
def test_time_to_target_continues_a_run_and_skips_finished_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fields = {
        "contestants": ("ours",),
        "minutes": (0.5,),
        "threads": torch.get_num_threads(),
        "batch_size": 32,
    }
    whole = TargetConfig(output=tmp_path / "whole", **fields)
    with monkeypatch.context() as patch:
        patch.setattr(time_to_target, "cpu_seconds", lambda: np.zeros(2))
        time_to_target.main(whole)
    (expected,) = rows_of(whole)
    assert 25 < expected["steps"] <= 30
    assert expected["seconds"] >= 30
    assert not expected["is_disturbed"]
    assert f"{expected['knn_accuracy']:.3f} " in capsys.readouterr().out

    stopped = TargetConfig(output=tmp_path / "stopped", **fields)
    step, calls, busy = Ours.step, itertools.count(), itertools.count(0, 1000)

    def interrupted(self: Ours, share: float) -> None:
        if next(calls) == 15:
            raise KeyboardInterrupt
        step(self, share)

    monkeypatch.setattr(Ours, "step", interrupted)
    monkeypatch.setattr(time_to_target, "cpu_seconds", lambda: np.array([next(busy), 0.0]))
    with pytest.raises(KeyboardInterrupt):
        time_to_target.main(stopped)
    assert len(list(stopped.output.glob("ours-*.pt"))) == 1
    time_to_target.main(stopped)
    (row,) = rows_of(stopped)
    for name in ("steps", "seconds", "knn_accuracy"):
        assert row[name] == expected[name]
    assert row["is_disturbed"]
    assert f"{row['knn_accuracy']:.3f}*" in capsys.readouterr().out
    assert not list(stopped.output.glob("*.pt"))

    before = next(calls)
    time_to_target.main(stopped)
    assert rows_of(stopped) == [row]
    assert next(calls) == before + 1  # no step between


@pytest.mark.faults
def test_a_peer_trains_as_documented() -> None:
    """Adam at a constant rate until epoch 10, both views in one batch, pixels from 0 to 1."""
    images = digits()[:48]
    peer = new_contestant(
        "sthalles-resnet18", TrainConfig("digits"), [images[:8], images[8:]], 16, 0
    )
    before = {name: value.clone() for name, value in peer.network.state_dict().items()}
    sizes: list[int] = []
    peer.network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    for epoch, rate in ((0, 3e-4), (9, 3e-4), (10 + 1, 3e-4 * (1 + math.cos(math.pi / 3)) / 2)):
        peer.counts["steps"] = 3 * epoch
        peer.step(0.9)
        assert peer.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    assert sizes == [32, 32, 32]
    changed = [n for n, value in peer.network.state_dict().items() if not before[n].equal(value)]
    assert len(changed) == len(before)
    features = peer.features(images)
    with torch.no_grad():
        expected = peer.network[0].eval()(torch.from_numpy(images[:5]) / 255)
    np.testing.assert_allclose(features[:5], expected, rtol=1e-4, atol=1e-5)


def test_unknown_contestants_are_refused() -> None:
    with pytest.raises(UserError, match="--contestants nobody: choose among ours, "):
        time_to_target.main(TargetConfig(contestants=("ours", "nobody")))


def test_everybody_begins_with_random_weights_on_a_folder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        write_digits(tmp_path / "pictures/train" / name, 12)
    given: list[TrainConfig] = []

    def refuse(name: str, flags: TrainConfig, images: list[np.ndarray], *_: Any) -> None:
        given.append(flags)
        assert [part.shape for part in images] == [(24, 3, 96, 96)]
        raise UserError(name)

    monkeypatch.setattr(time_to_target, "new_contestant", refuse)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    folder = {"data_dir": tmp_path / "pictures", "output": tmp_path / "output"}
    with pytest.raises(UserError, match="ours"):
        time_to_target.main(TargetConfig("folder", threads=torch.get_num_threads(), **folder))
    assert (given[0].weights, given[0].image_size) == ("none", 96)


def test_seconds_of_this_process_and_of_the_machine() -> None:
    machine, own = cpu_seconds()
    started = time.process_time()
    while time.process_time() - started < 0.3:
        pass
    later_machine, later_own = cpu_seconds()
    assert 0.27 < later_own - own < 0.6
    assert later_machine - machine > 0.25


def test_minutes_to_an_accuracy_and_their_ratio() -> None:
    points = [(10.0, 0.40), (20.0, 0.48), (40.0, 0.46)]
    assert minutes_to(0.44, points) == pytest.approx(10 * 2**0.5)
    assert minutes_to(0.3, points) is None
    assert minutes_to(0.5, points) == math.inf
    rows = [
        {"contestant": name, "minutes": m, "seconds": 60 * m, "knn_accuracy": knn,
         "is_disturbed": name == "b" and m == 40}
        for name, runs in {"a": points, "b": [(10, 0.2), (20, 0.36), (40, 0.44)]}.items()
        for m, knn in runs
    ]  # fmt: skip
    lines = table(rows, TargetConfig(contestants=("a", "b"), targets=(0.3, 0.44, 0.5)))
    assert [line.split() for line in lines.splitlines()[1:]] == [
        ["a", "0.400", "0.480", "0.460", "<10", "14.1", "(1.00", "x)", ">40"],
        ["b", "0.200", "0.360", "0.440*", "15.4", "40.0", "(2.83", "x)", ">40"],
    ]


def test_a_person_names_clear_groups_rightly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, labels = blobs(240, 1)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", labels)
    naming.main(naming.NamingConfig(tmp_path / "x.npy", tmp_path / "y.npy", seeds=1))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["10", "30", "50"]
    for row in rows:
        assert row[1::2] == ["1.000"] * 4
        assert all(float(cell.strip("()")) < 0.8 for cell in row[2::2])
