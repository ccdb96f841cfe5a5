"""Backbones that start from pretrained weights."""

from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models import ResNet18_Weights

from src import train
from src.models.batch_norm import calibrate_batch_norm
from src.models.encoder import TrainedBackbone, encode
from src.models.simclr import Backbone, SimCLR
from src.models.weights import load_weights
from src.runtime.cli import UserError
from src.storage import checkpoint
from src.training.recipe import TrainConfig


@pytest.fixture(scope="module")
def network() -> torchvision.models.ResNet:
    """torchvision's, with statistics that a few batches left."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    for _ in range(20):
        network(torch.randn(8, 3, 64, 64))
    return network.eval()


def saved(state: object, directory: Path) -> Path:
    torch.save(state, directory / "weights.pt")
    return directory / "weights.pt"


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.encoder."])
def test_prefixes_are_stripped_and_the_classifier_left_out(
    prefix: str, network: torchvision.models.ResNet, tmp_path: Path
) -> None:
    state = {prefix + name: value for name, value in network.state_dict().items()}
    head = {"head.0.weight": torch.ones(3)} if prefix == "backbone." else {}
    file = saved({"state_dict": state | head}, tmp_path)
    backbone = Backbone("resnet18", pretrained=True).eval()
    load_weights(backbone, "resnet18", file)
    x = torch.randn(2, 3, 64, 64)
    expected = torch.nn.Sequential(*list(network.children())[:-1])(x).flatten(1)
    torch.testing.assert_close(backbone(x), expected, rtol=1e-4, atol=1e-5)


def test_a_mismatch_is_named_key_by_key(network: torchvision.models.ResNet, tmp_path: Path) -> None:
    state = dict(network.state_dict())
    del state["layer1.0.conv1.weight"]
    state["extra.weight"] = torch.ones(1)
    state["conv1.weight"] = torch.ones(64, 3, 3, 3)
    with pytest.raises(UserError) as error:
        load_weights(Backbone("resnet18", pretrained=True), "resnet18", saved(state, tmp_path))
    for part in (
        'Missing key(s) in state_dict: "layer1.0.conv1.weight"',
        'Unexpected key(s) in state_dict: "extra.weight"',
        "size mismatch for conv1.weight",
    ):
        assert part in str(error.value)


def test_a_checkpoint_of_this_project_gives_the_same_features(tmp_path: Path) -> None:
    """Its weights are standardized on the way; as weights from elsewhere they no longer are."""
    torch.manual_seed(0)
    model = SimCLR("resnet18").eval()
    x = torch.randn(4, 3, 64, 64)
    calibrate_batch_norm(model.backbone, [x])
    file = tmp_path / checkpoint.file_name(1)
    config = {"bn": "frozen", "weights": "none"}
    checkpoint.save(file, {"model": model.state_dict(), "config": config})
    backbone = Backbone("resnet18", pretrained=True).eval()
    load_weights(backbone, "resnet18", file)
    torch.testing.assert_close(backbone(x), model.backbone(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(Path("code"), "more than tensors"), ([1, 2], "no state dict"), ({"a": 1}, "no state dict")],
)
def test_other_files_are_refused(content: object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        load_weights(Backbone("resnet18"), "resnet18", saved(content, tmp_path))
    with pytest.raises(UserError, match="no such file"):
        load_weights(Backbone("resnet18"), "resnet18", tmp_path / "missing.pt")


def test_imagenet_is_downloaded_or_the_way_around_is_named(
    network: torchvision.models.ResNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> dict[str, Tensor]:
        raise URLError("no network")

    kind = type(ResNet18_Weights.DEFAULT)
    monkeypatch.setattr(kind, "get_state_dict", offline)
    with pytest.raises(UserError, match=r"could not be downloaded .* give the file to --weights"):
        load_weights(Backbone("resnet18"), "resnet18", "imagenet")
    with pytest.raises(UserError, match="torchvision has none for --arch tiny"):
        load_weights(Backbone("resnet18"), "tiny", "imagenet")
    monkeypatch.setattr(kind, "get_state_dict", lambda *_, **__: network.state_dict())
    backbone = Backbone("resnet18", pretrained=True)
    load_weights(backbone, "resnet18", "imagenet")
    assert torch.equal(backbone.conv1.weight, network.conv1.weight)


def test_training_goes_on_from_weights_with_their_statistics(
    network: torchvision.models.ResNet, stl10_dir: Path, tmp_path: Path
) -> None:
    config = TrainConfig(
        data_dir=stl10_dir, checkpoint_dir=tmp_path / "checkpoints", arch="resnet18", epochs=1,
        batch_size=16, warmup_epochs=0.5, precision="fp32", wandb="disabled", device="cpu",
        weights=saved(network.state_dict(), tmp_path),
    )  # fmt: skip
    train.main(config)
    given = network.state_dict()
    states = [checkpoint.load(file)["model"] for file in checkpoint.listed(config.checkpoint_dir)]
    assert len(states) == 2
    for state in states:
        for name in given:
            if "running" in name:
                assert torch.equal(state[f"backbone.{name}"], given[name]), name
    assert torch.equal(states[0]["backbone.conv1.weight"], given["conv1.weight"])
    assert not torch.equal(states[1]["backbone.conv1.weight"], given["conv1.weight"])

    (tmp_path / "weights.pt").unlink()  # not needed again
    train.main(replace(config, epochs=2))
    first = config.checkpoint_dir / checkpoint.file_name(0)
    trained = TrainedBackbone.load(first, config.checkpoint_dir, torch.device("cpu"))
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    direct = Backbone("resnet18", pretrained=True).eval()
    direct.load_state_dict({k: v for k, v in given.items() if not k.startswith("fc.")})
    assert torch.equal(
        encode(trained.backbone, images, torch.float32), encode(direct, images, torch.float32)
    )
