"""Cost estimate of a run, printed before it starts, with a note if the run is too short."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from src.evaluation.sampling import EXACT
from src.training import compilation
from src.training.setup import Setup
from src.training.state import TrainState

FEW_IMAGES, FEW_STEPS = 1_000, 1_000
"""Below either, a note points to features that were learned elsewhere."""
PAIR = 50e-9
"""Core seconds: for three kinds of features two hops of 4.9 ns and two silhouettes of 3.5 ns."""


def announce(setup: Setup, state: TrainState, plan: compilation.Plan) -> None:
    """Print how many images and steps are to come, whether they are compiled, and what the
    checkpoints take on disk."""
    config, per_epoch = setup.config, setup.batches.per_epoch
    images, left = len(setup.batches.store), setup.steps - state.step
    if left <= 0:
        return
    print(
        f"{images:,} images of {setup.dataset.image_size} px, {config.images_per_step} a step; "
        f"epochs: {config.epochs}, steps in each: {per_epoch:,}, steps to go: {left:,}"
        + compilation.described(plan, setup)
    )
    epochs = range(state.step // per_epoch + 1, config.epochs + 1)
    files = sum(e % config.checkpoint_every == 0 or e == config.epochs for e in epochs)
    files = min(files, config.keep or files)
    # Weights, and AdamW's two moments of each.
    size = 3 * sum(p.numel() * p.element_size() for p in state.model.parameters())
    free = shutil.disk_usage(config.checkpoint_dir).free
    text = (
        f"checkpoints: {files} of {size / 1e6:,.0f} MB, in all {files * size / 1e6:,.0f} "
        f"MB in {config.checkpoint_dir}, where {free / 1e9:,.1f} GB are free"
    )
    if files * size > free:
        print(f"warning: {text}: make room, or keep fewer with --keep", file=sys.stderr)
    else:
        print(text, flush=True)
    is_short = images < FEW_IMAGES or setup.steps < FEW_STEPS
    if config.dataset == "folder" and not config.pretrained and is_short:
        print(
            f"note: {images:,} pictures and {setup.steps:,} steps are too few for learning from "
            "random weights to work well; --weights lite0 starts from what was learned elsewhere",
            flush=True,
        )
    if line := later_stages(images, os.cpu_count() or 1):
        print(line, flush=True)


def later_stages(images: int, cores: int) -> str | None:
    """What comes after training, for so many images that it takes minutes.

    A step of training takes forward and backward passes, three times a forward pass, of two views;
    extraction takes two forward passes of an image, with --untrained. Then neighbors and
    silhouettes take `PAIR` for each pair of images.
    """
    minutes = min(images, EXACT) ** 2 * PAIR / cores / 60
    if minutes < 0.5:
        return None
    return (
        "after training: features in about a third of an epoch's time, clusters with all baselines "
        f"and the page in about {max(1, round(minutes)):,} minutes"
    )


class Clock:
    """Seconds, apart from those in `paused`: compiling says nothing about the steps to come."""

    def __init__(self) -> None:
        self._paused = 0.0

    def now(self) -> float:
        return time.monotonic() - self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        started = self.now()
        yield
        self._paused += self.now() - started


class StepTimer:
    """Estimates the length of a run from its first steps.

    Args:
        first, steps: the step that the run begins with, and their number in all.
    """

    FROM, TO = 3, 10
    """The steps that are timed: the very first ones take longer."""

    def __init__(self, first: int, steps: int, clock: Clock):
        self.first, self.steps, self.clock = first, steps, clock
        self.started = 0.0

    def estimate(self, step: int, loss: Tensor) -> str | None:
        """Call it after every step: the line to print, once, if two minutes or more are left."""
        done = step - self.first
        if done not in (self.FROM, self.TO):
            return None
        loss.item()  # waits for the device
        if done == self.FROM:
            self.started = self.clock.now()
            return None
        a_step = (self.clock.now() - self.started) / (self.TO - self.FROM)
        minutes = a_step * (self.steps - step) / 60
        return f"about {minutes:,.0f} minutes of training to go" if minutes >= 1.5 else None
