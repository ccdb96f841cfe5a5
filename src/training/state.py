"""The state of a training: initialized, saved, and restored as if it had never stopped."""

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from dataset.folder import LeftOut, walk
from dataset.load_dataset import Dataset, load_dataset
from dataset.stl10 import stl10_folder, stl10_splits
from dataset.stl10_archive import get_stl10
from src.models.batch_norm import calibrate_batch_norm, freeze_batch_norm
from src.models.simclr import SimCLR
from src.models.weights import load_weights
from src.runtime import distributed
from src.runtime.cli import UserError, printable, progress
from src.runtime.device import DTYPES, autocast, select_device, select_precision
from src.storage import checkpoint
from src.storage.checkpoint import BadCheckpoint, ResumableState
from src.storage.files import misfit
from src.storage.provenance import git_commit, versions
from src.training import health
from src.training.batches import ImageStore, TrainingBatches
from src.training.flags import FREE_TO_CHANGE, TrainConfig, check, flag_values
from src.training.randomness import CALIBRATION, INITIAL_WEIGHTS, random_stream
from src.training.recipe import choose, open_flags


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


@dataclass
class TrainState:
    """What changes from step to step. A checkpoint holds all of it; resuming needs nothing else."""

    model: SimCLR
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    totals: health.Totals
    step: int = 0
    loss: float | None = None
    """Mean over the last complete epoch."""
    tracking: dict[str, str | None] = field(default_factory=dict)
    """Group and id of the W&B run; empty before the first checkpoint."""


def prepare(config: TrainConfig) -> Setup:
    """Check the flags, select device and precision, open the images.

    Raises:
        UserError: flags, images and processes do not fit together.
    """
    device = select_device(config.device)
    dtype = select_precision(config.precision, device)
    # Recorded as what `auto` stands for here: resuming elsewhere must not change the precision.
    names = {value: name for name, value in DTYPES.items()}
    config = dataclasses.replace(config, precision=names[dtype])
    batch_size_given = config.batch_size is not None
    config = complete(config, device)
    check(config)
    torch.backends.cudnn.benchmark = not config.deterministic  # shapes hardly change
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
        torch.use_deterministic_algorithms(True)
    with distributed.local_main_first():  # downloads and decodes for the others
        dataset, names = open_dataset(config)
    store = ImageStore([dataset.splits[name].images for name in names], device, config.images)
    if not batch_size_given:  # it suits the number of files, of which some may be broken
        config = dataclasses.replace(config, batch_size=max(2, min(config.batch_size, len(store))))
    if config.epochs and config.images_per_step > len(store):
        raise UserError(
            f"--batch-size {config.batch_size} x --accumulate {config.accumulate} is more than "
            f"the {len(store):,} images to train on: lower --batch-size"
        )
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


def complete(config: TrainConfig, device: torch.device) -> TrainConfig:
    """`config` with a value for every flag: the checkpoint's where training resumes, else one that
    suits the pictures.

    Raises:
        UserError: the flags would make it another training, said before pictures are decoded.
    """
    if not open_flags(config):
        return config
    found = None
    if distributed.is_main() and (not config.fresh or distributed.restarts()):
        found = checkpoint.newest_flags(config.checkpoint_dir)
    found = distributed.from_main(found)
    config = choose(config, device.type != "cpu", found[1] if found else {})
    if found:
        refuse_changes(*found, config)
    return config


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
    use = f"; training on {' and '.join(names)}{note}" if config.epochs else ""
    print(f"{config.dataset}: {sizes} images{use}")
    for line in dataset.notes:
        print(f"note: {printable(line)}")
    return dataset, names


def _check_download(data_dir: Path) -> None:
    """Raise UserError where STL-10 is missing and nobody asked to download it there: in a directory
    that the user named, or one that holds pictures."""
    if stl10_splits(stl10_folder(data_dir)):
        return
    if data_dir != TrainConfig.data_dir or next(walk(str(data_dir), LeftOut()), None):
        raise UserError(
            f"no STL-10 images in {data_dir}: add --dataset folder to train on your own pictures "
            "there, or download STL-10 to it with python dataset/download_dataset.py --data-dir "
            f"{data_dir}"
        )


def restore_or_initialize(setup: Setup) -> TrainState:
    """The state of the newest checkpoint, or of a training that has not begun: with pretrained
    weights, or random ones and their batch-norm statistics."""
    state, config = random_state(setup), setup.config

    def use(file: Path, saved: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
        restore(state, setup, file, saved)
        return file, saved

    found = checkpoint.newest(config.checkpoint_dir, use) if distributed.is_main() else None
    if newest := distributed.from_main(found):
        if not distributed.is_main():
            use(*newest)
        print(f"resuming from {newest[0]}: {state.step:,} of {setup.steps:,} steps are done")
    elif config.pretrained:
        with distributed.local_main_first():  # downloads for the others
            load_weights(state.model.backbone, config.arch, config.weights)
    else:
        calibrate(state, setup)
    return state


def random_state(setup: Setup) -> TrainState:
    """A randomly initialized network, before any weights are loaded or statistics measured."""
    config = setup.config
    torch.manual_seed(random_stream(config.seed, INITIAL_WEIGHTS).initial_seed())
    model = SimCLR(config.arch, bn=config.bn, pretrained=config.pretrained).train()
    model.to(setup.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    freeze_batch_norm(model.backbone, frozen=frozen_at(0, setup))
    return TrainState(
        model,
        make_optimizer(model, config.weight_decay),
        make_scaler(setup.device, setup.dtype),
        health.Totals(setup.device),
    )


def frozen_at(step: int, setup: Setup) -> bool:
    """Whether batch norm is frozen at `step`: after the warm-up, or always if pretrained."""
    return step >= setup.warmup_steps or setup.config.pretrained


def calibrate(state: TrainState, setup: Setup, images: int = 2048) -> None:
    """Set the batch-norm statistics to those of views of the images."""
    with autocast(setup.device, setup.dtype):
        calibrate_batch_norm(state.model.backbone, calibration_views(setup, images))
    distributed.copy_from_main(state.model.backbone)


def calibration_views(setup: Setup, images: int) -> Iterator[Tensor]:
    """Views of a random sample of the images, always the same, in parts."""
    store, rng = setup.batches.store, random_stream(setup.config.seed, CALIBRATION)
    sample = torch.randperm(len(store), generator=rng)[:images]
    parts = sample.tensor_split(-(-len(sample) // 256))  # of equal size: they weigh the same
    for indices in progress(parts, desc="calibrating batch norm", unit="batch", leave=False):
        yield store.views(indices, setup.config.views, rng)


def end_warmup(state: TrainState, setup: Setup) -> None:
    """Measure the batch-norm statistics once more, and freeze them."""
    if setup.config.bn == "frozen" and not setup.config.pretrained:
        calibrate(state, setup)
        freeze_batch_norm(state.model.backbone)


def restore(state: TrainState, setup: Setup, file: Path, saved: dict[str, Any]) -> None:
    """Load what the checkpoint `file` holds.

    Raises:
        UserError: the flags or the images would make it another training.
        BadCheckpoint: it holds something else than `save_checkpoint` wrote.
    """
    if problem := misfit(saved, ResumableState):
        raise BadCheckpoint(f"{file} is damaged, or of another version: {problem}")
    is_same = saved["dataset"]["fingerprint"] == setup.dataset.fingerprint
    refuse_changes(file, saved["config"], setup.config, is_same)
    checkpoint.load_into(state.model, saved["model"], file)
    moments, own = saved["optimizer"]["state"], state.optimizer.state_dict()
    expected = {
        i: {"step": (), "exp_avg": p.shape, "exp_avg_sq": p.shape}
        for i, p in enumerate(p for group in state.optimizer.param_groups for p in group["params"])
    }
    found = {i: {name: x.shape for name, x in moment.items()} for i, moment in moments.items()}
    if found not in ({}, expected):
        raise BadCheckpoint(f"{file} holds the optimizer of another network")
    # Its other settings follow from the flags.
    state.optimizer.load_state_dict(own | {"state": moments})
    state.scaler.load_state_dict(saved["scaler"])
    state.totals = health.Totals(setup.device, saved["totals"])
    state.step, state.loss, state.tracking = saved["step"], saved["loss"], saved["tracking"]
    if state.step > setup.steps:
        raise UserError(
            f"{file} was saved after {state.step:,} steps, but --epochs {setup.config.epochs} is "
            f"only {setup.steps:,}: raise --epochs, or use --name for an experiment of its own"
        )
    freeze_batch_norm(state.model.backbone, frozen=frozen_at(state.step, setup))


def refuse_changes(
    file: Path, saved: dict[str, Any], config: TrainConfig, same_images: bool = True
) -> None:
    """Raise UserError if the flags `saved` in `file`, or the images, are those of another run than
    `config`."""
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
            "--fresh to start over (it keeps the old files), or --name for an experiment of its own"
        )


def save_checkpoint(state: TrainState, setup: Setup) -> Path:
    """Write a checkpoint in the main process; returns its path in all of them."""
    epoch, into_epoch = divmod(state.step, setup.batches.per_epoch)
    file = setup.config.checkpoint_dir / checkpoint.file_name(epoch, into_epoch)
    if not distributed.is_main():
        return file
    content = {
        "epoch": epoch,
        "step": state.step,
        "loss": state.loss,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "totals": state.totals.values.tolist(),
        "config": flag_values(setup.config),
        "dataset": {
            "fingerprint": setup.dataset.fingerprint,
            "image_size": setup.dataset.image_size,
        },
        "tracking": state.tracking,
        "versions": versions(),
        "commit": git_commit(),
    }
    checkpoint.save(file, content)
    checkpoint.prune(file.parent, file, setup.config.keep)
    return file


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW without weight decay on biases and batch norm."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, fused=True)


def make_scaler(device: torch.device, dtype: torch.dtype) -> GradScaler:
    """Gradient scaling for fp16. For other precisions `train_step` keeps the scale at 1, and the
    scaler still skips steps whose gradients are not finite, without waiting for the device."""
    return GradScaler(device.type, init_scale=2.0**16 if dtype == torch.float16 else 1.0)
