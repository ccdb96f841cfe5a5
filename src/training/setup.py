"""What stays the same through a run: its flags, the images, the device and the batches."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from dataset.folder import LeftOut, walk
from dataset.load_dataset import Dataset, load_dataset
from dataset.stl10 import stl10_folder, stl10_splits
from dataset.stl10_archive import get_stl10
from src.runtime import distributed
from src.runtime.cli import UserError, printable
from src.runtime.device import PRECISIONS, select_device, select_precision
from src.storage.checkpoint import Newest
from src.training.batches import ImageStore, TrainingBatches
from src.training.flags import TrainConfig, check
from src.training.recipe import resolve


@dataclass(frozen=True)
class Setup:
    """What stays the same from the first step to the last."""

    config: TrainConfig
    dataset: Dataset
    batches: TrainingBatches
    device: torch.device
    dtype: torch.dtype

    @property
    def steps(self) -> int:
        return self.config.epochs * self.batches.per_epoch

    @property
    def warmup_steps(self) -> int:
        return round(self.config.warmup_epochs * self.batches.per_epoch)


def prepare(config: TrainConfig, newest: Newest | None = None) -> Setup:
    """Check the flags, select device and precision, open the images.

    Args:
        newest: the checkpoint to resume from; None for a new run, and except in the main process.

    Raises:
        UserError: flags, images and processes do not fit together.
    """
    device = select_device(config.device)
    dtype = select_precision(config.precision, device)
    # Recorded as what `auto` stands for here: resuming elsewhere must not change the precision.
    config = dataclasses.replace(config, precision=PRECISIONS[dtype])
    batch_size_given = config.batch_size is not None
    recorded = distributed.from_main(newest.flags() if newest else None)
    config = resolve(config, device.type != "cpu", recorded)
    check(config)
    torch.backends.cudnn.benchmark = not config.deterministic  # shapes hardly change
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
        torch.use_deterministic_algorithms(True)
    with distributed.local_main_first():  # downloads and decodes for the others
        dataset, names = open_dataset(config)
    store = ImageStore([dataset.splits[name].images for name in names], device, config.images)
    if not recorded:  # otherwise `restore` knows whether anything is left to train
        if not batch_size_given:  # it suits the number of files, of which some may be broken
            suits = max(2, min(config.batch_size, len(store)))
            config = dataclasses.replace(config, batch_size=suits)
        if config.epochs:
            refuse_few(config, len(store))
    if config.batch_size % distributed.size():
        raise UserError(
            f"--batch-size {config.batch_size} must be a multiple of the "
            f"{distributed.size()} processes"
        )
    batches = TrainingBatches(store, config)
    placement = "held in its memory" if store.placement == "device" else "read batch by batch"
    processes = f"{distributed.size()} processes, the first on " if distributed.size() > 1 else ""
    print(
        f"{config.arch} on {processes}{device} in {config.precision}, "
        f"{store.bytes / 1e6:,.0f} MB of images, {placement}"
    )
    return Setup(config, dataset, batches, device, dtype)


def refuse_few(config: TrainConfig, images: int) -> None:
    """Raise UserError if so many images do not fill a step."""
    if images < 2:
        raise UserError(
            f"training needs at least two pictures: {config.data_dir} has {images} to train on"
        )
    if config.images_per_step > images:
        can_be_lower = 2 * config.accumulate <= images
        raise UserError(
            f"--batch-size {config.batch_size} x --accumulate {config.accumulate} is more than "
            f"the {images:,} images to train on: lower "
            + ("--batch-size" if can_be_lower else "--accumulate")
        )


def open_dataset(config: TrainConfig) -> tuple[Dataset, list[str]]:
    """The dataset, and the names of its splits to train on."""
    if config.dataset == "stl10":
        _check_download(config.data_dir)
        get_stl10(config.data_dir)
    dataset = load_dataset(config.dataset, config.data_dir, config.image_size, config.cache_dir)
    names = [name for name in dataset.splits if name in config.train_on]
    if not names:
        raise UserError(
            f"none of the splits of --train-on ({', '.join(config.train_on)}) is in "
            f"{config.data_dir}, which has: {', '.join(dataset.splits)}"
        )
    sizes = ", ".join(f"{name} {len(s.images):,}" for name, s in dataset.splits.items())
    missing = [name for name in config.train_on if name not in dataset.splits]
    note = f" (there is no {' and no '.join(missing)} split)" if missing else ""
    use = f"; to train on: {' and '.join(names)}{note}" if config.epochs else ""
    print(f"{config.dataset}: {sizes} images{use}")
    for line in dataset.notes:
        print(f"note: {printable(line)}")
    return dataset, names


def _check_download(data_dir: Path) -> None:
    """Raise UserError if STL-10 is missing and downloading was not requested: the directory is not
    the default one, or it holds pictures."""
    if stl10_splits(stl10_folder(data_dir)):
        return
    if data_dir != TrainConfig.data_dir or next(walk(str(data_dir), LeftOut()), None):
        raise UserError(
            f"no STL-10 images in {data_dir}: add --dataset folder to train on your own pictures "
            "there, or download STL-10 to it with python dataset/download_dataset.py --data-dir "
            f"{data_dir}"
        )
