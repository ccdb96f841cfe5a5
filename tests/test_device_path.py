"""The path on a GPU, guarded without one: on PyTorch's meta device, which has no memory.

An operation that meets a tensor left on the CPU raises, and so does everything that waits for the
device: reading a number, copying to the CPU, a size that depends on values.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from src.models.batch_norm import calibrate_batch_norm, fold_batch_norm
from src.models.encoder import encode
from src.models.simclr import SimCLR
from src.training.batches import ImageStore, TrainingBatches
from src.training.flags import TrainConfig, ViewSettings
from src.training.health import Totals
from src.training.loop import train_step
from src.training.state import make_optimizer

META = torch.device("meta")
AFFINE = ViewSettings(crop_min=1.0, blur=0.5, rotation=20.0, shear=15.0, shift=0.1, zoom=0.2)
SMALLER = ViewSettings(blur=0.5, view_size=16)


class OneDevice(TorchDispatchMode):
    """Raises if an operation reads or makes tensors on two devices; single numbers may be on the
    CPU, as the GPU takes them as arguments."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.check(operation, args, kwargs)
        result = operation(*args, **(kwargs or {}))
        self.check(operation, args, kwargs, result)
        return result

    def check(self, operation: Any, *values: Any) -> None:
        tensors = [t for t in tree_leaves(values) if isinstance(t, Tensor)]
        assert len({t.device for t in tensors if t.ndim}) <= 1, f"{operation}: {tensors}"


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device has none."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


@pytest.mark.parametrize(
    ("arch", "bn", "pretrained", "views"),
    [
        ("resnet8", "frozen", False, AFFINE),
        ("resnet8", "train", False, SMALLER),
        ("timm/test_efficientnet", "frozen", True, SMALLER),
    ],
)
def test_nothing_of_a_run_is_on_the_cpu_or_waits_for_the_device(
    arch: str, bn: Any, pretrained: bool, views: ViewSettings
) -> None:
    """Calibration, warm-up, steps after freezing, with two learning rates, and encoding."""
    config = TrainConfig(arch=arch, bn=bn, batch_size=4, accumulate=2, views=views)
    store = ImageStore([np.zeros((64, 3, 20, 20), np.uint8)], META, "device")
    batches = TrainingBatches(store, config)
    model = SimCLR(arch, bn, pretrained, 20).train().to(META)
    groups = make_groups(model, config)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    scaler, totals = GradScaler("meta", enabled=False), Totals(META)

    def calibration_views() -> Iterator[Tensor]:
        for _ in range(2):
            yield store.views(torch.arange(8), views, torch.Generator())

    if not pretrained:
        views_of_calibration = list(calibration_views())
        with OneDevice():
            calibrate_batch_norm(model.backbone, views_of_calibration)
    for step, is_frozen in enumerate((pretrained, True)):
        model.backbone.freeze(is_frozen)
        loaded = batches.load(step)
        with OneDevice():
            loss, norm = train_step(model, optimizer, scaler, loaded, config, torch.float32)
            totals.add(loss, norm)
            totals.reset()
        assert loss.device == norm.device == totals.values.device == META
    assert model.backbone.is_frozen == (bn == "frozen")
    images = store.gather(torch.arange(5))
    with OneDevice():
        fold_batch_norm(model.backbone)
        features = encode(model.backbone, images, torch.float32)
    assert features.device == META
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()
    with pytest.raises(AssertionError), OneDevice():
        features.new_ones(3) + torch.ones(3)


def make_groups(model: SimCLR, config: TrainConfig) -> list[dict[str, Any]]:
    """Of the optimizer of a run with two learning rates; fused AdamW itself knows no meta."""
    cpu = SimCLR(config.arch, config.bn, True, 20)
    names = {id(p): name for name, p in cpu.named_parameters()}
    groups = make_optimizer(cpu, config.weight_decay, backbone_rate=0.1).param_groups
    own = dict(model.named_parameters())
    return [
        {"params": [own[names[id(p)]] for p in group["params"]], "lr": 0.1 * group["factor"]}
        for group in groups
    ]
