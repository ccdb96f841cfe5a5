import io
import json
import os
import re
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save
from sklearn.datasets import load_sample_images

from dataset.pictures import load_picture
from src import clustering
from src.clustering import ClusteringConfig
from src.export import ExportConfig, main
from src.models.architectures import ARCHITECTURES
from src.models.encoder import TrainedBackbone, encode
from src.prediction import onnx_export
from src.prediction.predictor import Predictor
from src.runtime import cli
from src.runtime.cli import ENVIRONMENT_ERRORS, RunError, UserError
from src.storage import artifacts, checkpoint
from src.storage.artifacts import Manifest
from src.storage.scores import used_splits
from src.training.flags import FREE_TO_CHANGE, TrainConfig, ViewSettings, flag_values
from tests.helpers import ROOT
from tests.helpers.digits import all_digits, digits, png_16, save_picture
from tests.helpers.documentation import python_examples
from tests.helpers.finished_run import COMMIT, FinishedRun, write_checkpoint
from tests.helpers.finished_run import cluster as run_clustering
from tests.helpers.processes import Script, run_python


@pytest.fixture(scope="module")
def features(digits_run: FinishedRun) -> Path:
    """A finished run and its exported model, as a person makes it."""
    directory = digits_run.features
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
    images = all_digits()
    batches = np.split(images, [1, 4, *range(104, len(images), 100)])
    outputs = [runtime.run(None, {"images": batch}) for batch in batches]
    cluster, confidence, distances, unusual, group = map(np.concatenate, zip(*outputs, strict=True))
    expected = predictor.predict(images)
    assert (cluster == expected.clusters).mean() >= 0.999
    np.testing.assert_allclose(distances, expected.distances, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(confidence, expected.certainty, rtol=1e-2)
    assert len(np.unique(cluster)) == 10
    np.testing.assert_array_equal(unusual, expected.unusual)
    np.testing.assert_array_equal(group, cluster)
    assert 0 < unusual.sum() < 40


def test_one_clean_file_with_its_metadata(features: Path, file: Path) -> None:
    runtime = session(file)
    (images,) = runtime.get_inputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["N", 3, 20, 20])
    assert [(o.name, o.type, o.shape) for o in runtime.get_outputs()] == [
        ("cluster", "tensor(int64)", ["N"]),
        ("confidence", "tensor(float)", ["N"]),
        ("distances", "tensor(float)", ["N", 10]),
        ("unusual", "tensor(bool)", ["N"]),
        ("group", "tensor(int64)", ["N"]),
    ]
    metadata = runtime.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == [str(i) for i in range(10)]
    to_class = Manifest(features).load(artifacts.CLUSTER_TO_CLASS)
    assert json.loads(metadata["cluster_to_class"]) == to_class.tolist()
    names = [str(c) for c in to_class]
    assert json.loads(metadata["group_names"]) == json.loads(metadata["cluster_names"]) == names
    assert (metadata["image_size"], metadata["opset"]) == ("20", "18")
    assert metadata["features"] == Manifest(features).extraction["id"]

    assert not [p.name for p in file.parent.iterdir() if "onnx" in p.name and p != file]
    assert str(ROOT).encode() not in file.read_bytes()
    model = onnx.load(file)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", onnx_export.OPSET)]
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Conv"] == 20  # ResNet-18: 17 in the stem and the blocks, 3 in the shortcuts
    assert kinds["BatchNormalization"] == kinds["Mul"] == 0  # folded into the convolutions


def test_the_example_of_the_documentation(
    features: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = (block for block in python_examples() if "onnxruntime" in block)
    row = np.concatenate(digits()[:3], axis=2)
    save_picture(row, tmp_path / "photo.jpg")  # three side by side, the second is in the center
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {}
    exec(example, variables)
    expected = Predictor.load(features, device="cpu", precision="fp32").predict(["photo.jpg"])
    assert variables["cluster"].tolist() == expected.clusters.tolist()
    np.testing.assert_allclose(variables["confidence"], expected.certainty, rtol=1e-2)
    np.testing.assert_allclose(variables["distances"], expected.distances, rtol=1e-3)

    gray = row[0]
    palette = Image.fromarray(gray).quantize(8)
    palette.info["transparency"] = 0
    for picture in (
        Image.fromarray(np.stack([*row, gray], axis=-1)),
        Image.fromarray(np.stack([gray, 255 - gray], axis=-1)),
        palette,
    ):
        picture.save(tmp_path / "photo.jpg", "PNG")
        exec(example, variables)
        assert (variables["images"][0] == load_picture(tmp_path / "photo.jpg", 20)).all()
    deep = [png_16(gray[..., None].repeat(n, 2).astype(np.uint16) << 4) for n in (1, 2, 3, 4)]
    float_tiff = io.BytesIO()
    Image.fromarray(gray / np.float32(255)).save(float_tiff, "TIFF")
    for content in (*deep, float_tiff.getvalue()):
        (tmp_path / "photo.jpg").write_bytes(content)
        with pytest.raises(AssertionError, match="more than 8 bits"):
            exec(example, variables)
        variables["photo"].close()


def test_without_l2_with_clusters_that_have_no_class_and_groups_of_a_person(
    features: Path, tmp_path: Path
) -> None:
    shutil.copytree(features, tmp_path, dirs_exist_ok=True)
    run_clustering(tmp_path, l2_normalize=False, clusters="13", components=7)
    part = dict(Manifest(tmp_path).clustering)
    artifacts.record(tmp_path, artifacts.CLUSTERING, part | {"certainty": "margin"})
    said = {"names": {"1": "wren"}, "fine": {"0": "wren", "1": "owl"}, "ignored": ["test[3]"]}
    said |= {"clusters": Manifest(tmp_path).clusters_id}
    (tmp_path / artifacts.NAMES).write_text(json.dumps(said))
    run_clustering(tmp_path, names=True)
    main(ExportConfig(feature_dir=tmp_path))
    images = digits()
    runtime = session(tmp_path / artifacts.MODEL)
    assert [output.name for output in runtime.get_outputs()][1] == "margin"
    cluster, margin, distances, unusual, group = runtime.run(None, {"images": images})
    predictor = Predictor.load(tmp_path, device="cpu")
    assigned = predictor.manifest.load(artifacts.ASSIGNMENTS, "test")
    predictions = predictor.predict(images)
    np.testing.assert_array_equal(predictions.clusters, assigned)
    # float32 against the precision of the features
    assert np.mean(np.abs(margin - predictions.certainty) < 0.1) > 0.97
    assert np.mean(unusual == predictions.unusual) > 0.97
    assert np.mean(cluster == assigned) > 0.97
    assert np.asarray(distances).shape == (len(images), 13)
    metadata = runtime.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["group_names"]) == predictor.group_names
    assert {"wren", "owl"} < {*predictor.group_names}
    assert np.mean(group == predictions.groups) > 0.97
    to_class = json.loads(metadata["cluster_to_class"])
    assert to_class.count(-1) == 3
    assert predictor.class_of(to_class.index(-1)) is None


def test_a_model_that_disagrees_is_not_written(
    features: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()
    predictor = Predictor.load(features, device="cpu", precision="fp32")
    # The exported model is made of these, the other is not.
    predictor.head.linear.bias += torch.arange(10)
    wrong = onnx_export.to_onnx(predictor)

    def exported(_: Predictor) -> onnx.ModelProto:
        with pytest.raises(UserError, match="another stage is writing in"):
            clustering.main(ClusteringConfig(feature_dir=features, wandb="disabled"))
        return wrong

    monkeypatch.setattr(onnx_export, "to_onnx", exported)
    with pytest.raises(RunError, match="no file was written"):
        main(ExportConfig(feature_dir=features))
    assert file.read_bytes() == before


def test_images_that_are_gone_are_named(features: Path, tmp_path: Path) -> None:
    shutil.copytree(features, tmp_path, dirs_exist_ok=True)
    part = dict(Manifest(features).extraction)
    part["dataset"]["name"] = "stl10"
    artifacts.record(tmp_path, artifacts.EXTRACTION, part)
    with pytest.raises(UserError, match="--check-images 0"):
        main(ExportConfig(feature_dir=tmp_path, data_dir=tmp_path))


def photographs() -> torch.Tensor:
    """uint8 (24, 3, 96, 96), cut out of the two photographs that scikit-learn has."""
    photos = np.stack(load_sample_images().images)[:, :288, :384]
    parts = photos.reshape(2, 3, 96, 4, 96, 3).transpose(0, 1, 3, 5, 2, 4)
    return torch.from_numpy(parts.reshape(-1, 3, 96, 96))


@pytest.mark.parametrize(
    ("arch", "suffix", "flags"),
    [
        ("resnet50", "safetensors", {}),
        ("resnet18", "pt", {"bn": "train"}),
        ("resnet34", "safetensors", {"weights": Path("somebody's.pt")}),
    ],
)
def test_backbone_in_torchvision_and_timm_alone(
    arch: str, suffix: str, flags: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint_file = tmp_path / "simclr_epoch_0003.pt"
    write_checkpoint(checkpoint_file, "digits", Path(), arch, **flags)
    images = photographs()
    own = TrainedBackbone.load(checkpoint_file, tmp_path, torch.device("cpu")).backbone
    expected = encode(own, images, torch.float32)

    file = tmp_path / f"backbone.{suffix}"
    main(ExportConfig(backbone=file, checkpoint_dir=tmp_path))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    state = torch.load(file, weights_only=True) if suffix == "pt" else load_file(file)
    if suffix == "safetensors":
        assert file.stat().st_mode == checkpoint_file.stat().st_mode
        with safe_open(file, "pt") as tensors:
            about = tensors.metadata()
        assert (about["architecture"], about["image_size"]) == (arch, "20")
        mean, std = json.loads(about["mean"]), json.loads(about["std"])
    x = torchvision.transforms.functional.normalize(images / 255, mean, std)
    network = getattr(torchvision.models, arch)()
    keys = network.load_state_dict(state, strict=False)
    assert (keys.missing_keys, keys.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    network.fc = torch.nn.Identity()
    other = timm.create_model(arch, num_classes=0)
    other.load_state_dict(state)
    for others in (network, other):
        with torch.inference_mode():
            features = others.eval()(x)
        error = (features - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.max() < 1e-4


def test_backbone_needs_no_features_and_the_lines_of_the_documentation_load_it(
    features: Path, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Manifest(features).extraction["checkpoint"]["file"]
    run = script("src/export.py", "--backbone", "resnet18.safetensors", "--checkpoint", file)
    assert (run.returncode, run.stderr) == (0, "")
    assert "resnet18 of " in run.stdout
    assert not (tmp_path / "features").exists()
    (example,) = (block for block in python_examples() if "torchvision" in block)
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {}
    exec(example.replace("resnet50", "resnet18"), variables)
    own = TrainedBackbone.load(Path(file), tmp_path, torch.device("cpu")).backbone
    assert torch.equal(variables["network"].bn1.running_var, own.bn1.running_var)


def test_only_an_earlier_backbone_is_replaced(tmp_path: Path) -> None:
    """Not a checkpoint, also through a link, nor anything else of a user's."""
    checkpoint_file = tmp_path / "simclr_epoch_0003.pt"
    write_checkpoint(checkpoint_file, "digits", Path())
    places = {name: tmp_path / name for name in ("b.pt", "b.safetensors")}
    for place in places.values():
        for _ in range(2):
            main(ExportConfig(backbone=place, checkpoint_dir=tmp_path))
    (tmp_path / "link.pt").symlink_to(checkpoint_file)
    (tmp_path / "photo.pt").write_bytes(b"\x89PNG")
    (tmp_path / "other.safetensors").write_bytes(save({"conv1.weight": torch.ones(1)}))
    torch.save({"conv1.weight": torch.ones(1), "epoch": 3}, tmp_path / "other.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    for name in ("link.pt", checkpoint_file.name, "photo.pt", "other.safetensors", "other.pt",
                 "pipe.pt"):  # fmt: skip
        place = tmp_path / name
        before = None if place.is_fifo() else place.read_bytes()
        with pytest.raises(UserError, match=rf"{name} exists and is not a backbone: choose"):
            main(ExportConfig(backbone=place, checkpoint_dir=tmp_path))
        assert place.is_fifo() or place.read_bytes() == before


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs Linux's read-only /sys")
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_backbone_into_a_folder_that_cannot_be_written(suffix: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "simclr_epoch_0003.pt", "digits", Path())
    file = Path(f"/sys/kernel/backbone.{suffix}")
    with pytest.raises(OSError, match="ermi") as error:  # denied, or not permitted
        main(ExportConfig(backbone=file, checkpoint_dir=tmp_path))
    assert error.value.errno in ENVIRONMENT_ERRORS  # so that it ends with one line
    assert error.value.filename == str(file)


def test_backbone_that_cannot_be_exported(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"must end in \.safetensors or \.pt"):
        main(ExportConfig(backbone=tmp_path / "backbone.onnx"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"run python src/train\.py .*FOLDER first"):
        main(ExportConfig(backbone=tmp_path / "backbone.pt", checkpoint_dir=Path("nothing")))
    monkeypatch.setitem(ARCHITECTURES, "slim", ARCHITECTURES["resnet18"]._replace(stem=(3, 1, 1)))
    write_checkpoint(tmp_path / "simclr_epoch_0003.pt", "digits", Path(), "slim")
    with pytest.raises(UserError, match="torchvision has no slim"):
        main(ExportConfig(backbone=tmp_path / "backbone.pt", checkpoint_dir=tmp_path))


def card_of(file: Path, config: ExportConfig) -> str:
    main(replace(config, backbone=file))
    return Path(f"{file}.md").read_text()


def test_card_of_a_scored_backbone(features: Path, tmp_path: Path) -> None:
    manifest = Manifest(features)
    recorded = manifest.extraction["checkpoint"]
    checkpoint_file = Path(recorded["file"])
    config = ExportConfig(feature_dir=features, checkpoint=checkpoint_file)
    card = card_of(tmp_path / "resnet18.pt", config)
    for text in ("resnet18.pt", "20 px", "512 features", "1,438 of train and 359 of test",
                 COMMIT, torch.__version__, "MIT license",
                 recorded["digest"], manifest.extraction["dataset"]["fingerprint"],
                 "No label was used", "Limits"):  # fmt: skip
        assert text in card, text
    scores = manifest.metrics()
    for used in used_splits(scores).values():
        for number in (used["knn_accuracy"], used["hungarian_accuracy"], used["silhouette"]):
            assert f"{number:.3f}" in card
    assert f"Without labels: {scores['trust']['verdict']}" in card
    for folder in (features, checkpoint_file.parent, ROOT, tmp_path):
        assert str(folder) not in card


def test_the_command_on_a_card_trains_the_same(tmp_path: Path) -> None:
    flags = {
        "seed": 7, "views": ViewSettings(zoom=0.3), "precision": "bf16", "bn": "train",
        "train_on": ("train",), "weights": Path("of somebody/their weights.pt"),
    }  # fmt: skip
    write_checkpoint(tmp_path / "simclr_epoch_0003.pt", "digits", Path(), **flags)
    saved = checkpoint.load(tmp_path / "simclr_epoch_0003.pt")["config"]
    card = card_of(tmp_path / "backbone.pt", ExportConfig(checkpoint_dir=tmp_path))
    assert "may have been learned with labels" in card
    assert "of somebody" not in card
    (line,) = re.findall(r"^python src/train\.py (.+)$", card, re.MULTILINE)
    told = flag_values(cli.parse(TrainConfig, shlex.split(line), "", ""))
    assert told["weights"] == "their weights.pt"
    computed = saved.keys() - (FREE_TO_CHANGE - {"epochs"}) - {"weights"}
    assert {name: told[name] for name in computed} == {name: saved[name] for name in computed}


def test_a_card_has_only_the_scores_of_its_own_checkpoint(features: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "simclr_epoch_0003.pt", "digits", Path(), seed=1)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / artifacts.MANIFEST).write_text("{")
    for directory in (features, tmp_path / "damaged", tmp_path / "missing"):
        config = ExportConfig(feature_dir=directory, checkpoint_dir=tmp_path)
        assert "None found for this checkpoint" in card_of(tmp_path / "backbone.pt", config)
