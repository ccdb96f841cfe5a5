"""Backbones that start from weights that others published."""

import argparse
import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from src import train
from src.models.encoder import TrainedBackbone, encode
from src.models.resnet import ResNet
from src.models.weights import load_weights
from src.runtime.cli import UserError
from src.storage import checkpoint
from src.training.flags import TrainConfig
from tests.helpers.digits import digits
from tests.helpers.finished_run import write_checkpoint

State = dict[str, Tensor]


def resnet18() -> torchvision.models.ResNet:
    """torchvision's, with statistics that a few batches left."""
    network = torchvision.models.resnet18()
    for _ in range(5):
        network(torch.randn(8, 3, 64, 64))
    return network.eval()


@pytest.fixture(scope="module")
def network() -> torchvision.models.ResNet:
    torch.manual_seed(0)
    return resnet18()


@pytest.fixture(scope="module")
def copy() -> State:
    """The state of another network, that lies beside the one that is meant."""
    torch.manual_seed(1)
    return resnet18().state_dict()


def saved(state: object, directory: Path, **options: Any) -> Path:
    torch.save(state, directory / "weights.pt", **options)
    return directory / "weights.pt"


def loaded(file: Path | str, arch: str = "resnet18") -> ResNet:
    backbone = ResNet(arch, pretrained=True).eval()
    load_weights(backbone, arch, file)
    return backbone


def refused(message: str, file: Path | str, arch: str = "resnet18") -> None:
    with pytest.raises(UserError, match=message):
        load_weights(ResNet(arch), arch, file)


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def numbered(state: State) -> State:
    network = torchvision.models.resnet18()
    network.load_state_dict(state)
    return nn.Sequential(*list(network.children())[:-1]).state_dict()


HEAD = {"weight": torch.ones(3, 3)}
LAYOUTS: dict[str, Callable[[State, State], object]] = {
    "plain": lambda own, copy: own,
    "torchvision in 2017": lambda own, copy: {k: own[k] for k in own if "tracked" not in k},
    "torch.compile": lambda own, copy: {
        "model_state_dict": {
            f"_orig_mod.module.{name}".replace("layer3", "layer3._orig_mod"): v
            for name, v in own.items()
        }
    },
    "SwAV": lambda own, copy: (
        under("module.", own) | under("module.prototypes.", HEAD)
        | under("module.projection_head.0.", HEAD)
    ),
    "MoCo": lambda own, copy: {
        "state_dict": under("module.encoder_k.", copy) | under("module.encoder_q.", own)
    },
    "MoCo v3": lambda own, copy: {
        "state_dict": under("module.momentum_encoder.", copy) | under("module.base_encoder.", own)
    },
    "DINO": lambda own, copy: {
        "student": under("module.backbone.", copy) | under("module.head.", HEAD),
        "teacher": under("backbone.", own) | under("head.", HEAD),
        "args": argparse.Namespace(arch="resnet50"),
    },
    "Barlow Twins": lambda own, copy: {
        "epoch": 3, "model": under("module.projector.0.", HEAD) | under("module.backbone.", own),
    },
    "BYOL": lambda own, copy: {
        "target_network_state_dict": under("encoder.", numbered(copy)),
        "online_network_state_dict": under("encoder.", numbered(own)),
    },
    "lightly": lambda own, copy: {
        "state_dict": under("backbone_momentum.", numbered(copy))
        | under("backbone.", numbered(own)) | under("projection_head.0.", HEAD)
    },
    "solo-learn": lambda own, copy: {
        "state_dict": under("momentum_backbone.", copy) | under("backbone.", own)
    },
    "VISSL": lambda own, copy: {
        "classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks.", own)}}}
    },
    "timm": lambda own, copy: {"state_dict": copy, "state_dict_ema": own},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts(
    layout: str, network: torchvision.models.ResNet, copy: State, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    backbone = loaded(saved(LAYOUTS[layout](network.state_dict(), copy), tmp_path))
    x = torch.randn(2, 3, 64, 64)
    expected = nn.Sequential(*list(network.children())[:-1])(x).flatten(1)
    torch.testing.assert_close(backbone(x), expected, rtol=1e-4, atol=1e-5)
    note = "student.module.backbone, teacher.backbone: teacher.backbone is used"
    assert (note in capsys.readouterr().out) == (layout == "DINO")


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_every_architecture_takes_the_weights_of_timm(arch: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = timm.create_model(arch, num_classes=0).eval()
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(other.state_dict(), file)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded(file, arch)(x), other(x), rtol=1e-4, atol=1e-5)


def test_the_format_before_pytorch_1_6(network: torchvision.models.ResNet, tmp_path: Path) -> None:
    file = saved(network.state_dict(), tmp_path, _use_new_zipfile_serialization=False)
    assert torch.equal(loaded(file).conv1.weight, network.conv1.weight)


def test_five_misfits_are_named(network: torchvision.models.ResNet, tmp_path: Path) -> None:
    state = {name: v for name, v in network.state_dict().items() if "layer3" not in name}
    state["conv1.weight"] = torch.ones(64, 3, 3, 3)
    state["layer2.0.se.weight"] = torch.ones(1)
    with pytest.raises(UserError) as error:
        load_weights(ResNet("resnet18"), "resnet18", saved(state, tmp_path))
    message = str(error.value).removeprefix(f"--weights {tmp_path}")
    assert "conv1.weight is (64, 3, 3, 3), not (64, 3, 7, 7), layer3.0.conv1.weight is" in message
    assert "and 22 more" in message  # 25 of layer3, conv1 and se are 27
    assert len(message) < 300
    del state["layer1.0.conv1.weight"], state["conv1.weight"], state["bn1.weight"]
    refused(r"no state dict of resnet18: its keys are 'bn1\.bias', ", saved(state, tmp_path))


@pytest.mark.parametrize(
    ("stored", "arch"),
    [("resnet34", "resnet18"), ("resnet101", "resnet50"), ("resnet18", "resnet50")],
)
def test_weights_of_another_depth_are_refused(stored: str, arch: str, tmp_path: Path) -> None:
    """resnet34 holds every key of resnet18 in the same shape."""
    with torch.device("meta"):
        shapes = getattr(torchvision.models, stored)().state_dict()
    file = saved({name: torch.zeros(()).expand(v.shape) for name, v in shapes.items()}, tmp_path)
    refused(f"does not fit {arch}: it holds a {stored}, use --arch", file, arch)


@pytest.mark.parametrize(
    ("key", "change", "reason"),
    [
        ("conv1.weight", lambda v: torch.full_like(v, torch.nan), "has NaN"),
        ("conv1.weight", lambda v: v.double() * 1e300, "infinity"),  # in float32
        ("layer4.1.bn2.bias", lambda v: v.index_fill(0, torch.tensor(7), torch.inf), "infinity"),
        ("layer1.0.bn1.running_var", lambda v: -v, "negative variance"),
    ],
)
def test_weights_that_give_no_finite_features_are_refused(
    key: str, change: Callable[[Tensor], Tensor], reason: str,
    network: torchvision.models.ResNet, tmp_path: Path,
) -> None:  # fmt: skip
    state = network.state_dict()
    state[key] = change(state[key])
    refused(rf"{key} .*{reason}", saved(state, tmp_path))


NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "bool": lambda v: v > 0,
    "complex64": lambda v: torch.complex(v, v),
    "int32": lambda v: v.int(),
    "float8_e4m3fn": lambda v: v.to(torch.float8_e4m3fn),
    "sparse": lambda v: v.to_sparse(),
    "quantized": lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
    "meta": lambda v: v.to("meta"),
    "nested": lambda v: torch.nested.nested_tensor([v, v]),
}


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.filterwarnings("ignore")  # of PyTorch about what it will drop
def test_numbers_of_other_types_are_refused(
    kind: str, network: torchvision.models.ResNet, tmp_path: Path
) -> None:
    state = network.state_dict()
    state["layer3.0.conv1.weight"] = NUMBERS[kind](state["layer3.0.conv1.weight"])
    message = (
        rf"does not fit resnet18: layer3\.0\.conv1\.weight is {kind}, not real floating point$"
    )
    refused(message, saved(state, tmp_path))


def test_half_and_double_precision_are_taken(
    network: torchvision.models.ResNet, tmp_path: Path
) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        state = {k: v.to(dtype) for k, v in network.state_dict().items()}
        found = loaded(saved(state, tmp_path)).conv1.weight
        torch.testing.assert_close(found, network.conv1.weight, rtol=0.01, atol=1e-6)


def nested_dicts(wide: int, deep: int, part: object) -> object:
    """`wide` to the power of `deep` times `part`, in a file of a few kilobytes."""
    for _ in range(deep):
        part = dict.fromkeys(map(str, range(wide)), part)
    return part


def in_itself() -> dict[str, object]:
    content: dict[str, object] = {}
    content["a"] = [content]
    return content


ONE = torch.ones(1)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (nested_dicts(12, 7, ONE), "holds itself, or a part so often"),
        (nested_dicts(3, 40, 1.0), "holds itself, or a part so often"),
        (in_itself(), "holds itself, or a part so often"),
        ({f"{i}.layer1.0.conv1.weight": ONE for i in range(20_000)}, "does not fit resnet18"),
        (
            {f"{i}.{name}": ONE for i in range(20_000) for name in ("conv1.weight", "fc.weight")}
            | {f"{i}.layer4.1.bn2.bias": ONE for i in range(20_000)},
            "does not fit resnet18",
        ),
        ({"x" * 10**6: {str(i): ONE for i in range(20_000)}}, "it has no tensors"),
    ],
)
def test_work_is_bounded_by_the_bytes_of_the_file(
    content: object, reason: str, tmp_path: Path
) -> None:
    refused(reason, saved(content, tmp_path))


def test_compressed_weights_are_refused(tmp_path: Path) -> None:
    file, small = saved({"conv1.weight": torch.zeros(10**6)}, tmp_path), tmp_path / "small.pt"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused("is damaged or truncated", small)


AS_IF_A_WEB_PAGE = b" <\0\0\0\0\0\0" + (
    b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}'.ljust(ord("<") * 256 + ord(" "))
)
"""Safetensors whose header is so long that the length in front of it reads " <"."""


def flipped(content: bytes) -> bytes:
    """A bit of a number in the middle of the file."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: b"", "is empty"),
        (lambda content: content[:-100], "damaged or truncated"),
        (lambda content: content[:500], "damaged or truncated"),
        (flipped, "damaged or truncated"),
        (lambda content: b"\0 of no kind at all", "neither PyTorch's nor safetensors"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (lambda content: b"\n<!DOCTYPE html>\n<html>", "a web page"),
        (lambda content: safetensors.torch.save({"a": torch.ones(9)})[:-4], "damaged or truncated"),
        (lambda content: AS_IF_A_WEB_PAGE, "its keys are 'a'"),
    ],
)
def test_files_that_are_no_weights(
    change: Callable[[bytes], bytes], reason: str, tmp_path: Path
) -> None:
    file = saved({"weight": torch.arange(10_000)}, tmp_path)
    file.write_bytes(change(file.read_bytes()))
    refused(reason, file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (Path("code"), r"more than tensors \(pathlib"),
        ([1, 2], "no state dict"),
        ({"a": 1}, "no tensors"),
    ],
)
def test_other_contents_are_refused(content: object, reason: str, tmp_path: Path) -> None:
    refused(reason, saved(content, tmp_path))
    refused("no such file", tmp_path / "missing.pt")


def test_a_checkpoint_of_this_project_gives_the_same_features(tmp_path: Path) -> None:
    """Its weights are standardized on the way; as weights from elsewhere they no longer are."""
    file = tmp_path / checkpoint.file_name(1)
    write_checkpoint(file, "digits", Path())
    own = TrainedBackbone.load(file, tmp_path, torch.device("cpu")).backbone
    images = torch.from_numpy(digits()[:4])
    expected = encode(own, images, torch.float32)
    found = encode(loaded(file), images, torch.float32)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.std().item())


def test_imagenet_is_downloaded_once_and_checked(
    network: torchvision.models.ResNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="torchvision has none for --arch tiny"):
        load_weights(ResNet("resnet18"), "tiny", "imagenet")
    file = saved(network.state_dict(), tmp_path)
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    published = file.rename(tmp_path / f"resnet18-{checksum}.pth")
    source = SimpleNamespace(
        DEFAULT=SimpleNamespace(url=published.as_uri(), meta={"_file_size": 45.0})
    )
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda arch: source)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for _ in range(2):
        assert torch.equal(loaded("imagenet").conv1.weight, network.conv1.weight)
        published.unlink(missing_ok=True)  # the second time it is not needed

    cached = tmp_path / "hub" / "checkpoints" / published.name
    cached.write_bytes(flipped(cached.read_bytes()))
    refused(rf"{cached} is damaged .*: delete it", "imagenet")
    cached.unlink()
    no_file = r"could not be downloaded .* give the file to --weights"
    refused(no_file, "imagenet")
    published.write_bytes(b"<html> of a proxy")
    refused(no_file, "imagenet")
    assert not list(cached.parent.iterdir())


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
    direct = ResNet("resnet18", pretrained=True).eval()
    direct.load_state_dict({k: v for k, v in given.items() if not k.startswith("fc.")})
    assert torch.equal(
        encode(trained.backbone, images, torch.float32), encode(direct, images, torch.float32)
    )
