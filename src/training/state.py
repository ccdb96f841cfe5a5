"""A training run: begun, resumed, and saved so that it goes on as if it had never stopped."""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from dataset.load_dataset import Dataset, load_dataset
from dataset.stl10_archive import ensure_stl10
from src.models.batch_norm import calibrate_batch_norm, freeze_batch_norm
from src.models.simclr import SimCLR
from src.models.weights import load_weights
from src.runtime import distributed
from src.runtime.cli import UserError, progress
from src.runtime.device import autocast, precision_name, select_device, select_precision
from src.storage import checkpoint
from src.storage.provenance import git_commit, versions
from src.training import health
from src.training.batches import (
    CALIBRATION,
    INITIAL_WEIGHTS,
    PROBE,
    ImageStore,
    TrainingBatches,
    random_stream,
)
from src.training.recipe import FREE_TO_CHANGE, TrainConfig, check, plain


@dataclass(frozen=True)
class Setup:
    """What a run works with and never changes."""

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
class Run:
    """What changes from step to step: all of it is in a checkpoint, and nothing else is needed."""

    model: SimCLR
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    totals: health.Totals
    step: int = 0
    loss: float | None = None
    """Mean of the last whole epoch."""
    tracking: dict[str, str | None] = field(default_factory=dict)
    saver: checkpoint.Saver = field(default_factory=checkpoint.Saver)


def set_up(config: TrainConfig) -> Setup:
    check(config)
    device = select_device(config.device)
    dtype = select_precision(config.precision, device)
    # Going on where `auto` means another precision would be another run.
    config = dataclasses.replace(config, precision=precision_name(dtype))
    torch.backends.cudnn.benchmark = not config.deterministic  # every step has the same shapes
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses
        torch.use_deterministic_algorithms(True)
    with distributed.local_main_first():  # downloads and decodes for the others
        dataset, names = open_dataset(config)
    store = ImageStore([dataset.splits[name].images for name in names], device, config.images)
    if config.images_per_step > len(store):
        raise UserError(
            f"--batch-size {config.batch_size} x --accumulate {config.accumulate} is more than "
            f"the {len(store):,} images there are: lower --batch-size"
        )
    if config.batch_size % distributed.size():
        raise UserError(
            f"--batch-size {config.batch_size} cannot be shared out evenly among "
            f"{distributed.size()} processes"
        )
    batches = TrainingBatches(
        store, config.views, config.batch_size, config.accumulate, config.seed
    )
    where = "kept there" if store.placement == "device" else "streamed"
    processes = f"{distributed.size()} processes, the first " if distributed.size() > 1 else ""
    print(
        f"{config.arch} on {processes}{device} in {config.precision}, "
        f"{store.bytes / 1e6:,.0f} MB of images {where}"
    )
    return Setup(config, dataset, batches, device, dtype)


def open_dataset(config: TrainConfig) -> tuple[Dataset, list[str]]:
    """The dataset, and the names of its splits to learn from."""
    if config.dataset == "stl10":
        ensure_stl10(config.data_dir)
    dataset = load_dataset(config.dataset, config.data_dir, config.image_size, config.cache_dir)
    names = [name for name in dataset.splits if name in config.train_on]
    if not names:
        raise UserError(
            f"none of the splits of --train-on ({', '.join(config.train_on)}) is in "
            f"{config.data_dir}, which has: {', '.join(dataset.splits)}"
        )
    found = ", ".join(f"{name} {len(s.images):,}" for name, s in dataset.splits.items())
    missing = [name for name in config.train_on if name not in dataset.splits]
    left_out = f" (there is no {' and no '.join(missing)} split)" if missing else ""
    print(f"{config.dataset}: {found} images; learning from {' and '.join(names)}{left_out}")
    return dataset, names


def start(setup: Setup) -> Run:
    """A network at random initialization, whatever it is to be filled with."""
    config = setup.config
    torch.manual_seed(random_stream(config.seed, INITIAL_WEIGHTS).initial_seed())
    model = SimCLR(
        config.arch, config.small_images, bn=config.bn, pretrained=config.pretrained
    ).train()
    model.to(setup.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    freeze_batch_norm(model.backbone, frozen=frozen_at(0, setup))
    return Run(
        model,
        make_optimizer(model, config.weight_decay),
        make_scaler(setup.device, setup.dtype),
        health.Totals(setup.device),
    )


def frozen_at(step: int, setup: Setup) -> bool:
    """Whether `--bn frozen` has its statistics for good: from the start where they came along."""
    return step >= setup.warmup_steps or setup.config.pretrained


def fill(run: Run, setup: Setup) -> None:
    """What a new run begins with: weights from elsewhere, or statistics of its own images."""
    config = setup.config
    if config.pretrained:
        with distributed.local_main_first():  # downloads for the others
            load_weights(run.model.backbone, config.arch, config.weights)
    else:
        calibrate(run, setup)


def calibrate(run: Run, setup: Setup, images: int = 2048) -> None:
    """Batch-norm statistics over the views of a random sample of the images."""
    store, rng = setup.batches.store, random_stream(setup.config.seed, CALIBRATION)
    sample = torch.randperm(len(store), generator=rng)[:images]
    parts = sample.tensor_split(-(-len(sample) // 256))  # of equal size: they count the same
    batches = progress(parts, desc="calibrating batch norm", unit="batch", leave=False)
    views = (store.views(indices, setup.config.views, rng) for indices in batches)
    with autocast(setup.device, setup.dtype):
        calibrate_batch_norm(run.model.backbone, views)
    distributed.copy_from_main(run.model.backbone)


def freeze(run: Run, setup: Setup) -> None:
    """The end of the warm-up: measure the batch-norm statistics once more and for good."""
    if setup.config.bn == "frozen" and not setup.config.pretrained:
        calibrate(run, setup)
        freeze_batch_norm(run.model.backbone)


def resume(run: Run, setup: Setup, file: Path, state: dict[str, Any]) -> None:
    refuse_other_settings(setup, file, state)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scaler.load_state_dict(state["scaler"])
    run.totals = health.Totals(setup.device, state["totals"])
    run.step, run.loss, run.tracking = state["step"], state["loss"], state["tracking"]
    if run.step > setup.steps:
        raise UserError(
            f"{file} has {run.step:,} steps behind it, --epochs {setup.config.epochs} are only "
            f"{setup.steps:,}: give a larger number, or another --checkpoint-dir"
        )
    freeze_batch_norm(run.model.backbone, frozen=frozen_at(run.step, setup))
    print(f"going on from {file}: {run.step:,} of {setup.steps:,} steps are done")


def refuse_other_settings(setup: Setup, file: Path, state: dict[str, Any]) -> None:
    """A resumed run must be the same run: name every setting that would make it another."""
    now = plain(setup.config)
    other = [
        f"--{name.replace('_', '-')} {was} (now {now[name]})"
        for name, was in state["config"].items()
        if name in now and name not in FREE_TO_CHANGE and now[name] != was
    ]
    if not other and state["dataset"]["fingerprint"] != setup.dataset.fingerprint:
        other = [f"other images than those now in {setup.config.data_dir}"]
    if other:
        raise UserError(
            f"{file} was trained with {', '.join(other)}: use the same settings to go on, --fresh "
            "to start over (it keeps the old files), or another --checkpoint-dir"
        )


def save(run: Run, setup: Setup) -> Path:
    """Begin to write a checkpoint, once for all processes, and return its path."""
    epoch, into_epoch = divmod(run.step, setup.batches.per_epoch)
    file = setup.config.checkpoint_dir / checkpoint.file_name(epoch, into_epoch)
    if not distributed.is_main():
        return file
    dataset = setup.dataset
    state = {
        "epoch": epoch,
        "step": run.step,
        "loss": run.loss,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": {"step": run.step, "steps": setup.steps},
        "scaler": run.scaler.state_dict(),
        "totals": run.totals.values.tolist(),
        "config": plain(setup.config),
        "dataset": {
            "fingerprint": dataset.fingerprint,
            "image_size": dataset.image_size,
            "class_names": list(dataset.class_names),
        },
        "tracking": run.tracking,
        "versions": versions(),
        "commit": git_commit(),
    }
    run.saver.save(file, state, setup.config.keep)
    return file


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, fused=True)


def make_scaler(device: torch.device, dtype: torch.dtype) -> GradScaler:
    """Gradient scaling for fp16. For the others `train_step` keeps the scale at 1, and it still
    skips a step whose gradients are not finite, on the device and without waiting for it."""
    return GradScaler(device.type, init_scale=2.0**16 if dtype == torch.float16 else 1.0)


def observer(setup: Setup) -> health.Observer:
    store, config = setup.batches.store, setup.config
    rng = random_stream(config.seed, PROBE)
    sample = torch.randperm(len(store), generator=rng)[:256]
    return health.Observer(
        views=store.views(sample, config.views, rng),
        labeled=health.labeled_sample(setup.dataset, 2000, config.seed),
        every=config.monitor_every,
        dtype=setup.dtype,
        seed=config.seed,
    )
