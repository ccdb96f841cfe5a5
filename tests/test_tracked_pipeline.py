"""All stages offline, the training killed on its way: W&B's own viewer finds everything."""

import base64
import html
import io
import json
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, wait_for_steps
from PIL import Image

from dataset.load_dataset import load_dataset
from src.storage import artifacts, checkpoint
from src.storage.metrics_log import read_metrics
from src.storage.provenance import git_commit
from src.training.recipe import TrainConfig
from tests.tracking_tools import (
    clean_environment,
    in_order,
    inspect,
    row_of,
    segments,
    without_wandbs_own,
)

pytestmark = pytest.mark.timeout(600)  # six scripts in one fixture

EPOCHS, STEPS = 4, 12
TRAIN = """
from src import train
from src.runtime.cli import run_script

train.gpu_utilization = lambda device: 50.0  # all else is as in src/train.py
run_script(train.main, train.TrainConfig)
"""
EACH_STEP = {"step", "epoch", "loss", "learning_rate", "progress", "gpu_utilization"}
EACH_EPOCH = {
    "epoch", "epoch/step", "epoch/loss", "epoch/learning_rate", "epoch/progress",
    "epoch/gradient_norm", "epoch/projection_rank", "epoch/images_per_second",
}  # fmt: skip
TIMINGS = {"epoch/images_per_second", "epoch/seconds_left"}
INTERNAL = {"silhouette", "davies_bouldin"}
EXTERNAL = {"hungarian_accuracy", "majority_accuracy", "transferred_accuracy", "nmi", "ari",
            "knn_accuracy"}  # fmt: skip


@dataclass(frozen=True)
class Pipeline:
    directory: Path
    """The stages ran here."""
    killed_at: int
    """The last step before the kill."""
    predictions: list[dict[str, Any]]
    """What the inference wrote on standard output."""
    logs: list[Path]
    """Of all run directories, after `wandb/` was moved to another place."""
    records: list[list[dict[str, Any]]]
    """What is in each of them."""

    def about(self) -> list[dict[str, Any]]:
        return [next(r["run"] for r in records if r["type"] == "run") for records in self.records]

    def segments_of(self, job_type: str) -> list[int]:
        return [i for i, about in enumerate(self.about()) if about["job_type"] == job_type]

    def rows(self, segment: int) -> list[dict[str, Any]]:
        return [
            without_wandbs_own(record["history"]["item"])
            for record in self.records[segment]
            if record["type"] == "history"
        ]

    def logged(self, job_type: str) -> dict[str, Any]:
        """Everything that a stage logged once; of what it logged more often, the last."""
        return {
            k: v for s in self.segments_of(job_type) for row in self.rows(s) for k, v in row.items()
        }

    def file(self, job_type: str, key: str) -> Path:
        (segment,) = self.segments_of(job_type)
        return self.logs[segment].parent / "files" / self.logged(job_type)[f"{key}.path"]

    def metrics(self) -> dict[str, Any]:
        return json.loads((self.directory / "features" / artifacts.METRICS).read_text())


@pytest.fixture(scope="module")
def pipeline(stl10_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    directory = tmp_path_factory.mktemp("pipeline")
    environment = clean_environment(directory)

    def start(*command: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=directory, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(*command: object, tracked: bool = True) -> str:
        process = start(*command, *(("--wandb", "offline") if tracked else ()))
        out, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert (out + errors).count("W&B: ") == tracked, errors
        return out

    flags = {
        "data-dir": stl10_dir, "arch": "resnet18", "epochs": EPOCHS, "batch-size": 16,
        "checkpoint-every": 2, "log-every": 1, "monitor-every": 2, "warmup-epochs": 1,
        "device": "cpu",
    }  # fmt: skip
    train = ("-c", TRAIN, *(part for name, value in flags.items() for part in (f"--{name}", value)))
    process = start(*train, "--wandb", "offline")
    wait_for_steps(directory / "checkpoints", STEPS // 2 + 2, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed_at = read_metrics(directory / "checkpoints" / checkpoint.METRICS_LOG)[-1]["step"]

    assert "6 of 12 steps are done" in run(*train)
    run(ROOT / "src/feature_extraction.py", "--untrained", "--device", "cpu", tracked=False)
    run(ROOT / "src/clustering.py", "--components", 10, "--restarts", 2, "--baselines")
    shown = run(ROOT / "src/inference.py", "--json", "--device", "cpu")
    run(ROOT / "visualize_features.py", "--projection", "pca")

    (directory / "copied").mkdir()
    (directory / "wandb").rename(directory / "copied" / "wandb")
    logs = segments(directory / "copied")
    predictions = [json.loads(line) for line in shown.splitlines()]
    records = [inspect(log, environment) for log in logs]
    return Pipeline(directory, killed_at, predictions, logs, records)


def test_one_group_and_what_each_run_is_about(pipeline: Pipeline) -> None:
    about = pipeline.about()
    stages = ["train", "train", "clustering", "inference", "visualization"]
    assert [run["job_type"] for run in about] == stages
    assert len({run["run_group"] for run in about}) == 1
    assert about[0]["run_id"] == about[1]["run_id"]
    assert len({run["run_id"] for run in about}) == 4

    manifest = json.loads((pipeline.directory / "features" / artifacts.MANIFEST).read_text())
    extraction = manifest[artifacts.EXTRACTION]
    images = {"dataset_fingerprint": extraction["dataset"]["fingerprint"]}
    features = {
        "checkpoint_digest": extraction["checkpoint"]["digest"], "features_id": extraction["id"]
    }  # fmt: skip
    for run in about:
        config = run["config"]["update"]
        expected = images | {"commit": git_commit()}
        expected |= {"epochs": EPOCHS} if run["job_type"] == "train" else features
        assert config.items() >= expected.items()


def test_one_continuous_history_of_the_training(pipeline: Pipeline) -> None:
    assert TrainConfig().log_every == 100
    assert pipeline.killed_at > STEPS // 2  # or the kill cost nothing
    history = in_order([row for s in pipeline.segments_of("train") for row in pipeline.rows(s)])
    steps = [row for row in history if "epoch" not in row]
    epochs = [row for row in history if "epoch" in row]
    assert [row["train/step"] for row in steps] == list(range(1, STEPS + 1))
    assert [row["epoch"] for row in epochs] == list(range(1, EPOCHS + 1))
    assert all(row.keys() == {f"train/{name}" for name in EACH_STEP} for row in steps)
    assert all(row.keys() >= EACH_EPOCH for row in epochs)
    assert epochs[-1].keys() >= {"epoch/knn_accuracy", "epoch/kmeans_accuracy"}
    on_disk = read_metrics(pipeline.directory / "checkpoints" / checkpoint.METRICS_LOG)
    assert untimed(history) == untimed(in_order([row_of(record) for record in on_disk]))


def untimed(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in history]


def test_every_metric_of_the_clustering(pipeline: Pipeline) -> None:
    metrics, logged = pipeline.metrics(), pipeline.logged("clustering")
    assert metrics["splits"].keys() == {"unlabeled", "train", "test"}
    tables = {"clusters": metrics["splits"]}
    tables |= {f"baselines/{k}": part["splits"] for k, part in metrics["baselines"].items()}
    assert tables.keys() == {"clusters", "baselines/raw_pixels", "baselines/untrained"}
    for place, splits in tables.items():
        for split, scores in splits.items():
            names = {"images"} | INTERNAL | (EXTERNAL if split != "unlabeled" else set())
            for name in names:
                assert logged[f"{place}/{split}/{name}"] == pytest.approx(scores[name], abs=1e-12)
    for split in ("train", "test"):
        table = cells(pipeline.file("clustering", f"clusters/{split}/classes"))
        for row, (name, scores) in zip(
            table, metrics["splits"][split]["per_class"].items(), strict=True
        ):
            assert row == [name, *map(str, scores.values())]
    assert logged["kmeans/clusters"] == 10
    assert logged["kmeans/inertia"] == pytest.approx(metrics["kmeans"]["inertia"])
    assert logged["reduction/explained_variance"] == metrics["pca"]["explained_variance"]
    assert logged["reduction/effective_rank"] == metrics["pca"]["effective_rank"]
    (segment,) = pipeline.segments_of("clustering")
    variance = [row for row in pipeline.rows(segment) if "pca/component" in row]
    assert [row["pca/component"] for row in variance] == list(range(1, 11))
    assert [row["pca/cumulative"] for row in variance] == metrics["pca"]["cumulative"]


def cells(page: Path) -> list[list[str]]:
    """The body of a table in HTML."""
    rows = re.findall(r"<tr>(<td>.*?)</tr>", page.read_text())
    return [[html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", row)] for row in rows]


def test_a_table_of_example_pictures(pipeline: Pipeline, stl10_dir: Path) -> None:
    images = load_dataset("stl10", stl10_dir).splits["test"].images
    table = {row[1]: row for row in cells(pipeline.file("inference", "predictions"))}
    assert len(table) == len(pipeline.predictions) == 20
    for found in pipeline.predictions:
        picture, name, *said = table[found["path"]]
        confidence = f"{found['confidence']:.3f}"
        assert said == [str(found["cluster"]), found["class"] or "", confidence, found["label"]]
        embedded = base64.b64decode(picture.partition("base64,")[2].rstrip('">'))
        shown = np.asarray(Image.open(io.BytesIO(embedded)))
        index = int(name.removeprefix("test[").removesuffix("]"))
        np.testing.assert_array_equal(shown, images[index].transpose(1, 2, 0))


def test_every_figure(pipeline: Pipeline) -> None:
    drawn = sorted((pipeline.directory / "features" / artifacts.FIGURES).iterdir())
    assert {"training", "map", "confusion_test", "silhouette"} < {file.stem for file in drawn}
    for file in drawn:
        logged = pipeline.file("visualization", f"figures/{file.stem}")
        assert logged.read_bytes() == file.read_bytes()


def test_nothing_lies_outside_of_its_folder(pipeline: Pipeline) -> None:
    here = {file.name for file in pipeline.directory.iterdir()}
    assert here == {"home", "checkpoints", "features", "copied"}
    for records in pipeline.records:  # an artifact would be staged by an absolute path
        assert "artifact" not in {record["type"] for record in records}
    strangers = [f for f in (pipeline.directory / "home").rglob("*") if "wandb" in str(f.name)]
    assert strangers == []
