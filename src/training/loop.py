"""The training loop."""

import math
import secrets
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from src.models.simclr import SimCLR, nt_xent
from src.runtime import distributed
from src.runtime.cli import progress
from src.runtime.device import autocast, explaining_memory, gpu_utilization
from src.runtime.output import unbreakable_output
from src.runtime.prefetch import prefetch
from src.storage import checkpoint
from src.storage.checkpoint import Newest
from src.storage.metrics_log import MetricsLog
from src.storage.provenance import git_commit
from src.tracking.tracker import PREFIXES, Tracker
from src.training import forecast, health
from src.training.batches import Batch
from src.training.compilation import Plan, compile_plan, network_for
from src.training.flags import TrainConfig, flag_values
from src.training.setup import Setup, prepare
from src.training.state import (
    TrainState,
    averaged,
    end_warmup,
    restore_or_initialize,
    save_checkpoint,
)
from src.training.stop_signal import StopSignal
from src.training.views import make_views

QUIET_SECONDS = 60
"""Minimum seconds between the lines of epochs that are not monitored."""


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to 0 (Loshchilov & Hutter 2017)."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def loss_of(model: SimCLR, batch: Batch, config: TrainConfig, dtype: torch.dtype) -> Tensor:
    """NT-Xent of two views of every image in the batch."""
    views = make_views(
        batch.images_BCSS.repeat(2, 1, 1, 1), batch.parameters, config.views.view_size
    )
    with autocast(views.device, dtype):
        projections_2Bd = model(views)
    return nt_xent(projections_2Bd, config.temperature)


def add_gradients(
    model: SimCLR, scaler: GradScaler, batches: list[Batch], config: TrainConfig, dtype: torch.dtype
) -> Tensor:
    """Add the gradients of a step to the model's; returns its loss, in this process alone."""
    losses = []
    for batch in batches:
        with distributed.sync_gradients(model, now=batch is batches[-1]):
            loss = loss_of(model, batch, config, dtype) / len(batches)
            scaler.scale(loss).backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def train_step(
    model: SimCLR,
    optimizer: torch.optim.Optimizer,
    scaler: GradScaler,
    batches: list[Batch],
    config: TrainConfig,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns loss and gradient norm as tensors on the device."""
    loss = add_gradients(model, scaler, batches, config, dtype)
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    scaler.step(optimizer)
    scaler.update(None if dtype == torch.float16 else 1.0)
    optimizer.zero_grad()
    return distributed.mean(loss), norm


def train(
    state: TrainState,
    setup: Setup,
    plan: Plan,
    log: Callable[[dict[str, Any]], None],
    stop: StopSignal,
) -> int:
    """Train until the last epoch ends or a signal arrives; returns the exit code."""
    config, per_epoch, steps = setup.config, setup.batches.per_epoch, setup.steps
    if state.step >= steps:
        return 0
    peak = config.learning_rate * math.sqrt(config.images_per_step / 256)
    network: Any = None
    observe = None
    if distributed.is_main():
        observe = health.make_observer(setup.batches.store, setup.dataset, config, setup.dtype)
    bar = progress(total=steps, initial=state.step, desc="training", unit="step")
    clock, printed = forecast.Clock(), time.monotonic()
    epoch_started, first_step = clock.now(), state.step
    timer = forecast.StepTimer(state.step, steps, clock)

    def stopped() -> int:
        file = save_checkpoint(state, setup)
        bar.close()
        print(f"stopped: progress saved to {file}; run the same command to resume")
        return stop.exit_code

    for batches in prefetch(setup.batches.load, range(state.step, steps)):
        if state.step in plan:
            rehearse = partial(
                add_gradients, scaler=state.scaler, batches=batches, config=config,
                dtype=setup.dtype,
            )  # fmt: skip
            network = None  # only one at a time may listen to the gradients
            with clock.paused(), bar.external_write_mode():
                network = network_for(state.model, setup.device, plan[state.step], rehearse, stop)
            if network is None:
                return stopped()
        rate = learning_rate(state.step, steps, setup.warmup_steps, peak)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        loss, norm = train_step(
            network, state.optimizer, state.scaler, batches, config, setup.dtype
        )
        state.totals.add(loss, norm)
        state.step += 1
        bar.update()
        if observe and (line := timer.estimate(state.step, loss)):
            with bar.external_write_mode():
                print(line, flush=True)
        if state.step == setup.warmup_steps:
            end_warmup(state, setup)

        epoch, into_epoch = divmod(state.step, per_epoch)
        position = {"step": state.step, "learning_rate": rate, "progress": state.step / steps}
        if state.step % config.log_every == 0:
            value = state.totals.check(loss)
            measured = {"loss": value, "gpu_utilization": gpu_utilization(setup.device)}
            log({"kind": "step", "epoch": state.step / per_epoch, **position, **measured})
            bar.set_postfix(loss=f"{value:.3f}")
        if into_epoch == 0:
            means = state.totals.means()
            if observe:
                seconds, done = clock.now() - epoch_started, state.step - first_step
                speed = {
                    "images_per_second": config.images_per_step * done / seconds,
                    "seconds_left": seconds * (steps - state.step) / done,
                }
                with averaged(state, config.trained_share):
                    measured = observe(state.model, epoch, state.step == steps)
                record = {"kind": "epoch", "epoch": epoch, **position, **means, **measured, **speed}
                log(record)
                with bar.external_write_mode():
                    is_monitored = "knn_accuracy" in record or state.step == steps
                    if is_monitored or time.monotonic() - printed > QUIET_SECONDS:
                        print(epoch_line(record, config.epochs), flush=True)
                        printed = time.monotonic()
                    warn_of_collapse(record, config, state.model.projection_dim)
            state.loss = means["loss"]
            state.totals.reset()
            epoch_started, first_step = clock.now(), state.step
        stopping = distributed.any_process(stop.received is not None)
        is_due = into_epoch == 0 and (epoch % config.checkpoint_every == 0 or state.step == steps)
        if stopping:
            return stopped()
        if is_due:
            save_checkpoint(state, setup)
    bar.close()
    return 0


def epoch_line(record: dict[str, Any], epochs: int) -> str:
    loss = "  -  " if record["loss"] is None else f"{record['loss']:.3f}"
    line = (
        f"epoch {record['epoch']:>3}/{epochs}  loss {loss}  "
        f"gradient {record['gradient_norm'] or 0:.2f}  "
        f"rank {record['projection_rank']:.0f}  {record['images_per_second']:,.0f} images/s  "
        f"{record['seconds_left'] / 60:.0f} min left"
    )
    if "knn_accuracy" in record:
        knn, kmeans = record["knn_accuracy"], record["kmeans_accuracy"]
        line += f"  k-NN {knn:.1%}  K-means {kmeans:.1%}"
    return line


def warn_of_collapse(record: dict[str, Any], config: TrainConfig, projection_dim: int) -> None:
    if record["epoch"] > config.warmup_epochs:
        warning = health.collapse(record, config.batch_size, projection_dim)
        if warning:
            print(f"warning: {warning}", file=sys.stderr)


def train_as_main(state: TrainState, setup: Setup, plan: Plan, stop: StopSignal) -> int:
    """Train in the process that writes: the only one, or the first under torchrun."""
    config, directory = setup.config, setup.config.checkpoint_dir
    is_new = not state.tracking
    group = config.name or f"{config.dataset}-{secrets.token_hex(4)}"
    group = state.tracking.get("group") or group
    described = {"dataset_fingerprint": setup.dataset.fingerprint, "commit": git_commit()}
    with (
        MetricsLog(directory / checkpoint.METRICS_LOG, keep_until_step=state.step) as metrics,
        Tracker(
            config.wandb, config.wandb_dir, job_type="train", group=group,
            run_id=state.tracking.get("run_id"), config=flag_values(config) | described,
        ) as tracker,
    ):  # fmt: skip
        state.tracking = {"group": group, "run_id": tracker.run_id}
        forecast.announce(setup, state, plan)
        if is_new:  # epoch 0, before training; fails now if nothing can be written
            save_checkpoint(state, setup)

        def log(record: dict[str, Any]) -> None:
            metrics.write(record)
            tracker.log(record, PREFIXES[record["kind"]])

        code = train(state, setup, plan, log, stop)
        tracker.finish(code)
    if code == 0:
        done = f"trained for {config.epochs} epochs" if config.epochs else "nothing was trained"
        print(f"{done}: {checkpoint.listed(directory)[-1]}")
    return code


def memory_advice(config: TrainConfig) -> str:
    half = max(2, config.batch_size // 2)
    return (
        f"start over with --fresh --batch-size {half} --accumulate {2 * config.accumulate} (in a "
        "ResNet-50, 256 images of 96 px take 4.3 GiB in bf16, 8.1 GiB in fp32)"
    )


def run(config: TrainConfig) -> int:
    """Train; returns the exit code."""
    with unbreakable_output(), distributed.process_group():
        if not distributed.is_main():
            setup = prepare(config)
            with StopSignal() as stop, explaining_memory(memory_advice(setup.config)):
                state = restore_or_initialize(setup, None)
                plan = compile_plan(setup, state.step)
                return train(state, setup, plan, lambda record: None, stop)
        with checkpoint.training_in(config.checkpoint_dir):
            fresh = config.fresh and not distributed.restarts()
            newest = None if fresh else Newest(config.checkpoint_dir)
            setup = prepare(config, newest)
            with StopSignal() as stop, explaining_memory(memory_advice(setup.config)):
                if fresh and (aside := checkpoint.set_aside(config.checkpoint_dir)):
                    print(f"the files of the earlier run are now in {aside}")
                state = restore_or_initialize(setup, newest)
                return train_as_main(state, setup, compile_plan(setup, state.step), stop)
