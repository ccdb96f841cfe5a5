"""The same script in a single process, or in many that torchrun started.

In a single process every function here returns at once. Between processes, NCCL carries tensors on
a GPU and gloo carries tensors in memory.
"""

import contextlib
import os
import sys
import warnings
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

TIMEOUT = timedelta(hours=12)
"""How long a process waits for another, which may be downloading or decoding."""


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join torchrun's processes for the duration of the block. Only the main one prints.

    Raises:
        RunError: another process of the job died.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    # torchrun keeps one store for all its restarts on a node (PyTorch issue 135712): under the
    # same keys a process would read the addresses of the dead ones.
    store, own, count = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    # With several machines, each counts its own restarts.
    attempt = restarts() if os.environ.get("GROUP_WORLD_SIZE", "1") == "1" else 0
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(f"attempt {attempt}", store), rank=own, world_size=count,
        timeout=TIMEOUT,
    )  # fmt: skip
    try:
        with (
            Path(os.devnull).open("w") as devnull,
            contextlib.redirect_stdout(sys.stdout if is_main() else devnull),
        ):
            yield
    except RuntimeError as error:  # gloo has no error class for a peer that died
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise RunError(f"process {rank()} lost another one: {error}") from None
        raise
    dist.destroy_process_group()


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if size() > 1 else 0


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def restarts() -> int:
    """How often torchrun has restarted the job after a process died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def own_part(count: int) -> slice:
    """This process's share of `count` rows; `count` is a multiple of `size()`."""
    part = count // size()
    return slice(rank() * part, (rank() + 1) * part)


def own_rows(views: int, device: torch.device | None = None) -> Tensor:
    """Indices of this process's views in a whole batch: those of its images in the first half, and
    in the second."""
    part = own_part(views // 2)
    first = torch.arange(part.start, part.stop, device=device)
    return torch.cat([first, first + views // 2])


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process. Every process must call this."""
    return bool(total(torch.tensor(int(flag))))


@contextlib.contextmanager
def local_main_first() -> Iterator[None]:
    """On every machine, the first process runs the block before the others do."""
    if local_rank():
        any_process(False)
    yield
    if not local_rank():
        any_process(False)


def from_main(value: T) -> T:
    """The main process's `value`, in every process."""
    values = [value]
    if size() > 1:
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def copy_from_main(module: nn.Module) -> None:
    """Overwrite the module's buffers with the main process's."""
    if size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def mean(value: Tensor) -> Tensor:
    """Mean over the processes."""
    return total(value) / size()


def to_main(rows_BD: Tensor) -> list[Tensor] | None:
    """In the main process the rows (B, D), in memory, of every process in order, else None."""
    if size() == 1:
        return [rows_BD]
    gathered = [torch.empty_like(rows_BD) for _ in range(size())] if is_main() else None
    dist.gather(rows_BD, gathered, dst=0)
    return gathered


def wrap_ddp(model: nn.Module, device: torch.device) -> nn.Module:
    """Let backward passes average the model's gradients over the processes."""
    if size() == 1:
        return model
    # SyncedBatchNorm2d computes the same statistics in every process: no need to send them.
    index = [device.index] if device.type == "cuda" else None
    # Of 1x1 filters: of two strides for the same order in memory, DDP expects the other one.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, device_ids=index, broadcast_buffers=False)


def sync_gradients(model: Any, now: bool) -> contextlib.AbstractContextManager:
    """Average the gradients of the block's backward pass, or only add them up in this process."""
    return contextlib.nullcontext() if now or size() == 1 else model.no_sync()


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (B, D) of all processes, concatenated; gradients flow back to each."""
    if size() == 1:
        return rows
    everywhere = rows.new_zeros(size() * len(rows), *rows.shape[1:])
    everywhere[own_part(len(everywhere))] = rows
    return total(everywhere)


def total(value: Tensor) -> Tensor:
    """Sum over the processes; gradients flow back to each."""
    return _Total.apply(value) if size() > 1 else value  # type: ignore[return-value]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return total(gradient)
