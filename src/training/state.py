"""What a checkpoint holds: initialized, saved, and restored as if the run had never stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.utils._pytree import tree_map_only

from src.models.backbone import State, average
from src.models.batch_norm import calibrate_batch_norm
from src.models.pretrained import PRETRAINED
from src.models.simclr import SimCLR
from src.models.weights import load_weights
from src.runtime import distributed
from src.runtime.cli import UserError, progress
from src.runtime.device import autocast
from src.storage import checkpoint
from src.storage.checkpoint import BadCheckpoint, Newest, ResumableState
from src.storage.files import misfit
from src.storage.provenance import git_commit, versions
from src.training import health
from src.training.flags import TrainConfig, flag_values
from src.training.randomness import CALIBRATION, INITIAL_WEIGHTS, random_stream
from src.training.recipe import refuse_changes
from src.training.setup import Setup, refuse_few

CALIBRATION_IMAGES = 2_048
"""At most, to measure batch-norm statistics on."""


@dataclass
class TrainState:
    """What changes from step to step. A checkpoint holds all of it; resuming needs nothing else."""

    model: SimCLR
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    totals: health.Totals
    step: int = 0
    initial: State | None = None
    """The backbone's weights before training; None unless later stages use an average with them."""
    loss: float | None = None
    """Mean over the last complete epoch."""
    tracking: dict[str, str | None] = field(default_factory=dict)
    """Group and id of the W&B run; empty before the first checkpoint."""


def restore_or_initialize(setup: Setup, newest: Newest | None) -> TrainState:
    """The state of the newest checkpoint, or of a run that has not begun: with pretrained
    weights, or random ones and their batch-norm statistics.

    Args:
        newest: as for `prepare`.
    """
    state, config = random_state(setup), setup.config

    def use(file: Path, saved: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
        restore(state, setup, file, saved)
        return file, saved

    if found := distributed.from_main(newest.use(use) if newest else None):
        if not distributed.is_main():
            use(*found)
    elif config.pretrained:
        with distributed.local_main_first():  # downloads for the others
            load_weights(state.model.backbone, config.arch, config.weights)
        print(origin(config))
        if config.trained_share < 1:
            state.initial = copied(state.model.backbone)
    else:
        calibrate(state, setup)
    return state


def random_state(setup: Setup) -> TrainState:
    """A randomly initialized network, before any weights are loaded or statistics measured."""
    config = setup.config
    torch.manual_seed(random_stream(config.seed, INITIAL_WEIGHTS).initial_seed())
    side = setup.dataset.image_size
    model = SimCLR(config.arch, config.bn, config.pretrained, side).train()
    if config.views.view_size not in (0, side) and not model.backbone.takes_any_size:
        raise UserError(f"{config.arch} takes views and images of one size: add --view-size 0")
    model.to(setup.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.backbone.freeze(frozen_at(0, setup))
    return TrainState(
        model,
        make_optimizer(model, config.weight_decay, config.backbone_rate),
        make_scaler(setup.device, setup.dtype),
        health.Totals(setup.device),
    )


def frozen_at(step: int, setup: Setup) -> bool:
    """Whether batch norm is frozen at `step`: after the warm-up, or always if pretrained."""
    return step >= setup.warmup_steps or setup.config.pretrained


def calibrate(state: TrainState, setup: Setup) -> None:
    """Set the batch-norm statistics to those of views of the images."""
    with autocast(setup.device, setup.dtype):
        calibrate_batch_norm(state.model.backbone, calibration_views(setup))
    distributed.copy_from_main(state.model.backbone)


def calibration_views(setup: Setup) -> Iterator[Tensor]:
    """Views of a random sample of the images, always the same, in parts."""
    store, rng = setup.batches.store, random_stream(setup.config.seed, CALIBRATION)
    sample = torch.randperm(len(store), generator=rng)[:CALIBRATION_IMAGES]
    parts = sample.tensor_split(-(-len(sample) // 256))  # of equal size: they weigh the same
    for indices in progress(parts, desc="calibrating batch norm", unit="batch", leave=False):
        yield store.views(indices, setup.config.views, rng)


def origin(config: TrainConfig) -> str:
    """What the pretrained weights are, in one line."""
    known = PRETRAINED.get(str(config.weights))
    learned = f", learned {known.learned}" if known else ""
    line = f"starts from the weights {config.weights} of {config.arch}{learned}"
    if config.dataset != "folder":
        return line
    return (
        f"{line}; labels of your pictures are never used (--weights dino never saw any label, "
        "--weights none learns from your pictures alone)"
    )


def copied(backbone: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in backbone.state_dict().items()}


@contextmanager
def averaged(state: TrainState, share: float) -> Iterator[None]:
    """Inside, the backbone is the one that later stages use."""
    if state.initial is None:
        yield
        return
    backbone = state.model.backbone
    trained = copied(backbone)
    backbone.load_state_dict(average(state.initial, trained, share))
    try:
        yield
    finally:
        backbone.load_state_dict(trained)


def end_warmup(state: TrainState, setup: Setup) -> None:
    """Measure the batch-norm statistics once more, and freeze them."""
    if setup.config.bn == "frozen" and not setup.config.pretrained:
        calibrate(state, setup)
        state.model.backbone.freeze()


def restore(state: TrainState, setup: Setup, file: Path, saved: dict[str, Any]) -> None:
    """Load what the checkpoint `file` holds.

    Raises:
        UserError: the flags or the images are those of another run.
        BadCheckpoint: it holds something else than `save_checkpoint` wrote.
    """
    if problem := misfit(saved, ResumableState):
        raise BadCheckpoint(f"{file} is damaged or from another version: {problem}")
    is_same = saved["dataset"]["fingerprint"] == setup.dataset.fingerprint
    is_finished = saved["epoch"] == saved["config"].get("epochs") == setup.config.epochs
    refuse_changes(file, saved["config"], setup.config, is_same or is_finished)
    checkpoint.load_into(state.model, saved["model"], file)
    state.initial = saved.get("initial")
    moments, own = saved["optimizer"]["state"], state.optimizer.state_dict()
    expected = {
        i: {"step": (), "exp_avg": p.shape, "exp_avg_sq": p.shape}
        for i, p in enumerate(p for group in state.optimizer.param_groups for p in group["params"])
    }
    found = {i: {name: x.shape for name, x in moment.items()} for i, moment in moments.items()}
    if found not in ({}, expected):
        raise BadCheckpoint(f"{file} has the optimizer state of another network")
    # Its other settings follow from the flags.
    state.optimizer.load_state_dict(own | {"state": moments})
    state.scaler.load_state_dict(saved["scaler"])
    state.totals = health.Totals(setup.device, saved["totals"])
    state.step, state.loss, state.tracking = saved["step"], saved["loss"], saved["tracking"]
    if not is_same:
        state.step = max(state.step, setup.steps)  # other pictures, other numbers of steps
        print(
            f"{file} is finished: it is used as it is, although {setup.config.data_dir} holds "
            "other pictures now; --fresh would start over"
        )
    elif state.step > setup.steps:
        raise UserError(
            f"{file} was saved after {state.step:,} steps, but --epochs {setup.config.epochs} is "
            f"only {setup.steps:,}: raise --epochs, or use --name for a separate experiment"
        )
    else:
        if state.step < setup.steps:  # --epochs 0 does not need so many
            refuse_few(setup.config, len(setup.batches.store))
        print(f"resuming from {file}: {state.step:,} of {setup.steps:,} steps are done")
    state.model.backbone.freeze(frozen_at(state.step, setup))


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
        **({"initial": state.initial} if state.initial else {}),
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
    checkpoint.save(file, in_memory(content) if setup.device.type == "cuda" else content)
    checkpoint.prune(file.parent, file, setup.config.keep)
    return file


def in_memory(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with its tensors copied from the GPU, which is waited for once."""
    copied = tree_map_only(Tensor, lambda x: x.detach().to("cpu", non_blocking=True), content)
    torch.cuda.synchronize()
    return copied


def make_optimizer(
    model: SimCLR, weight_decay: float, backbone_rate: float = 1.0
) -> torch.optim.AdamW:
    """AdamW without weight decay on biases and batch norm. Every group of parameters has a
    `factor` for its learning rate: that of the backbone is `backbone_rate`."""
    parts = [(model, 1.0)]
    if backbone_rate != 1:
        parts = [(model.backbone, backbone_rate), (model.head, 1.0)]
    groups = []
    for part, factor in parts:
        parameters = list(part.parameters())
        groups += [
            {
                "params": [p for p in parameters if p.ndim > 1],
                "weight_decay": weight_decay,
                "factor": factor,
            },
            {
                "params": [p for p in parameters if p.ndim <= 1],
                "weight_decay": 0.0,
                "factor": factor,
            },
        ]
    return torch.optim.AdamW(groups, fused=True)


def make_scaler(device: torch.device, dtype: torch.dtype) -> GradScaler:
    """Gradient scaling for fp16. For other precisions `train_step` keeps the scale at 1, and the
    scaler still skips steps whose gradients are not finite, without waiting for the device."""
    return GradScaler(device.type, init_scale=2.0**16 if dtype == torch.float16 else 1.0)
