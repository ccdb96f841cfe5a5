"""One process alone, or one of many that torchrun started: the same script either way.

Every function here does nothing, or the obvious, in a process alone. Between processes, tensors on
a GPU travel by NCCL and tensors in memory by gloo.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from src.runtime.cli import RunError

T = TypeVar("T")

PATIENCE = timedelta(hours=12)
"""How long a process waits for another: the first one may be downloading or decoding."""


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Be one of torchrun's processes while the block runs. Only the main one prints.

    Raises:
        RunError: another process of the job has gone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    # torchrun keeps one store for all its restarts on a node (PyTorch issue 135712): under the
    # same keys a process would find the addresses of those that died.
    store, own, count = next(iter(rendezvous("env://", timeout=PATIENCE)))
    attempt = restarts() if one_machine() else 0
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(f"attempt {attempt}", store), rank=own, world_size=count,
        timeout=PATIENCE,
    )  # fmt: skip
    try:
        with (
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(sys.stdout if is_main() else nowhere),
        ):
            yield
    except RuntimeError as error:  # gloo has no class of its own for a peer that went away
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise RunError(f"process {rank()} lost the others: {error}") from None
        raise
    dist.destroy_process_group()


def size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if size() > 1 else 0


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def one_machine() -> bool:
    """Whether torchrun has all its processes here; several machines count restarts apart."""
    return os.environ.get("GROUP_WORLD_SIZE", "1") == "1"


def restarts() -> int:
    """How often torchrun has started the job again after a process died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def is_main() -> bool:
    """Whether this process writes and prints for all."""
    return rank() == 0


def own_part(count: int) -> slice:
    """Which of `count` rows are this process's; `count` is a multiple of `size()`."""
    part = count // size()
    return slice(rank() * part, (rank() + 1) * part)


def own_rows(views: int, device: torch.device | None = None) -> Tensor:
    """Which of the `views` of a whole batch are this process's: of the first half those of its own
    images, and of the second."""
    part = own_part(views // 2)
    first = torch.arange(part.start, part.stop, device=device)
    return torch.cat([first, first + views // 2])


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process; all of them must ask."""
    if size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


@contextlib.contextmanager
def local_main_first() -> Iterator[None]:
    """The first process of every machine runs the block before the others do."""
    if local_rank():
        any_process(False)
    yield
    if not local_rank():
        any_process(False)


def from_main(value: T) -> T:
    """The main process's `value`, in every process."""
    box = [value]
    if size() > 1:
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def copy_from_main(module: nn.Module) -> None:
    """Give the module's buffers the values they have in the main process."""
    if size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def mean(value: Tensor) -> Tensor:
    """Mean over the processes; not differentiable."""
    if size() > 1:
        dist.all_reduce(value)
        value = value / size()
    return value


def to_main(rows_BD: Tensor) -> list[Tensor] | None:
    """Every process's rows (B, D), in memory, in the order of the processes; None but in the main
    process."""
    if size() == 1:
        return [rows_BD]
    found = [torch.empty_like(rows_BD) for _ in range(size())] if is_main() else None
    dist.gather(rows_BD, found, dst=0)
    return found


def wrap_ddp(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with gradients averaged over the processes."""
    if size() == 1:
        return model
    # The statistics of batch norm are the same everywhere without being sent: see SyncedBatchNorm.
    index = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=index, broadcast_buffers=False)


def sync_gradients(model: Any, now: bool) -> contextlib.AbstractContextManager:
    """Whether a backward pass in the block averages the gradients, or only adds them up here."""
    return contextlib.nullcontext() if now or size() == 1 else model.no_sync()


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, one after the other; gradients flow back to each."""
    return _GatherRows.apply(rows) if size() > 1 else rows  # type: ignore[return-value]


def total(value: Tensor) -> Tensor:
    """Sum over the processes; gradients flow back to each."""
    return _Total.apply(value) if size() > 1 else value  # type: ignore[return-value]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        out = rows.new_empty(size() * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(out, rows.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[own_part(len(gradient))]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient
