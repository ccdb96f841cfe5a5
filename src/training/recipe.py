"""The value of every flag that is None: recorded in a checkpoint, or chosen for a folder by the
number and size of its pictures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from typing_extensions import TypedDict

from dataset.folder import find_pictures
from dataset.pictures import BadPicture, picture_size
from src.models.architectures import Architecture
from src.runtime import distributed
from src.runtime.cli import UserError
from src.storage.checkpoint import Newest
from src.storage.files import misfit
from src.training.flags import CHOSEN, FREE_TO_CHANGE, TrainConfig, flag_values

LARGE = 5_000
"""From so many pictures on, the recipe is that of STL-10."""
CPU_VIEWS = 24_000
"""Views to train on, on a CPU and below `LARGE`, unless 24 epochs take more: some minutes on two
cores (docs/log.md)."""


class FolderRecipe(TypedDict):
    """The flags `CHOSEN`."""

    arch: Architecture
    image_size: PositiveInt
    batch_size: PositiveInt
    epochs: NonNegativeInt
    warmup_epochs: NonNegativeFloat
    checkpoint_every: PositiveInt
    log_every: PositiveInt


def folder_recipe(
    images: int,
    side: int,
    gpu: bool,
    epochs: int | None = None,
    pretrained: bool = False,
    batch_size: int | None = None,
    accumulate: int = 1,
) -> FolderRecipe:
    """Default settings for a folder of pictures.

    Args:
        images: number of pictures to train on.
        side: median of their shorter sides in pixels.
        gpu: whether there is one.
        epochs: those of --epochs, on which others depend; None if they are to be chosen.
        pretrained: whether training begins with weights from elsewhere.
        batch_size: that of --batch-size, which like `accumulate` changes the number of steps.
    """
    is_full = gpu or images >= LARGE
    eighth = (1 << (images // 8).bit_length()) // 2  # the largest power of two up to N / 8
    batch = max(2, min(images, max(16, min(eighth, 256))))
    per_epoch = max(1, images // batch)
    steps = 1_200 if images >= LARGE else 2_000
    chosen = 24 if pretrained else max(24, min(-(-steps // per_epoch), 200))
    if not is_full:
        chosen = max(24, min(chosen, CPU_VIEWS // (2 * batch * per_epoch)))
    target = 96 if is_full or pretrained else 64
    if pretrained and epochs == 0 and images < LARGE // 2:
        target = 224  # published weights were learned at this size, and features cost little
    schedule = epochs or chosen  # --epochs 0 makes the checkpoint that training would begin with
    planned = schedule * (images // max(1, (batch_size or batch) * accumulate))
    return {
        "arch": "resnet50" if is_full or pretrained else "resnet18",
        "image_size": max(32, min(target, side // 16 * 16)),
        "batch_size": batch,
        "epochs": chosen if epochs is None else epochs,
        "warmup_epochs": float(max(2, schedule // 12)),
        "checkpoint_every": max(4, schedule // 6),
        "log_every": max(1, min(planned // 100, 100)),  # for a curve of 100 points
    }


def open_flags(config: TrainConfig) -> set[str]:
    """Those that are None and have to be chosen."""
    return {name for name in CHOSEN if getattr(config, name) is None}


def resolve(config: TrainConfig, gpu: bool, newest: Newest | None) -> TrainConfig:
    """`config` with a value for every flag: the checkpoint's if the run is resumed, otherwise the
    data set's default or, for a folder, one that suits the pictures.

    Args:
        newest: the checkpoint to resume from; None for a new run, and except in the main process.

    Raises:
        UserError: the flags conflict with the checkpoint (checked before decoding).
    """
    found = distributed.from_main(newest.flags() if newest else None)
    config = choose(config, gpu, found[1] if found else {})
    if found:
        refuse_changes(*found, config)
    return config


def choose(config: TrainConfig, gpu: bool, recorded: dict[str, Any]) -> TrainConfig:
    """`config` with a value for every flag that is None, and a line that names the new ones.

    Args:
        recorded: the flags of the checkpoint that the run resumes from, which count first, so that
            resuming does not decide again; empty without one.
    """
    if recorded and misfit(recorded, FolderRecipe):
        recorded = {}  # `restore` will refuse it
    if not recorded.get("epochs"):  # nothing was trained
        recorded = {name: value for name, value in recorded.items() if name != "epochs"}
    config = replace(
        config, **{name: recorded[name] for name in open_flags(config) & set(recorded)}
    )
    if not (missing := open_flags(config)):
        return config
    if config.dataset != "folder":
        own = TrainConfig.for_dataset(config.dataset)
        return replace(config, **{name: getattr(own, name) for name in missing})
    images, side = survey(config.data_dir, config.train_on)
    recipe = folder_recipe(
        images, side, gpu, config.epochs, config.pretrained, config.batch_size, config.accumulate
    )
    chosen = {name: value for name, value in recipe.items() if name in missing}
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in chosen.items())
    device = "a GPU" if gpu else "a CPU"
    print(f"chosen for {images:,} pictures of about {side:,} px on {device}: {flags}")
    return replace(config, **chosen)


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
