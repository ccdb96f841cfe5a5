"""The value of every flag that is None: recorded in a checkpoint, or chosen for a folder by the
number and size of its pictures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dataset.folder import find_pictures
from dataset.pictures import BadPicture, picture_size
from src.models.architectures import TIMM
from src.models.pretrained import PRETRAINED
from src.runtime.cli import UserError
from src.training.flags import (
    CHOSEN,
    FREE_TO_CHANGE,
    FROM_PRETRAINED,
    FROM_RANDOM,
    TrainConfig,
    flag_values,
    replaced,
)

LARGE = 5_000
"""From so many pictures on, the recipe is that of STL-10."""
CPU_VIEWS = 24_000
"""Views to train on, on a CPU and below `LARGE`, unless 24 epochs take more: some minutes on two
cores (docs/log.md)."""


PRETRAINED_SIDE, PRETRAINED_BATCH, PRETRAINED_STEPS = 224, 32, 64
"""Of a folder with pretrained weights: side in pixels; batch size, at most; and about so many
steps. Where an epoch has more, the backbone learns more slowly: further from the weights that it
starts from, it gets worse (docs/log.md)."""


def folder_recipe(
    images: int,
    side: int,
    gpu: bool,
    epochs: int | None = None,
    weights: str = "lite0",
    batch_size: int | None = None,
    accumulate: int = 1,
) -> dict[str, Any]:
    """The flags `CHOSEN` for a folder of pictures.

    Args:
        images: number of pictures to train on.
        side: median of their shorter sides in pixels.
        gpu: whether there is one.
        epochs: those of --epochs, on which others depend; None if they are to be chosen.
        weights: those that training begins with.
        batch_size: that of --batch-size, which like `accumulate` changes the number of steps.
    """
    is_pretrained = weights != "none"
    choose = _from_pretrained if is_pretrained else _from_random
    arch, target, batch, chosen = choose(images, gpu)
    schedule = epochs or chosen  # --epochs 0 makes the checkpoint that training would begin with
    per_epoch = max(1, images // max(1, (batch_size or batch) * accumulate))
    warmup, values = float(max(2, schedule // 12)), FROM_RANDOM
    if is_pretrained:  # statistics are frozen, so that the learning rate alone warms up
        warmup = _rounded(min(20 / per_epoch, schedule / 4), 2)
        pace = min(1, PRETRAINED_STEPS / (schedule * per_epoch))
        rate = _rounded(FROM_PRETRAINED["backbone_rate"] * pace, 4)
        values = FROM_PRETRAINED | {"backbone_rate": rate}
    return {
        "weights": weights,
        "arch": PRETRAINED[weights].arch if weights in PRETRAINED else arch,
        "image_size": target if is_pretrained else max(32, min(target, side // 16 * 16)),
        "batch_size": batch,
        "epochs": chosen if epochs is None else epochs,
        "warmup_epochs": warmup,
        "checkpoint_every": max(4, schedule // 6),
        "log_every": max(1, min(schedule * per_epoch // 100, 100)),  # for a curve of 100 points
        **values,
    }


def _rounded(value: float, decimals: int) -> float:
    """`value` to so many decimals, or what is smaller than these to two significant digits."""
    if abs(value) < 10**-decimals:
        return float(f"{value:.1e}")
    return round(value, decimals)


def _from_random(images: int, gpu: bool) -> tuple[str, int, int, int]:
    """Architecture, side, batch size and epochs for so many pictures."""
    is_full = gpu or images >= LARGE
    eighth = (1 << (images // 8).bit_length()) // 2  # the largest power of two up to N / 8
    batch = max(2, min(images, max(16, min(eighth, 256))))
    per_epoch = max(1, images // batch)
    steps = 1_200 if images >= LARGE else 2_000
    epochs = max(24, min(-(-steps // per_epoch), 200))
    if not is_full:
        epochs = max(24, min(epochs, CPU_VIEWS // (2 * batch * per_epoch)))
    return ("resnet50", 96, batch, epochs) if is_full else ("resnet18", 64, batch, epochs)


def _from_pretrained(images: int, gpu: bool) -> tuple[str, int, int, int]:
    batch = max(2, min(images, PRETRAINED_BATCH))
    epochs = max(1, min(round(PRETRAINED_STEPS / max(1, images // batch)), 8))
    return "resnet50", PRETRAINED_SIDE, batch, epochs


def open_flags(config: TrainConfig) -> set[str]:
    """Those that are None and have to be chosen."""
    values = vars(config) | vars(config.views)
    return {name for name in CHOSEN if values[name] is None}


def resolve(
    config: TrainConfig, gpu: bool, recorded: tuple[Path, dict[str, Any]] | None
) -> TrainConfig:
    """`config` with a value for every flag: the checkpoint's if the run is resumed, otherwise the
    data set's default or, for a folder, one that suits the pictures.

    Args:
        recorded: the checkpoint that the run resumes from, and its flags; None for a new run.

    Raises:
        UserError: the flags conflict with the checkpoint (checked before decoding).
    """
    config = choose(config, gpu, recorded[1] if recorded else {})
    if recorded:
        refuse_changes(*recorded, config)
    return config


def choose(config: TrainConfig, gpu: bool, recorded: dict[str, Any]) -> TrainConfig:
    """`config` with a value for every flag that is None, and a line that names the new ones.

    Args:
        recorded: the flags of the checkpoint that the run resumes from, which count first, so that
            resuming does not decide again; empty without one.
    """
    recorded = recorded and flag_values(TrainConfig()) | recorded
    if not recorded.get("epochs"):  # nothing was trained
        recorded = {name: value for name, value in recorded.items() if name != "epochs"}
    known = {name: recorded[name] for name in open_flags(config) & set(recorded)}
    config = with_own_arch(replaced(config, known))
    if not (missing := open_flags(config)):
        return config
    if config.dataset != "folder":
        own = TrainConfig.for_dataset(config.dataset, config.pretrained)
        values = flag_values(own)
        return replaced(config, {name: values[name] for name in missing})
    images, side = survey(config.data_dir, config.train_on)
    if (weights := config.weights) is None:  # a network that was asked for has weights of its own
        weights = "pretrained" if (config.arch or "").startswith(TIMM) else "none"
        weights = weights if config.arch else "lite0"
    recipe = folder_recipe(
        images, side, gpu, config.epochs, str(weights), config.batch_size, config.accumulate
    )
    chosen = {name: value for name, value in recipe.items() if name in missing}
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in chosen.items())
    device = "a GPU" if gpu else "a CPU"
    print(f"chosen for {images:,} pictures of about {side:,} px on {device}: {flags}")
    return with_own_arch(replaced(config, chosen))


def with_own_arch(config: TrainConfig) -> TrainConfig:
    """`config` with the network that its weights are of, if they have a name.

    Raises:
        UserError: `--arch` names another one, or none and the weights could be of any.
    """
    if config.weights == "pretrained" and config.arch is None:
        raise UserError("--weights pretrained needs --arch timm/NAME")
    known, given = PRETRAINED.get(str(config.weights)), config.arch
    if known is None:
        return config
    if given not in (None, known.arch, TrainConfig.for_dataset(config.dataset).arch):
        raise UserError(f"--weights {config.weights} are of {known.arch}, not of {given}")
    return replace(config, arch=known.arch)


def survey(data_dir: Path, splits: tuple[str, ...]) -> tuple[int, int]:
    """The number of pictures in the splits, and the median of their shorter sides in pixels, from
    the headers of up to 64, evenly spaced; (0, 0) without a picture."""
    found = find_pictures(data_dir)
    names = [name for split in splits if split in found for name, _, _ in found[split].files]
    sides = []
    for row in np.linspace(0, len(names) - 1, min(64, len(names))).astype(int):
        try:
            sides.append(min(picture_size(data_dir / names[row])))
        except BadPicture:  # decoding will name it
            continue
    return len(names), int(np.median(sides)) if sides else 0


def refuse_changes(
    file: Path, saved: dict[str, Any], config: TrainConfig, same_images: bool = True
) -> None:
    """Raise UserError if the flags `saved` in `file`, or the images, are those of another run than
    `config`."""
    saved = flag_values(TrainConfig()) | saved  # flags that are newer than the checkpoint
    different = [
        f"--{name.replace('_', '-')} {saved[name]} (now {value})"
        for name, value in flag_values(config).items()
        if name not in FREE_TO_CHANGE and saved[name] != value
    ]
    if epochs := saved.get("low_resolution_epochs"):
        different.append(f"--low-resolution-epochs {epochs} (a flag that no longer exists)")
    if not different and not same_images:
        different = [f"other images than those now in {config.data_dir}"]
    if different:
        raise UserError(
            f"{file} was trained with {', '.join(different)}: use the same settings to resume, "
            "--fresh to start over (it keeps the old files), or --name for a separate experiment"
        )
