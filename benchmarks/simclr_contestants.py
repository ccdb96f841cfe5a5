"""SimCLR as several projects have it, each with a step at a time, for time_to_target.py.

Every contestant has `network`, `optimizer` and `counts`, which are its state; `step`, which
trains on one batch after a share of the time; and `features` (N, D) of uint8 images (N, 3, S, S).
"""
# pyright: reportMissingImports=false

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader
from torchvision.transforms import v2

from benchmarks.compare import Pictures
from src.models.encoder import encode_all
from src.models.preprocessing import PIXEL_MEAN, PIXEL_STD, channels
from src.models.simclr import nt_xent
from src.runtime.device import autocast, select_precision
from src.runtime.prefetch import prefetch
from src.training.flags import TrainConfig
from src.training.loop import train_step
from src.training.setup import prepare
from src.training.state import end_warmup, restore_or_initialize

CPU = torch.device("cpu")
PEERS = [
    f"{peer}-{arch}{fast}"
    for peer in ("lightly", "sthalles")
    for arch in ("resnet18", "resnet50")
    for fast in ("", "-fast")
]
CONTESTANTS = ["ours", "ours-resnet18", *PEERS]


def half_cosine(share: float) -> float:
    return (1 + math.cos(math.pi * min(1, share))) / 2


class Ours:
    """What src/train.py does."""

    def __init__(self, flags: TrainConfig):
        self.setup = prepare(flags)
        self.run = restore_or_initialize(self.setup, None)
        self.network, self.optimizer = self.run.model, self.run.optimizer
        self.counts = {"steps": 0, "warmup_share": 0.0}
        self.batches: Iterator[Any] | None = None

    def step(self, share: float) -> None:
        step, setup = int(self.counts["steps"]), self.setup
        if self.batches is None:  # a new run, or one that continues
            self.batches = prefetch(setup.batches.load, itertools.count(step))
            self.network.backbone.freeze(step > setup.warmup_steps)
        if step == setup.warmup_steps:
            end_warmup(self.run, setup)
            self.counts["warmup_share"] = share
        rate = setup.config.learning_rate * math.sqrt(setup.config.images_per_step / 256)
        if step < setup.warmup_steps:
            rate *= (step + 1) / setup.warmup_steps
        else:
            start = self.counts["warmup_share"]
            rate *= half_cosine((share - start) / (1 - start))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        batch, scaler = next(self.batches), self.run.scaler
        train_step(self.network, self.optimizer, scaler, batch, setup.config, setup.dtype)

    def features(self, images_NCSS: np.ndarray) -> np.ndarray:
        return encode_all(self.network.backbone, images_NCSS, self.setup.dtype)


class Recipe(NamedTuple):
    views: Callable[[Any], Any]
    """A Pillow image to two tensors."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head: nn.Module
    loss: Callable[[list[Tensor]], Tensor]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    rate: Callable[[float, int], float]
    """The learning rate by the share of the time and the epoch."""
    together: bool
    """Whether both views pass the network, and so batch norm, as one batch."""


def lightly(side: int, dim: int, per_epoch: int) -> Recipe:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms.simclr_transform import SimCLRTransform

    criterion = NTXentLoss()
    return Recipe(
        SimCLRTransform(input_size=side), PIXEL_MEAN, PIXEL_STD,
        SimCLRProjectionHead(dim, dim, 128), lambda views: criterion(*views),
        lambda weights: torch.optim.SGD(weights, 0.06, momentum=0.9, weight_decay=5e-4),
        lambda share, epoch: 0.06 * half_cosine(share), together=False,
    )  # fmt: skip


def sthalles(side: int, dim: int, per_epoch: int) -> Recipe:
    view = v2.Compose([
        v2.RandomResizedCrop(side), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8), v2.RandomGrayscale(0.2),
        v2.GaussianBlur(side // 10 | 1, (0.1, 2.0)),
        v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
    ])  # fmt: skip
    return Recipe(
        lambda image: (view(image), view(image)), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0),
        nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 128)),
        lambda views: nt_xent(torch.cat(views), 0.07),
        lambda weights: torch.optim.Adam(weights, 3e-4, weight_decay=1e-4),
        lambda share, epoch: 3e-4 * half_cosine(max(0, epoch - 10) / per_epoch), together=True,
    )  # fmt: skip


class Peer:
    """torchvision's ResNet in a recipe, with a DataLoader."""

    def __init__(
        self, recipe: Callable[..., Recipe], arch: str, is_fast: bool, images: list[np.ndarray],
        batch_size: int, workers: int,
    ):  # fmt: skip
        self.per_epoch = sum(map(len, images)) // batch_size
        backbone = getattr(torchvision.models, arch)()
        self.recipe = recipe(images[0].shape[-1], backbone.fc.in_features, self.per_epoch)
        backbone.fc = nn.Identity()
        self.network = nn.Sequential(backbone, self.recipe.head).train()
        self.layout = torch.channels_last if is_fast else torch.contiguous_format
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.dtype = select_precision("auto", CPU) if is_fast else torch.float32
        self.optimizer = self.recipe.optimizer(self.network.parameters())
        self.counts = {"steps": 0}
        loader = DataLoader(
            ConcatDataset([Pictures(array, self.recipe.views) for array in images]), batch_size,
            shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0,
        )  # fmt: skip
        self.batches = (views for _ in itertools.count() for views in loader)

    def step(self, share: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(share, self.counts["steps"] // self.per_epoch)
        views = next(self.batches)
        parts = [torch.cat(views)] if self.recipe.together else views
        with autocast(CPU, self.dtype):
            outputs = [self.network(part.contiguous(memory_format=self.layout)) for part in parts]
        loss = self.recipe.loss([output.float() for output in outputs])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def features(self, images_NCSS: np.ndarray) -> np.ndarray:
        mean, std = channels(self.recipe.mean, CPU), channels(self.recipe.std, CPU)
        self.network.eval()
        parts = torch.from_numpy(np.ascontiguousarray(images_NCSS)).split(256)
        with autocast(CPU, self.dtype):
            features = [self.network[0]((part / 255 - mean) / std).float() for part in parts]
        return torch.cat(features).numpy()


def new_contestant(
    name: str, flags: TrainConfig, images: list[np.ndarray], batch_size: int | None, workers: int
) -> Ours | Peer:
    """One of `CONTESTANTS`, untrained.

    Args:
        flags: of our training on the same images.
        images: uint8 (N, 3, S, S) of every split to train on.
        batch_size: None for the documented one.
        workers: processes that load data, for peers.
    """
    torch.manual_seed(flags.seed)
    who, _, arch = name.removesuffix("-fast").partition("-")
    if who == "ours":
        changes = {"arch": arch, "batch_size": batch_size}
        return Ours(replace(flags, **{name: value for name, value in changes.items() if value}))
    recipe = {"lightly": lightly, "sthalles": sthalles}[who]
    return Peer(recipe, arch, name.endswith("-fast"), images, batch_size or 256, workers)
