import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT, run_python
from finished_run import cluster as run_clustering
from finished_run import digits_run
from PIL import Image

from dataset.load_dataset import load_dataset
from src import export
from src.export import ExportConfig, main
from src.prediction.predictor import Predictor
from src.runtime.cli import RunError, UserError
from src.storage import artifacts
from src.storage.artifacts import Manifest


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and its exported model, as a person makes it."""
    directory = digits_run(tmp_path_factory.getbasetemp())[0]
    done = run_python("src/export.py", "--feature-dir", directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert "of 256 test images ONNX Runtime puts 256" in done.stdout
    return directory


@pytest.fixture(scope="module")
def file(features: Path) -> Path:
    return features / artifacts.MODEL


def session(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def test_the_same_as_pytorch_on_every_digit(features: Path, file: Path) -> None:
    predictor = Predictor.load(features, device="cpu", precision="fp32")
    runtime = session(file)
    images = np.concatenate([s.images for s in load_dataset("digits", Path()).splits.values()])
    batches = np.split(images, [1, 4, *range(104, len(images), 100)])
    outputs = [runtime.run(None, {"images": batch}) for batch in batches]
    cluster, confidence, distances = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    expected = predictor.predict(images)
    assert (cluster == expected.clusters).mean() >= 0.999
    np.testing.assert_allclose(distances, expected.distances, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(confidence, expected.confidence, rtol=1e-2)
    assert len(np.unique(cluster)) == 10


def test_one_clean_file_with_its_metadata(features: Path, file: Path) -> None:
    runtime = session(file)
    (images,) = runtime.get_inputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["N", 3, 32, 32])
    assert [(o.name, o.type, o.shape) for o in runtime.get_outputs()] == [
        ("cluster", "tensor(int64)", ["N"]),
        ("confidence", "tensor(float)", ["N"]),
        ("distances", "tensor(float)", ["N", 10]),
    ]
    metadata = runtime.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == [str(i) for i in range(10)]
    to_class = Manifest(features).load(artifacts.CLUSTER_TO_CLASS)
    assert json.loads(metadata["cluster_to_class"]) == to_class.tolist()
    assert (metadata["image_size"], metadata["opset"]) == ("32", "18")
    assert metadata["features"] == Manifest(features).extraction["id"]

    assert not [p.name for p in file.parent.iterdir() if "onnx" in p.name and p != file]
    assert str(ROOT).encode() not in file.read_bytes()
    model = onnx.load(file)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", export.OPSET)]
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Conv"] == 20  # ResNet-18: 17 in the stem and the blocks, 3 in the shortcuts
    assert kinds["BatchNormalization"] == kinds["Mul"] == 0  # folded into the convolutions


def test_the_example_of_the_readme(
    features: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (example,) = (block for block in blocks if "onnxruntime" in block)
    digits = load_dataset("digits", Path()).splits["test"].images
    row = np.concatenate([image.transpose(1, 2, 0) for image in digits[:3]], axis=1)
    Image.fromarray(row).save(tmp_path / "photo.jpg")  # 96 x 32, the second is in the center
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {}
    exec(example, variables)
    expected = Predictor.load(features, device="cpu", precision="fp32").predict(["photo.jpg"])
    assert variables["cluster"].tolist() == expected.clusters.tolist()
    np.testing.assert_allclose(variables["confidence"], expected.confidence, rtol=1e-2)
    np.testing.assert_allclose(variables["distances"], expected.distances, rtol=1e-3)


def test_without_l2_and_with_clusters_that_have_no_class(features: Path, tmp_path: Path) -> None:
    shutil.copytree(features, tmp_path, dirs_exist_ok=True)
    run_clustering(tmp_path, l2_normalize=False, clusters="13", components=7)
    main(ExportConfig(tmp_path))
    images = load_dataset("digits", Path()).splits["test"].images
    runtime = session(tmp_path / artifacts.MODEL)
    cluster, _, distances = runtime.run(None, {"images": images})
    predictor = Predictor.load(tmp_path, device="cpu")
    assigned = predictor.manifest.load(artifacts.ASSIGNMENTS, "test")
    np.testing.assert_array_equal(predictor.predict(images).clusters, assigned)
    assert np.mean(cluster == assigned) > 0.97  # float32 against the precision of the features
    assert np.asarray(distances).shape == (len(images), 13)
    to_class = json.loads(runtime.get_modelmeta().custom_metadata_map["cluster_to_class"])
    assert to_class.count(-1) == 3
    assert predictor.class_of(to_class.index(-1)) is None


def test_a_model_that_disagrees_is_not_written(
    features: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()
    predictor = Predictor.load(features, device="cpu", precision="fp32")
    predictor.head.bias += torch.arange(10)  # the exported model is made of these, the other is not
    wrong = export.to_onnx(predictor)
    monkeypatch.setattr(export, "to_onnx", lambda _: wrong)
    with pytest.raises(RunError, match="no file was written"):
        main(ExportConfig(features))
    assert file.read_bytes() == before


def test_images_that_are_gone_are_named(features: Path, tmp_path: Path) -> None:
    shutil.copytree(features, tmp_path, dirs_exist_ok=True)
    part = dict(Manifest(features).extraction)
    part["dataset"]["name"] = "stl10"
    artifacts.record(tmp_path, artifacts.EXTRACTION, part)
    with pytest.raises(UserError, match="--check-images 0"):
        main(ExportConfig(tmp_path, data_dir=tmp_path))
