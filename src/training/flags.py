"""Every flag of src/train.py, each dataset's own defaults, and the flags' checks."""

import dataclasses
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TypeVar

import tyro

from src.runtime.cli import UserError, check_seed
from src.runtime.flag_choices import (
    BatchNorm,
    DatasetName,
    DeviceName,
    Placement,
    PrecisionName,
    SplitName,
    WandbMode,
    WeightsName,
)

T = TypeVar("T")
if TYPE_CHECKING:
    Chosen = Annotated[T, "None only before `prepare`"]
else:
    Chosen = Optional


@dataclass(frozen=True)
class ViewSettings:
    """How much two views of an image may differ."""

    crop_min: Chosen[float] = 0.2
    """Smallest fraction of an image's area that a view may show; the largest is 1."""
    flip: float = 0.5
    """Probability that a view is mirrored."""
    jitter: float = 0.3
    """Strength s of the color jitter, with probability 0.8: brightness, contrast and saturation
    by up to 0.8 s, hue by up to 0.2 s."""
    gray: float = 0.2
    """Probability that a view is grayscale."""
    blur: float = 0.0
    """Probability of a Gaussian blur: sigma 0.1 to 2 pixels, kernel a tenth of the side."""
    rotation: float = 0.0
    """Largest rotation of a view to either side, in degrees."""
    shear: float = 0.0
    """Largest shear of a view to either side, in degrees."""
    shift: float = 0.0
    """Largest shift of a view along each axis, as a fraction of its side."""
    zoom: float = 0.0
    """Largest change of a view's size in either direction: 0.1 is 1/1.1 to 1.1."""
    view_size: Chosen[int] = 0
    """Side of a view in pixels, at most that of the images, which later stages see; 0 is that."""

    @classmethod
    def of(cls, flags: Any) -> "ViewSettings":
        """Those among the flags of a run; the defaults of settings that are newer than it."""
        return cls(**{f.name: flags[f.name] for f in fields(cls) if f.name in flags})


@dataclass(frozen=True)
class TrainConfig:
    dataset: DatasetName = "stl10"
    """The dataset; digits has its own defaults (--dataset digits --help shows them). For a folder,
    flags that are None are chosen from the number and size of its pictures."""
    data_dir: Path = Path("dataset")
    """With stl10, the folder that contains stl10_binary/; with folder, the folder of pictures.
    STL-10 is downloaded only into the default one."""
    name: str | None = None
    """Name of the experiment: by default its --checkpoint-dir is checkpoints/NAME. Also W&B's
    group."""
    checkpoint_dir: Path = Path("checkpoints")
    """Directory for checkpoints and metrics.jsonl; training resumes from the newest checkpoint."""
    train_on: tuple[SplitName, ...] = ("unlabeled", "train")
    """Splits to train on; missing ones are skipped. Their labels are never used."""
    image_size: Chosen[int] = 96
    """Side in pixels to which the pictures of a folder are resized."""
    cache_dir: Path | None = None
    """Directory for the decoded pictures of a folder; by default, next to the pictures."""

    arch: Chosen[str] = "resnet50"
    """Backbone: resnet8, 18, 34, 50 or 101, or timm/NAME for any network of timm."""
    bn: BatchNorm = "frozen"
    """Batch norm: frozen (statistics fixed after the warm-up, weights standardized), or train
    (statistics of every batch)."""
    weights: Chosen[WeightsName | Path] = "none"
    """Initial weights of the backbone. none: random; lite0: EfficientNet-Lite0, learned with
    ImageNet's labels; dino, barlowtwins: ResNet-50, learned without any label; imagenet:
    torchvision's, with labels; pretrained: timm's for --arch timm/NAME; or a PyTorch or
    safetensors file with a state dict. Pretrained batch-norm statistics stay frozen from the
    start."""
    trained_share: Chosen[float] = 1.0
    """Share of the trained weights in the backbone that later stages use; the rest are the weights
    that training began with."""

    views: tyro.conf.OmitArgPrefixes[ViewSettings] = field(default_factory=ViewSettings)
    """How far the two views of an image may differ."""

    temperature: Chosen[float] = 0.2
    """NT-Xent's tau."""
    epochs: Chosen[int] = 24
    """Passes over the images; 0 writes the initial checkpoint and stops. Raising it after a
    finished run continues on the longer schedule."""
    batch_size: Chosen[int] = 256
    """Images per batch; their views are each other's negatives."""
    accumulate: int = 1
    """Batches per optimizer step: gradients are averaged, but negatives come from one batch."""
    learning_rate: float = 1e-3
    """AdamW's peak learning rate for 256 images per step; scales with the square root of that
    number."""
    backbone_rate: Chosen[float] = 1.0
    """Learning rate of the backbone, as a factor of --learning-rate."""
    weight_decay: float = 1e-4
    """AdamW's weight decay; none on biases and batch norm."""
    warmup_epochs: Chosen[float] = 2.0
    """Epochs of linear warm-up before the cosine; batch norm is frozen when they end."""
    clip_norm: float = 1.0
    """Maximum gradient norm (clipping)."""

    device: DeviceName = "auto"
    """Device to train on; auto picks CUDA, MPS or the CPU, in this order."""
    precision: PrecisionName = "auto"
    """Mixed precision; auto is bf16 if supported by the hardware, otherwise fp16 on CUDA and fp32
    elsewhere. fp32 never rounds to TF32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto is on for CUDA where 2,000 steps or more follow, counted apart before
    and after batch norm is frozen. PyTorch caches compiled code for the next run, in the system's
    temporary folder or in $TORCHINDUCTOR_CACHE_DIR."""
    images: Placement = "auto"
    """Keep the images on the device or stream them; auto depends on its free memory."""
    deterministic: bool = False
    """Deterministic algorithms on a GPU, so that resuming is bit-identical, as on a CPU."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and every view."""

    checkpoint_every: Chosen[int] = 4
    """Epochs between checkpoints."""
    keep: int | None = None
    """Number of checkpoints to keep, apart from epoch 0; by default all."""
    fresh: bool = False
    """Start over; the files of an earlier run are moved into a new folder."""
    log_every: Chosen[int] = 100
    """Steps between logged training losses."""
    monitor_every: int = 4
    """Epochs between k-NN and K-means accuracies on 5,000 labeled images, if there are labels."""
    wandb: WandbMode = "auto"
    """Weights & Biases; auto is online with a key and a reachable server, otherwise offline."""
    wandb_dir: Path = Path("wandb")
    """Directory for the files of Weights & Biases."""

    @classmethod
    def for_dataset(
        cls, dataset: DatasetName, pretrained: bool = False, **changes: Any
    ) -> "TrainConfig":
        """The defaults for a dataset, from random weights or pretrained ones."""
        config = cls(**{"dataset": dataset, **DEFAULTS.get(dataset, {})})
        if pretrained and dataset != "folder":
            config = replaced(config, FROM_PRETRAINED)
        return dataclasses.replace(config, **changes)

    @property
    def pretrained(self) -> bool:
        return self.weights not in (None, "none")

    @property
    def images_per_step(self) -> int:
        return self.batch_size * self.accumulate


FROM_RANDOM = {
    "temperature": 0.2, "view_size": 0, "crop_min": 0.2, "backbone_rate": 1.0, "trained_share": 1.0,
}  # fmt: skip
FROM_PRETRAINED = {
    "temperature": 0.5, "view_size": 128, "crop_min": 0.4, "backbone_rate": 0.1,
    "trained_share": 0.5,
}  # fmt: skip
"""What suits weights that were learned elsewhere (docs/log.md)."""

CHOSEN = (
    *("weights", "arch", "image_size", "batch_size", "epochs", "warmup_epochs"),
    *("checkpoint_every", "log_every", *FROM_RANDOM),
)
"""Flags that `src/training/recipe.py` chooses for a folder unless they are given."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {
        "image_size": 20,
        "arch": "resnet8",
        "views": ViewSettings(
            crop_min=1.0, flip=0.0, jitter=0.6, gray=0.0, blur=0.5,
            rotation=20.0, shear=15.0, shift=0.1, zoom=0.2,
        ),
        "temperature": 0.5,
        "epochs": 20,
        "batch_size": 128,
        "warmup_epochs": 4.0,
        "checkpoint_every": 10,
        "log_every": 10,
    },
    "folder": {
        **{name: None for name in CHOSEN if name not in ("crop_min", "view_size")},
        "views": ViewSettings(view_size=None, crop_min=None),  # type: ignore[arg-type]
    },
}  # fmt: skip
"""Where a data set's defaults differ from those of `TrainConfig`, which are STL-10's."""

FREE_TO_CHANGE = {
    *("name", "data_dir", "cache_dir", "checkpoint_dir", "wandb", "wandb_dir", "fresh", "keep"),
    *("device", "compile", "images", "deterministic"),
    *("epochs", "checkpoint_every", "log_every", "monitor_every"),
}
"""Flags that may differ when training is resumed: they do not change what a step computes."""


def check(config: TrainConfig) -> None:
    """Raise UserError for a flag out of its range."""
    positive = (
        *("temperature", "batch_size", "accumulate", "learning_rate", "backbone_rate"),
        *("clip_norm", "checkpoint_every", "log_every", "monitor_every", "image_size"),
    )
    for name in positive:
        if not getattr(config, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0")
    for name in ("flip", "gray", "blur"):
        if not 0 <= getattr(config.views, name) <= 1:
            raise UserError(f"--{name} must be a probability, from 0 to 1")
    flags = flag_values(config)
    for name in ("view_size", "jitter", "rotation", "shear", "shift", "zoom", "weight_decay",
                 "warmup_epochs", "epochs"):  # fmt: skip
        if not 0 <= flags[name] < math.inf:
            raise UserError(f"--{name.replace('_', '-')} must be 0 or more")
    if not 0 < config.trained_share <= 1 or (config.trained_share < 1 and not config.pretrained):
        raise UserError(
            "--trained-share must be above 0 and at most 1, and 1 for random initial weights"
        )
    check_seed(config.seed)
    if not 0 < config.views.crop_min <= 1:
        raise UserError("--crop-min must be above 0 and at most 1")
    if config.keep is not None and config.keep < 1:
        raise UserError("--keep must be at least 1")
    if config.batch_size < 2:
        raise UserError("--batch-size must be at least 2: NT-Xent needs negatives")


def replaced(config: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """`config` with other values, also of its views."""
    names = {f.name for f in fields(ViewSettings)}
    views = {name: value for name, value in values.items() if name in names}
    others = {name: value for name, value in values.items() if name not in names}
    return dataclasses.replace(config, views=dataclasses.replace(config.views, **views), **others)


def flag_values(config: TrainConfig) -> dict[str, Any]:
    """The flags as built-in types, as a checkpoint holds them."""
    flags = dataclasses.asdict(config)
    flags |= flags.pop("views")
    paths = {name: str(value) for name, value in flags.items() if isinstance(value, Path)}
    return {**flags, **paths, "train_on": list(config.train_on)}
