"""Features in every precision, folded and not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from src.feature_extraction import ExtractionConfig, main
from src.models.backbone import Backbone
from src.models.batch_norm import batch_norms, calibrate_batch_norm, fold_batch_norm
from src.models.encoder import TrainedBackbone, encode, encode_into
from src.models.resnet import ResNet
from src.runtime.cli import UserError
from src.storage.checkpoint import file_name
from tests.helpers.finished_run import write_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(stl10_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedBackbone:
    directory = tmp_path_factory.mktemp("checkpoints")
    write_checkpoint(directory / file_name(0), "stl10", stl10_dir, arch="resnet50")
    return TrainedBackbone.load(None, directory, CPU)


def test_bfloat16_features_are_those_of_float32(trained: TrainedBackbone, stl10_dir: Path) -> None:
    folder = stl10_dir / "stl10_binary"
    images = torch.from_numpy(np.fromfile(folder / "train_X.bin", np.uint8).reshape(-1, 3, 96, 96))
    # bfloat16 is slow on many processors.
    images = images[::5, :, :64, :64]
    narrow, wide = (encode(trained.backbone, images, d) for d in (torch.bfloat16, torch.float32))
    assert not torch.equal(narrow, wide)
    assert torch.cosine_similarity(narrow, wide).min() >= 0.999


def test_large_pictures_go_in_small_batches_on_a_cpu() -> None:
    """All at once they would take gigabytes."""
    for side, largest in ((32, 256), (96, 256), (224, 47), (4000, 1)):
        images = np.zeros((260 if side < 224 else 48, 3, side, side), np.uint8)
        images = images[:1] if side == 4000 else images
        counts = encode_into(None, Means(), images, torch.float32)
        assert max(counts) == min(largest, len(images))


class Means(Backbone):
    """As small as a backbone can be."""

    feature_dim = 3

    def __init__(self) -> None:
        super().__init__("frozen")
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return x_BCHW.mean((2, 3)) * self.weight


def test_folding_changes_nothing() -> None:
    backbone = ResNet("resnet18").train()
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    calibrate_batch_norm(backbone, [torch.randn(16, 3, 64, 64)])
    expected = encode(backbone.eval(), images, torch.float32)
    fold_batch_norm(backbone)
    assert all(norm.folded is not None for norm in batch_norms(backbone))
    assert torch.equal(encode(backbone, images, torch.float32), expected)


def test_the_size_of_a_batch_does_not_matter(trained: TrainedBackbone) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 64, 64), np.uint8)
    by_size = []
    for size in (3, 8):
        features = np.empty((8, 2048), np.float32)
        counts = encode_into(features, trained.backbone, images, torch.bfloat16, size)
        assert sum(counts) == 8
        by_size.append(features)
    np.testing.assert_allclose(*by_size, rtol=1e-2, atol=1e-3)


def test_without_the_untrained_network_nothing_is_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / file_name(1), "digits", Path())
    features = tmp_path / "features"
    with pytest.raises(UserError, match=rf"{file_name(0)} is missing"):
        main(ExtractionConfig(tmp_path / file_name(1), feature_dir=features, untrained=True))
    assert not features.exists()
