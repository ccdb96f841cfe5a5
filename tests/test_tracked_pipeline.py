"""All stages offline, the training killed midway: W&B's own viewer finds everything."""

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
from conftest import wait_for_steps
from PIL import Image

from dataset.load_dataset import load_dataset
from src.storage import artifacts, checkpoint
from src.storage.metrics_log import read_metrics
from src.storage.provenance import git_commit
from tests.tracked_run import clean_environment, distinct, history, inspect, row_of, segments

pytestmark = pytest.mark.timeout(600)  # all stages in one fixture

EPOCHS, STEPS = 4, 12
TRAIN = """
import sys
from pathlib import Path
from src import train
from src.training.recipe import TrainConfig

train.gpu_utilization = lambda device: 50.0  # all else is as in src/train.py
train.main(TrainConfig(
    data_dir=Path(sys.argv[1]), arch="resnet18", epochs=4, batch_size=16, checkpoint_every=2,
    log_every=1, monitor_every=2, warmup_epochs=1, device="cpu", wandb="offline",
))
"""
LATER = """
import visualize_features
from src import clustering, feature_extraction, inference

config = feature_extraction.ExtractionConfig(untrained=True, device="cpu")
feature_extraction.main(config)
config = clustering.ClusteringConfig(components=10, restarts=2, baselines=True, wandb="offline")
clustering.main(config)
config = inference.InferenceConfig(output=Path("predictions.jsonl"), device="cpu", wandb="offline")
inference.main(config)
config = visualize_features.VisualizeConfig(projection="pca", wandb="offline")
visualize_features.main(config)
"""
EACH_STEP = {"step", "epoch", "loss", "learning_rate", "progress", "gpu_utilization"}
EACH_EPOCH = {
    "epoch", *(f"epoch/{name}" for name in ("step", "loss", "learning_rate", "progress")),
    "epoch/gradient_norm", "epoch/projection_rank",
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
    logs: list[Path]
    """Of all run directories, after `wandb/` was moved to another place."""
    records: list[list[dict[str, Any]]]
    """What is in each of them."""

    def about(self) -> list[dict[str, Any]]:
        return [next(r["run"] for r in records if r["type"] == "run") for records in self.records]

    def rows(self, job_type: str) -> list[dict[str, Any]]:
        """All that a stage logged, in all segments."""
        pairs = zip(self.about(), self.records, strict=True)
        return [row for run, r in pairs if run["job_type"] == job_type for row in history(r)]

    def logged(self, job_type: str) -> dict[str, Any]:
        return {key: value for row in self.rows(job_type) for key, value in row.items()}

    def file(self, job_type: str, key: str) -> Path:
        segment = [run["job_type"] for run in self.about()].index(job_type)
        return self.logs[segment].parent / "files" / self.logged(job_type)[f"{key}.path"]


@pytest.fixture(scope="module")
def pipeline(stl10_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    directory = tmp_path_factory.mktemp("pipeline")
    environment = clean_environment(directory)

    def start(code: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(stl10_dir)],
            cwd=directory, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    process = start(TRAIN)
    wait_for_steps(directory / "checkpoints", STEPS // 2 + 2, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed_at = read_metrics(directory / "checkpoints" / checkpoint.METRICS_LOG)[-1]["step"]
    process = start(TRAIN + LATER)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "6 of 12 steps are done" in out
    assert (out + errors).count("W&B: ") == 4, errors

    (directory / "copied").mkdir()
    (directory / "wandb").rename(directory / "copied" / "wandb")
    logs = segments(directory / "copied")
    return Pipeline(directory, killed_at, logs, [inspect(log, environment) for log in logs])


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
        expected = images | {"commit": git_commit()}
        expected |= {"epochs": EPOCHS} if run["job_type"] == "train" else features
        assert run["config"]["update"].items() >= expected.items()


def test_no_step_of_the_training_is_missing(pipeline: Pipeline) -> None:
    assert pipeline.killed_at > STEPS // 2  # or the kill cost nothing
    logged = distinct([untimed(row) for row in pipeline.rows("train")])
    steps = [row for row in logged if "epoch" not in row]
    epochs = [row for row in logged if "epoch" in row]
    assert [row["train/step"] for row in steps] == list(range(1, STEPS + 1))
    assert [row["epoch"] for row in epochs] == list(range(1, EPOCHS + 1))
    assert all(row.keys() == {f"train/{name}" for name in EACH_STEP} for row in steps)
    assert all(row.keys() >= EACH_EPOCH for row in epochs)
    assert pipeline.logged("train").keys() >= TIMINGS
    assert epochs[-1].keys() >= {"epoch/knn_accuracy", "epoch/kmeans_accuracy"}
    on_disk = read_metrics(pipeline.directory / "checkpoints" / checkpoint.METRICS_LOG)
    assert logged == distinct([untimed(row_of(record)) for record in on_disk])


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMINGS}


def test_every_metric_of_the_clustering(pipeline: Pipeline) -> None:
    metrics = json.loads((pipeline.directory / "features" / artifacts.METRICS).read_text())
    logged = pipeline.logged("clustering")
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
        per_class = metrics["splits"][split]["per_class"].items()
        assert table == [[name, *map(str, scores.values())] for name, scores in per_class]
    assert logged["kmeans/clusters"] == 10
    assert logged["kmeans/inertia"] == pytest.approx(metrics["kmeans"]["inertia"])
    assert logged["reduction/explained_variance"] == metrics["pca"]["explained_variance"]
    assert logged["reduction/effective_rank"] == metrics["pca"]["effective_rank"]
    variance = [row for row in pipeline.rows("clustering") if "pca/component" in row]
    assert [row["pca/component"] for row in variance] == list(range(1, 11))
    assert [row["pca/cumulative"] for row in variance] == metrics["pca"]["cumulative"]


def cells(page: Path) -> list[list[str]]:
    """The body of a table in HTML."""
    rows = re.findall(r"<tr>(<td>.*?)</tr>", page.read_text())
    return [[html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", row)] for row in rows]


def test_a_table_of_example_pictures(pipeline: Pipeline, stl10_dir: Path) -> None:
    images = load_dataset("stl10", stl10_dir).splits["test"].images
    table = {row[1]: row for row in cells(pipeline.file("inference", "predictions"))}
    predictions = (pipeline.directory / "predictions.jsonl").read_text().splitlines()
    assert len(table) == len(predictions) == 20
    for prediction in map(json.loads, predictions):
        picture, name, *texts = table[prediction["path"]]
        confidence = f"{prediction['confidence']:.3f}"
        cluster, class_name = str(prediction["cluster"]), prediction["class"] or ""
        assert texts == [cluster, class_name, confidence, prediction["label"]]
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
    names = {file.name for file in pipeline.directory.iterdir()}
    assert names == {"home", "checkpoints", "features", "copied", "predictions.jsonl"}
    for records in pipeline.records:  # an artifact would be staged by an absolute path
        assert "artifact" not in {record["type"] for record in records}
    assert not [f for f in (pipeline.directory / "home").rglob("*") if "wandb" in f.name]
