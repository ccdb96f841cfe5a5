"""Train SimCLR on images without labels.

    python src/train.py                      # STL-10, downloaded when it is not there
    python src/train.py --dataset digits     # a minute or two on a laptop

Reads the images and the newest checkpoint, from which it goes on. Writes
checkpoints/simclr_epoch_NNNN.pt and checkpoints/metrics.jsonl. Stop it at any time: Ctrl-C or
SIGTERM ends the step, writes a checkpoint and leaves; the same command goes on from there.
"""

import dataclasses
import math
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dataset.load_dataset import Dataset, DatasetName, load_dataset
from dataset.stl10_archive import ensure_stl10
from src import checkpoint, health
from src.augment import ViewSettings, make_views
from src.batches import (
    CALIBRATION,
    INITIAL_WEIGHTS,
    PROBE,
    Batch,
    ImageStore,
    Placement,
    TrainingBatches,
)
from src.cli import UserError, run_script
from src.models.simclr import Architecture, BatchNorm, SimCLR, calibrate_batch_norm, nt_xent
from src.runtime import (
    DeviceName,
    PrecisionName,
    StopSignal,
    autocast,
    git_commit,
    gpu_utilization,
    progress,
    random_stream,
    select_device,
    select_precision,
    versions,
)
from src.metrics_log import MetricsLog
from src.tracking import PREFIXES, Tracker
from src.wandb_run import WandbMode

SplitName = Literal["unlabeled", "train", "test"]

# --- config -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainConfig:
    dataset: DatasetName = "stl10"
    """Which images; each dataset brings defaults of its own (--dataset NAME --help shows them)."""
    data_dir: Path = Path("dataset")
    """For stl10 the folder that holds stl10_binary/, for folder the pictures."""
    checkpoint_dir: Path = Path("checkpoints")
    """Where checkpoints and metrics.jsonl go, and where a run is resumed from."""
    train_on: tuple[SplitName, ...] = ("unlabeled", "train")
    """Splits to learn from, those that are there. Their labels are never used."""
    image_size: int = 96
    """Side in pixels to which the pictures of a folder are brought."""
    cache_dir: Path | None = None
    """Where the decoded pictures of a folder are kept; None is beside them."""

    arch: Architecture = "resnet50"
    """Backbone."""
    small_images: bool = False
    """A stem without downsampling, for images of about 32 pixels."""
    bn: BatchNorm = "frozen"
    """Batch norm: statistics measured once and then frozen (with standardised weights), or those
    of every batch."""

    crop_min: float = 0.08
    """Smallest part of an image that a view shows."""
    flip: float = 0.5
    """Probability that a view is mirrored."""
    jitter: float = 0.5
    """Strength of the colour jitter."""
    grey: float = 0.2
    """Probability that a view has no colour."""
    blur: float = 0.5
    """Probability that a view is blurred."""
    rotation: float = 0.0
    """Largest rotation of a view, in degrees."""
    shear: float = 0.0
    """Largest slant of a view, in degrees."""
    shift: float = 0.0
    """Largest shift of a view, as a part of its side."""
    zoom: float = 0.0
    """Largest change of a view's size: 0.1 is 1/1.1 to 1.1."""

    temperature: float = 0.2
    """NT-Xent's tau."""
    epochs: int = 24
    """Passes over the images. Raised on a finished run, training goes on along the longer
    schedule."""
    batch_size: int = 256
    """Images whose views are each other's negatives."""
    accumulate: int = 1
    """Batches per optimizer step. It averages gradients; the negatives stay those of one batch."""
    learning_rate: float = 1e-3
    """AdamW's peak learning rate at 256 images a step; scaled by the square root of the images."""
    weight_decay: float = 1e-4
    """AdamW's decoupled weight decay; none on biases and batch norm."""
    warmup_epochs: float = 2.0
    """Epochs of linear warm-up before the cosine."""
    clip_norm: float = 1.0
    """Longest gradient; a longer one is scaled down."""

    device: DeviceName = "auto"
    """Where to compute."""
    precision: PrecisionName = "auto"
    """Mixed precision; auto is bf16 where the hardware has it, else fp16 on CUDA, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto is on for CUDA."""
    images: Placement = "auto"
    """Keep the images on the device or stream them; auto decides from its free memory."""
    deterministic: bool = False
    """Deterministic algorithms on a GPU, for bit-identical resuming there; a CPU always is."""
    seed: int = 0
    """Decides the initial weights, the order of the images and every view."""

    checkpoint_every: int = 4
    """Epochs between checkpoints."""
    keep: int | None = None
    """How many checkpoints to keep; None keeps them all."""
    fresh: bool = False
    """Start over; an earlier run's files are moved into a folder of their own."""
    log_every: int = 100
    """Steps between logged training losses."""
    monitor_every: int = 4
    """Epochs between k-NN and K-means scores on 2,000 labelled images, where there are labels."""
    wandb: WandbMode = "auto"
    """Weights & Biases; auto is online with a key and a server that answers, else offline."""
    wandb_dir: Path = Path("wandb")
    """Where Weights & Biases keeps its files."""

    @classmethod
    def for_dataset(cls, dataset: DatasetName | None, **changes: Any) -> "TrainConfig":
        """The defaults for a dataset."""
        own = DIGITS if dataset == "digits" else {}
        return cls(**{**own, **({"dataset": dataset} if dataset else {}), **changes})

    @property
    def views(self) -> ViewSettings:
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(ViewSettings)}
        return ViewSettings(**own)

    @property
    def images_per_step(self) -> int:
        return self.batch_size * self.accumulate


DIGITS = dict(
    image_size=32, arch="resnet18", crop_min=1.0, flip=0.0,
    jitter=0.6, grey=0.0, blur=0.5, rotation=20.0, shear=15.0, shift=0.1, zoom=0.2,
    epochs=40, warmup_epochs=3.0, checkpoint_every=20, monitor_every=10, log_every=5,
)  # fmt: skip

# What may differ when a run is resumed: it does not change the numbers.
FREE_TO_CHANGE = {
    "data_dir", "checkpoint_dir", "cache_dir", "epochs", "device", "compile", "images", "deterministic",
    "checkpoint_every", "keep", "fresh", "log_every", "monitor_every", "wandb", "wandb_dir",
}  # fmt: skip


def check(config: TrainConfig) -> None:
    positive = ("temperature", "epochs", "batch_size", "accumulate", "learning_rate", "clip_norm",
                "checkpoint_every", "log_every", "monitor_every", "image_size")  # fmt: skip
    for name in positive:
        if not getattr(config, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0")
    for name in ("flip", "grey", "blur"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"--{name} is a probability: 0 to 1")
    if not 0 < config.crop_min <= 1:
        raise UserError("--crop-min must be above 0 and at most 1")
    if config.keep is not None and config.keep < 1:
        raise UserError("--keep must be at least 1")
    if config.batch_size < 2:
        raise UserError("--batch-size must be at least 2: an image needs others to differ from")


# --- schedule, optimizer, step ----------------------------------------------------------------


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to 0 (Loshchilov & Hutter 2017)."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, fused=True)


def make_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Gradient scaling for fp16. For the others its scale stays 1, and it still skips a step
    whose gradients are not finite, on the device and without waiting for it."""
    if dtype == torch.float16:
        return torch.amp.GradScaler(device.type)
    return torch.amp.GradScaler(device.type, init_scale=1.0, growth_interval=2**31 - 1)


def loss_of(model: SimCLR, batch: Batch, config: TrainConfig, dtype: torch.dtype) -> Tensor:
    """NT-Xent of two views of every image in the batch."""
    views = make_views(batch.images_BCSS.repeat(2, 1, 1, 1), batch.parameters)
    with autocast(views.device, dtype):
        projections_2Bd = model(views)
    return nt_xent(projections_2Bd, config.temperature)


def train_step(
    model: SimCLR,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batches: list[Batch],
    config: TrainConfig,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns loss and gradient norm as tensors on the device."""
    losses = []
    for batch in batches:
        loss = loss_of(model, batch, config, dtype) / len(batches)
        scaler.scale(loss).backward()
        losses.append(loss.detach())
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return torch.stack(losses).sum(), norm


# --- a run ------------------------------------------------------------------------------------


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


@dataclass
class Run:
    """What changes from step to step: all of it is in a checkpoint, and nothing else is needed."""

    model: SimCLR
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    totals: health.Totals
    step: int = 0
    loss: float | None = None
    """Mean of the last whole epoch."""
    tracking: dict[str, str | None] = field(default_factory=dict)


def set_up(config: TrainConfig) -> Setup:
    check(config)
    device = select_device(config.device)
    dtype = select_precision(config.precision, device)
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
    dataset, names = open_dataset(config)
    store = ImageStore([dataset.splits[name].images for name in names], device, config.images)
    if config.images_per_step > len(store):
        raise UserError(
            f"--batch-size {config.batch_size} x --accumulate {config.accumulate} is more than "
            f"the {len(store):,} images there are: lower --batch-size"
        )
    batches = TrainingBatches(
        store, config.views, config.batch_size, config.accumulate, config.seed
    )
    precision = str(dtype).removeprefix("torch.")
    where = "kept there" if store.placement == "device" else "streamed"
    print(f"{config.arch} on {device} in {precision}, {store.bytes / 1e6:,.0f} MB of images {where}")
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
    """A network at random initialisation."""
    config = setup.config
    torch.manual_seed(random_stream(config.seed, INITIAL_WEIGHTS).initial_seed())
    model = SimCLR(config.arch, config.small_images, bn=config.bn).train()
    model.to(setup.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Run(
        model,
        make_optimizer(model, config.weight_decay),
        make_scaler(setup.device, setup.dtype),
        health.Totals(setup.device),
    )


def calibrate(run: Run, setup: Setup, images: int = 2048) -> None:
    """Batch-norm statistics over the views of a random sample of the images."""
    store, rng = setup.batches.store, random_stream(setup.config.seed, CALIBRATION)
    sample = torch.randperm(len(store), generator=rng)[:images].split(256)
    batches = progress(sample, desc="calibrating batch norm", unit="batch", leave=False)
    views = (store.views(indices, setup.config.views, rng) for indices in batches)
    with autocast(setup.device, setup.dtype):
        calibrate_batch_norm(run.model.backbone, views)


def resume(run: Run, setup: Setup, file: Path, state: dict[str, Any]) -> None:
    refuse_other_settings(setup, file, state)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scaler.load_state_dict(state["scaler"])
    run.totals = health.Totals(setup.device, state["totals"])
    run.step, run.loss, run.tracking = state["step"], state["loss"], state["tracking"]
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
    epoch, into_epoch = divmod(run.step, setup.batches.per_epoch)
    file = setup.config.checkpoint_dir / checkpoint.file_name(epoch, into_epoch)
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
    checkpoint.save(file, state)
    checkpoint.prune(setup.config.checkpoint_dir, file, setup.config.keep)
    return file


def plain(config: TrainConfig) -> dict[str, Any]:
    """The flags as built-in types, as they go into a checkpoint."""
    flags = dataclasses.asdict(config)
    paths = {name: str(value) for name, value in flags.items() if isinstance(value, Path)}
    return {**flags, **paths, "train_on": list(config.train_on)}


# --- the loop ---------------------------------------------------------------------------------


def train(run: Run, setup: Setup, log: Callable[[dict[str, Any]], None], stop: StopSignal) -> int:
    """Steps until the last epoch ends or a signal comes; returns the exit code."""
    config, per_epoch, steps = setup.config, setup.batches.per_epoch, setup.steps
    warmup_steps = round(config.warmup_epochs * per_epoch)
    peak = config.learning_rate * math.sqrt(config.images_per_step / 256)
    on_cuda = setup.device.type == "cuda"
    compiled = config.compile == "on" or (config.compile == "auto" and on_cuda)
    network = torch.compile(run.model) if compiled else run.model
    observe = observer(setup)
    bar = progress(total=steps, initial=run.step, desc="training", unit="step")
    epoch_started, epoch_first = time.monotonic(), run.step

    for batches in setup.batches.prefetched(run.step, steps):
        rate = learning_rate(run.step, steps, warmup_steps, peak)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        loss, norm = train_step(network, run.optimizer, run.scaler, batches, config, setup.dtype)
        run.totals.add(loss, norm)
        run.step += 1
        bar.update()

        epoch, into_epoch = divmod(run.step, per_epoch)
        where = {"step": run.step, "learning_rate": rate}
        if run.step % config.log_every == 0:
            run.totals.check()
            where |= {"progress": run.step / steps, "gpu_utilization": gpu_utilization(setup.device)}
            log({"kind": "step", "epoch": run.step / per_epoch, "loss": loss.item(), **where})
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if into_epoch == 0:
            run.totals.check()
            per_step = (time.monotonic() - epoch_started) / (run.step - epoch_first)
            speed = {
                "images_per_second": config.images_per_step / per_step,
                "seconds_left": per_step * (steps - run.step),
            }
            seen = observe(run.model, epoch, last=run.step == steps)
            record = {"kind": "epoch", "epoch": epoch, **where, **run.totals.means(), **seen, **speed}
            log(record)
            with bar.external_write_mode():
                report(record, run, setup)
            run.loss = record["loss"]
            run.totals.reset()
            epoch_started, epoch_first = time.monotonic(), run.step
        if stop.received or (
            into_epoch == 0 and (epoch % config.checkpoint_every == 0 or run.step == steps)
        ):
            file = save(run, setup)
        if stop.received:
            bar.close()
            print(f"stopped: {file} holds everything so far, the same command goes on from it")
            return stop.exit_code
    bar.close()
    return 0


def observer(setup: Setup) -> health.Observer:
    store, config = setup.batches.store, setup.config
    rng = random_stream(config.seed, PROBE)
    sample = torch.randperm(len(store), generator=rng)[:256]
    return health.Observer(
        views=store.views(sample, config.views, rng),
        labelled=health.labelled_sample(setup.dataset, 2000, config.seed),
        every=config.monitor_every,
        dtype=setup.dtype,
        seed=config.seed,
    )


def report(record: dict[str, Any], run: Run, setup: Setup) -> None:
    """The epoch in a line for people, and a warning when it went wrong."""
    config = setup.config
    loss = "  -  " if record["loss"] is None else f"{record['loss']:.3f}"
    line = (
        f"epoch {record['epoch']:>3}/{config.epochs}  loss {loss}  "
        f"gradient {record['gradient_norm'] or 0:.2f}  "
        f"rank {record['projection_rank']:.0f}  {record['images_per_second']:,.0f} images/s  "
        f"{record['seconds_left'] / 60:.0f} min left"
    )
    if "knn_accuracy" in record:
        knn, kmeans = record["knn_accuracy"], record["kmeans_accuracy"]
        line += f"  k-NN {knn:.1%}  K-means {kmeans:.1%}"
    print(line, flush=True)
    if record["epoch"] > config.warmup_epochs:
        trouble = health.collapse(record, config.batch_size, run.model.projection_dim)
        if trouble:
            print(f"warning: {trouble}", file=sys.stderr)


def main(config: TrainConfig) -> int:
    setup = set_up(config)
    directory = config.checkpoint_dir
    with checkpoint.locked(directory), StopSignal() as stop:
        if config.fresh and (aside := checkpoint.set_aside(directory)):
            print(f"the earlier run's files are now in {aside}")
        run = start(setup)
        if found := checkpoint.newest(directory):
            resume(run, setup, *found)
        else:
            calibrate(run, setup)
        metrics = MetricsLog(directory / checkpoint.METRICS_LOG, keep_until_step=run.step)
        group = run.tracking.get("group") or f"{config.dataset}-{secrets.token_hex(4)}"
        tracker = Tracker(
            config.wandb,
            config.wandb_dir,
            job_type="train",
            group=group,
            run_id=run.tracking.get("run_id"),
            config={
                **plain(config),
                "dataset_fingerprint": setup.dataset.fingerprint,
                "commit": git_commit(),
            },
            earlier=metrics.earlier,
        )
        run.tracking = {"group": group, "run_id": tracker.run_id}
        if not found:
            save(run, setup)  # epoch 0, the untrained network

        def log(record: dict[str, Any]) -> None:
            metrics.write(record)
            tracker.log(record, PREFIXES[record["kind"]])

        code = train(run, setup, log, stop)
        tracker.finish(code)
    if code == 0:
        print(f"trained for {config.epochs} epochs: {checkpoint.listed(directory)[-1]}")
    return code


if __name__ == "__main__":
    run_script(main, TrainConfig)
