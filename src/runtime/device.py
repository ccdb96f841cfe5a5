"""What a script runs on: device, precision, random streams, signals, progress."""

import ctypes
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeVar

import torch

from src.runtime import distributed
from src.runtime.cli import UserError

Key = TypeVar("Key")
Value = TypeVar("Value")

DeviceName = Literal["auto", "cuda", "mps", "cpu"]
PrecisionName = Literal["auto", "bf16", "fp16", "fp32"]

DTYPES: dict[PrecisionName, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


def select_device(name: DeviceName) -> torch.device:
    """The device of that name; `auto` takes CUDA, else Apple's MPS, else the CPU."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(candidate for candidate in ("cuda", "mps", "cpu") if there[candidate])
    if not there[name]:
        raise UserError(f"--device {name}: there is none here; use --device auto")
    if name == "cpu":
        keep_freed_memory()
    if name == "cuda":
        own, count = distributed.local_rank(), torch.cuda.device_count()
        if own >= count:
            raise UserError(f"torchrun started more processes here than there are GPUs: {count}")
        torch.cuda.set_device(own)
        return torch.device("cuda", own)
    return torch.device(name)


def keep_freed_memory(keep: bool = True) -> None:
    """Let glibc hand freed memory out again instead of returning it to the system.

    Activations are tens of megabytes each, which malloc would map and unmap for every operation
    of every step; the page faults cost up to a fifth of a training step (LOG.md). Elsewhere than
    on glibc nothing happens.

    Args:
        keep: False goes back to glibc's defaults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0 if keep else 1 << 16)  # M_MMAP_MAX: mappings for single large blocks
        mallopt(-1, 2**31 - 1 if keep else 1 << 17)  # M_TRIM_THRESHOLD: free end to give back
        mallopt(-2, 1 << (26 if keep else 17))  # M_TOP_PAD: how much it grows by
        mallopt(-8, 1 if keep else 0)  # M_ARENA_MAX: heaps; 0 is as many as threads like


def select_precision(name: PrecisionName, device: torch.device) -> torch.dtype:
    """The dtype of the network's activations.

    `auto` takes bfloat16 where the hardware computes in it, else float16 on CUDA, else float32.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16
    if device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False):
        return torch.bfloat16
    return torch.float32


def precision_name(dtype: torch.dtype) -> PrecisionName:
    return next(name for name, value in DTYPES.items() if value == dtype)


def can_compile() -> bool:
    """Whether torch.compile can build what it needs for a GPU; a note says what is missing.

    Triton compiles its launcher in C against Python's headers.
    """
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    if find_spec("triton") is None:
        missing = "Triton"
    elif not any(map(shutil.which, compilers)):
        missing = "a C compiler"
    elif not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing = "Python's headers"
    else:
        return True
    print(f"note: training without torch.compile, which needs {missing}")
    return False


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """One path for every precision: a context that does nothing in float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def one_ahead(load: Callable[[Key], Value], keys: Iterable[Key]) -> Iterator[Value]:
    """`load(key)` for every key, in order; a thread loads the next while this one is used."""
    # A thread begins on the first GPU, whichever is this process's; -1 is none.
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else -1
    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(gpu,)) as loader:
        upcoming = None
        for key in keys:
            loading = loader.submit(load, key)
            if upcoming is not None:
                yield upcoming.result()
            upcoming = loading
        if upcoming is not None:
            yield upcoming.result()


def gpu_utilization(device: torch.device) -> float | None:
    """Percent of the last second in which the GPU was busy; None where nothing tells."""
    if device.type != "cuda":
        return None
    try:
        return float(torch.cuda.utilization(device))
    except Exception:  # no nvidia-ml-py, no driver that answers, or NVML's own errors, as with MIG
        return None
