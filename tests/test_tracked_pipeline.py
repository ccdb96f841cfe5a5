"""All stages offline, the training killed midway: W&B's own viewer finds everything."""

import base64
import html
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset.load_dataset import load_dataset
from src.storage import artifacts, checkpoint
from src.storage.metrics_log import read_metrics
from src.storage.provenance import git_commit
from tests.helpers.processes import start_tracked, wait_for_steps
from tests.helpers.script_server import ScriptProcess
from tests.helpers.tracked_run import (
    clean_environment,
    distinct,
    history,
    inspect,
    row_of,
    segments,
)

pytestmark = pytest.mark.timeout(600)  # all stages in one fixture

EPOCHS, STEPS = 4, 12
TRAIN = """
import sys
from pathlib import Path
from src import train
from src.models.architectures import ARCHITECTURES, Design
from src.training import loop
from src.training.flags import TrainConfig

ARCHITECTURES["small"] = Design(ARCHITECTURES["resnet18"].block, (2, 1), (16, 32))
loop.gpu_utilization = lambda device: 50.0  # all else is as in src/train.py
train.main(TrainConfig(
    data_dir=Path(sys.argv[1]), arch="small", epochs=4, batch_size=16, checkpoint_every=2,
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
TIMINGS = {"epoch/images_per_second", "epoch/seconds_left"}
INTERNAL = {"images", "silhouette", "davies_bouldin"}
EXTERNAL = {"hungarian_accuracy", "transferred_accuracy", "nmi", "ari",
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

    def cells(self, job_type: str, key: str) -> list[list[str]]:
        """The body of a table in HTML."""
        page = self.file(job_type, key).read_text()
        rows = re.findall(r"<tr>(<td>.*?)</tr>", page)
        return [[html.unescape(cell) for cell in re.findall("<td>(.*?)</td>", r)] for r in rows]

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.directory / "features" / name).read_text())


@pytest.fixture(scope="module")
def pipeline(stl10_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    directory, scripts = tmp_path_factory.mktemp("pipeline"), tmp_path_factory.mktemp("scripts")
    environment = clean_environment(directory)
    (scripts / "train.py").write_text(TRAIN)
    (scripts / "all.py").write_text(TRAIN + LATER)

    def start(name: str) -> ScriptProcess:
        return start_tracked(environment, str(scripts / name), str(stl10_dir), cwd=directory)

    process = start("train.py")
    wait_for_steps(directory / "checkpoints", STEPS // 2 + 2, process)
    process.kill()
    process.wait()
    killed_at = read_metrics(directory / "checkpoints" / checkpoint.METRICS_LOG)[-1]["step"]
    process = start("all.py")
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "6 of 12 steps are done" in out
    assert (out + errors).count("W&B: ") == 1, errors

    (directory / "copied").mkdir()
    (directory / "wandb").rename(directory / "copied" / "wandb")
    logs = segments(directory / "copied")
    return Pipeline(directory, killed_at, logs, [inspect(log, environment) for log in logs])


def test_one_group_and_what_each_run_is_about(pipeline: Pipeline) -> None:
    about = pipeline.about()
    stages = ["train", "train", "clustering", "inference", "visualization"]
    assert sorted(run["job_type"] for run in about) == sorted(stages)  # some begin in one second
    assert len({run["run_group"] for run in about}) == 1
    assert about[0]["run_id"] == about[1]["run_id"]
    assert len({run["run_id"] for run in about}) == 4
    extraction = pipeline.json(artifacts.MANIFEST)[artifacts.EXTRACTION]
    digest = extraction["checkpoint"]["digest"]
    features = {"checkpoint_digest": digest, "features_id": extraction["id"]}
    for run in about:
        expected = {"dataset_fingerprint": extraction["dataset"]["fingerprint"]}
        expected |= {"epochs": EPOCHS} if run["job_type"] == "train" else features
        assert run["config"]["update"].items() >= (expected | {"commit": git_commit()}).items()
    names = {file.name for file in pipeline.directory.iterdir()}
    assert names == {"home", "checkpoints", "features", "copied", "predictions.jsonl"}
    for records in pipeline.records:  # an artifact would be staged by an absolute path
        assert "artifact" not in {record["type"] for record in records}
    assert not [f for f in (pipeline.directory / "home").rglob("*") if "wandb" in f.name]


def test_no_step_of_the_training_is_missing(pipeline: Pipeline) -> None:
    assert pipeline.killed_at > STEPS // 2  # or the kill cost nothing
    logged = distinct([untimed(row) for row in pipeline.rows("train")])
    steps, epochs = logged[:STEPS], logged[STEPS:]
    assert [row["train/step"] for row in steps] == list(range(1, STEPS + 1))
    assert [row["epoch"] for row in epochs] == list(range(1, EPOCHS + 1))
    names = {"loss", "learning_rate", "progress", "gpu_utilization"}
    assert steps[-1].keys() >= {f"train/{name}" for name in names}
    names = {"loss", "knn_accuracy", "kmeans_accuracy", "gradient_norm", "projection_rank"}
    assert epochs[-1].keys() >= {f"epoch/{name}" for name in names}
    assert pipeline.logged("train").keys() >= TIMINGS
    on_disk = read_metrics(pipeline.directory / "checkpoints" / checkpoint.METRICS_LOG)
    assert logged == distinct([untimed(row_of(record)) for record in on_disk])


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMINGS}


def test_every_metric_of_the_clustering(pipeline: Pipeline) -> None:
    metrics, logged = pipeline.json(artifacts.METRICS), pipeline.logged("clustering")
    tables = {"clusters": metrics["kmeans"]["splits"], "smoothed": metrics["smoothed"]["splits"]}
    for kind, part in metrics["baselines"].items():
        tables[f"baselines/{kind}"] = part["kmeans"]["splits"]
    assert tables.keys() >= {"baselines/raw_pixels", "baselines/untrained"}
    assert metrics["kmeans"]["splits"].keys() == {"unlabeled", "train", "test"}
    for place, splits in tables.items():
        for split, scores in splits.items():
            for name in INTERNAL | (EXTERNAL if split != "unlabeled" else set()):
                assert logged[f"{place}/{split}/{name}"] == pytest.approx(scores[name], abs=1e-12)
    for split in ("train", "test"):
        table = pipeline.cells("clustering", f"clusters/{split}/classes")
        per_class = metrics["smoothed"]["splits"][split]["per_class"].items()
        assert table == [[name, *map(str, scores.values())] for name, scores in per_class]
    assert logged["kmeans/inertia"] == pytest.approx(metrics["fit"]["inertia"])
    assert logged["reduction/effective_rank"] == metrics["pca"]["effective_rank"]
    variance = [row for row in pipeline.rows("clustering") if "pca/component" in row]
    assert [row["pca/component"] for row in variance] == list(range(1, 11))
    assert [row["pca/cumulative"] for row in variance] == metrics["pca"]["cumulative"]


def test_example_pictures_and_figures(pipeline: Pipeline, stl10_dir: Path) -> None:
    images = load_dataset("stl10", stl10_dir).splits["test"].images
    table = {row[1]: row for row in pipeline.cells("inference", "predictions")}
    predictions = (pipeline.directory / "predictions.jsonl").read_text().splitlines()
    assert len(table) == len(predictions) == 5
    rows = np.linspace(0, len(images) - 1, 5).astype(int)
    for index, prediction in zip(rows, map(json.loads, predictions), strict=True):
        picture, _, *texts = table[prediction["path"]]
        confidence = f"{prediction['confidence']:.3f}"
        cluster, class_name = str(prediction["cluster"]), prediction["name"]
        assert texts == [cluster, class_name, confidence, prediction["label"]]
        embedded = base64.b64decode(picture.partition("base64,")[2].rstrip('">'))
        shown = np.asarray(Image.open(io.BytesIO(embedded)))
        np.testing.assert_array_equal(shown, images[index].transpose(1, 2, 0))
    drawn = list((pipeline.directory / "features" / artifacts.FIGURES).glob("*.png"))
    assert {"training", "map", "confusion_test", "silhouette"} < {file.stem for file in drawn}
    for file in drawn:
        logged = pipeline.file("visualization", f"figures/{file.stem}")
        assert logged.read_bytes() == file.read_bytes()
