"""torch.compile for the steps that are worth it. A compilation that fails ends no training."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from src.models.simclr import SimCLR
from src.runtime import distributed
from src.runtime.cli import printable, reason_of
from src.runtime.device import can_compile
from src.training.setup import Setup
from src.training.stop_signal import StopSignal

WORTH_STEPS = 2_000
"""Steps from which on `--compile auto` compiles. Compiling a ResNet-50 took 2 minutes before and
1.5 after batch norm is frozen (docs/log.md)."""

Plan = dict[int, bool]
"""The steps at which the network may change its form, and whether it is compiled from there on."""


def compile_plan(setup: Setup, first: int) -> Plan:
    """When to compile. Batch norm that is frozen after the warm-up makes another network, so the
    steps before and after it count separately.

    Args:
        first: the step that this process begins with. With `--deterministic` the plan is that of
            the whole run, so that a resumed one computes the same.
    """
    config = setup.config
    freezes = config.bn == "frozen" and not config.pretrained
    frozen = min(setup.warmup_steps, setup.steps) if freezes else 0
    phases = [
        p for p in (range(frozen), range(frozen, setup.steps)) if p.stop > max(first, p.start)
    ]
    if config.compile == "on":
        return {max(first, p.start): True for p in phases}
    if config.compile == "off" or setup.device.type != "cuda":
        return {first: False}
    since = 0 if config.deterministic else first
    plan = {max(first, p.start): p.stop - max(since, p.start) >= WORTH_STEPS for p in phases}
    # Every process compiles, or none: what they exchange has to be in the same order.
    if any(plan.values()) and not distributed.any_process(not can_compile()):
        return plan
    return {first: False}


def described(plan: Plan, setup: Setup) -> str:
    """Whether the network is compiled, for the line that announces a run; empty where only
    `--compile on` would."""
    config = setup.config
    if config.compile == "off" or (config.compile == "auto" and setup.device.type != "cuda"):
        return ""
    if not any(plan.values()):
        return f"; without torch.compile (worth its minutes from {WORTH_STEPS:,} steps on)"
    start = min(step for step, is_compiled in plan.items() if is_compiled)
    return f"; compiled from step {start:,} on"


def network_for(
    model: SimCLR,
    device: torch.device,
    is_compiled: bool,
    rehearse: Callable[[Any], object],
    stop: StopSignal,
) -> Any:
    """The model as the training step calls it: over all processes, and compiled if that works.

    PyTorch compiles in the first forward and backward pass. They are rehearsed here, where nothing
    is lost: buffers and gradients of the model are as before afterwards.

    Args:
        rehearse: adds the gradients of one step to those of the model.

    Returns:
        None if a signal arrived while it was compiled.
    """
    network = distributed.wrap_ddp(model, device)
    if not is_compiled:
        return network
    print(
        "compiling the network with torch.compile, which takes minutes (--compile off does "
        "without) ...",
        flush=True,
    )
    started, compiled, problem = time.monotonic(), None, None
    try:
        with _unchanged(model), stop.at_once(), warnings.catch_warnings():
            # fp32 is without TF32 on purpose, see `select_device`.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
            try:
                compiled = torch.compile(network, dynamic=False)
                rehearse(compiled)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of any kind: a compiler runs here
                inner = getattr(error, "inner_exception", error)
                problem = printable(f"{type(inner).__name__}: {reason_of(inner)}")
                with contextlib.suppress(Exception):
                    rehearse(network)  # what processes that can compile wait for
    except StopSignal.Interrupt:
        return None
    if distributed.any_process(problem is not None):
        torch.compiler.reset()
        del compiled, network  # its hooks may be in the middle of a backward pass
        reason = problem or "in another process"
        print(f"note: torch.compile failed ({reason}): training without it", flush=True)
        return distributed.wrap_ddp(model, device)
    print(f"compiled in {time.monotonic() - started:,.0f} s", flush=True)
    return compiled


@contextlib.contextmanager
def _unchanged(model: SimCLR) -> Iterator[None]:
    """Restore the buffers after the block, and drop the gradients."""
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), before, strict=True):
                buffer.copy_(value)
        model.zero_grad()
