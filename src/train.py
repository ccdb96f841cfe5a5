"""Train SimCLR on images without labels.

    python src/train.py                      # STL-10, downloaded when it is not there
    python src/train.py --dataset digits     # a minute or two on a laptop

Reads the images and the newest checkpoint, from which it goes on. Writes
checkpoints/simclr_epoch_NNNN.pt and checkpoints/metrics.jsonl. Stop it at any time: Ctrl-C or
SIGTERM ends the step, writes a checkpoint and leaves; the same command goes on from there.
"""

import math
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from src.models.simclr import SimCLR, nt_xent
from src.runtime import distributed
from src.runtime.cli import progress, run_script
from src.runtime.device import autocast, can_compile, gpu_utilization
from src.storage import checkpoint
from src.storage.metrics_log import MetricsLog
from src.storage.provenance import git_commit
from src.tracking.tracker import PREFIXES, Tracker
from src.training import health
from src.training.batches import Batch
from src.training.recipe import TrainConfig, plain
from src.training.state import Run, Setup, fill, freeze, observer, resume, save, set_up, start
from src.training.stop_signal import StopSignal
from src.training.views import make_views


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to 0 (Loshchilov & Hutter 2017)."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def loss_of(model: SimCLR, batch: Batch, config: TrainConfig, dtype: torch.dtype) -> Tensor:
    """NT-Xent of two views of every image in the batch."""
    views = make_views(batch.images_BCSS.repeat(2, 1, 1, 1), batch.parameters)
    with autocast(views.device, dtype):
        projections_2Bd = model(views)
    return nt_xent(projections_2Bd, config.temperature)


def train_step(
    model: SimCLR,
    optimizer: torch.optim.Optimizer,
    scaler: GradScaler,
    batches: list[Batch],
    config: TrainConfig,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns loss and gradient norm as tensors on the device."""
    losses = []
    for batch in batches:
        with distributed.sync_gradients(model, now=batch is batches[-1]):
            loss = loss_of(model, batch, config, dtype) / len(batches)
            scaler.scale(loss).backward()
        losses.append(loss.detach())
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    scaler.step(optimizer)
    scaler.update(None if dtype == torch.float16 else 1.0)
    optimizer.zero_grad()
    return distributed.mean(torch.stack(losses).sum()), norm


def train(run: Run, setup: Setup, log: Callable[[dict[str, Any]], None], stop: StopSignal) -> int:
    """Steps until the last epoch ends or a signal comes; returns the exit code."""
    config, per_epoch, steps = setup.config, setup.batches.per_epoch, setup.steps
    peak = config.learning_rate * math.sqrt(config.images_per_step / 256)
    on_cuda = setup.device.type == "cuda"
    network: Any = distributed.wrap_ddp(run.model, setup.device)
    if config.compile == "on" or (config.compile == "auto" and on_cuda and can_compile()):
        network = torch.compile(network)
    observe = observer(setup) if distributed.is_main() else None
    bar = progress(total=steps, initial=run.step, desc="training", unit="step")
    epoch_started, epoch_first = time.monotonic(), run.step

    for batches in setup.batches.prefetched(run.step, steps):
        rate = learning_rate(run.step, steps, setup.warmup_steps, peak)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        loss, norm = train_step(network, run.optimizer, run.scaler, batches, config, setup.dtype)
        run.totals.add(loss, norm)
        run.step += 1
        bar.update()
        if run.step == setup.warmup_steps:
            freeze(run, setup)

        epoch, into_epoch = divmod(run.step, per_epoch)
        where = {"step": run.step, "learning_rate": rate, "progress": run.step / steps}
        if run.step % config.log_every == 0:
            run.totals.check()
            seen = {"loss": loss.item(), "gpu_utilization": gpu_utilization(setup.device)}
            log({"kind": "step", "epoch": run.step / per_epoch, **where, **seen})
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if into_epoch == 0:
            run.totals.check()
            means = run.totals.means()
            per_step = (time.monotonic() - epoch_started) / (run.step - epoch_first)
            if observe:
                speed = {
                    "images_per_second": config.images_per_step / per_step,
                    "seconds_left": per_step * (steps - run.step),
                }
                seen = observe(run.model, epoch, last=run.step == steps)
                record = {"kind": "epoch", "epoch": epoch, **where, **means, **seen, **speed}
                log(record)
                with bar.external_write_mode():
                    report(record, run, setup)
            run.loss = means["loss"]
            run.totals.reset()
            epoch_started, epoch_first = time.monotonic(), run.step
        stopping = distributed.any_process(stop.received is not None)
        if stopping or (
            into_epoch == 0 and (epoch % config.checkpoint_every == 0 or run.step == steps)
        ):
            file = save(run, setup)
        if stopping:
            bar.close()
            run.saver.wait()
            print(f"stopped: {file} holds everything so far, the same command goes on from it")
            return stop.exit_code
    bar.close()
    run.saver.wait()
    return 0


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


def begin(setup: Setup) -> Run:
    """The run of the newest checkpoint, or a new one."""
    run, directory = start(setup), setup.config.checkpoint_dir
    found = distributed.from_main(checkpoint.newest(directory) if distributed.is_main() else None)
    if found:
        resume(run, setup, *found)
    else:
        fill(run, setup)
    return run


def lead(setup: Setup, stop: StopSignal) -> int:
    """The process that writes: all there is, or the first of those under torchrun."""
    config, directory = setup.config, setup.config.checkpoint_dir
    with checkpoint.locked(directory):
        fresh = config.fresh and not distributed.restarts()
        if fresh and (aside := checkpoint.set_aside(directory)):
            print(f"the earlier run's files are now in {aside}")
        run = begin(setup)
        is_new = not run.tracking
        group = run.tracking.get("group") or f"{config.dataset}-{secrets.token_hex(4)}"
        with (
            run.saver,
            MetricsLog(directory / checkpoint.METRICS_LOG, keep_until_step=run.step) as metrics,
            Tracker(
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
            ) as tracker,
        ):
            run.tracking = {"group": group, "run_id": tracker.run_id}
            if is_new:
                save(run, setup)  # epoch 0, the untrained network
                run.saver.wait()  # a place that takes no checkpoint is told of before training

            def log(record: dict[str, Any]) -> None:
                metrics.write(record)
                tracker.log(record, PREFIXES[record["kind"]])

            code = train(run, setup, log, stop)
            tracker.finish(code)
    if code == 0:
        print(f"trained for {config.epochs} epochs: {checkpoint.listed(directory)[-1]}")
    return code


def main(config: TrainConfig) -> int:
    with distributed.process_group():
        setup = set_up(config)
        with StopSignal() as stop:
            if distributed.is_main():
                return lead(setup, stop)
            return train(begin(setup), setup, lambda record: None, stop)


if __name__ == "__main__":
    run_script(main, TrainConfig)
