"""The benchmarks of a finished run, on the digits."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import inference_check, inference_throughput
from benchmarks.inference_check import CheckConfig, calibration_error
from benchmarks.inference_throughput import ThroughputConfig
from tests.helpers.finished_run import FinishedRun


@pytest.fixture(scope="module")
def features(digits_run: FinishedRun) -> Path:
    return digits_run.features


def test_every_image_in_its_cluster(features: Path, capsys: pytest.CaptureFixture) -> None:
    inference_check.main(CheckConfig(features, onnx_images=70))
    train, test = map(json.loads, capsys.readouterr().out.splitlines())
    for result, images in ((train, 1438), (test, 359)):
        assert (result["images"], result["cluster_differences"]) == (images, 0)
        assert (result["onnx_compared"], result["onnx_differences"]) == (70, 0)
    # The confidence scale was fitted to these labels.
    assert train["calibration_error"] < 0.15
    assert train["calibration_error"] != train["calibration_error_without_labels"]


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
