"""The device, its precision, and what it can compile."""

import ctypes
import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch

from src.runtime import distributed
from src.runtime.cli import UserError
from src.runtime.flag_choices import DeviceName, PrecisionName

DTYPES: dict[PrecisionName, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


def select_device(name: DeviceName) -> torch.device:
    """The device of that name; `auto` takes CUDA, Apple's MPS or the CPU, in this order."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if available[device])
    if not available[name]:
        raise UserError(f"--device {name}: no such device on this machine; use --device auto")
    if name == "cpu":
        keep_freed_memory()
    if name == "cuda":
        index, count = distributed.local_rank(), torch.cuda.device_count()
        if index >= count:
            raise UserError(f"torchrun started more processes here than there are GPUs: {count}")
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device(name)


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of returning it to the system.

    Activations are tens of megabytes each. malloc would map and unmap them in every operation of
    every step; the page faults cost up to a fifth of a training step (docs/log.md). Does nothing
    with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: mappings for single large blocks
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: free bytes to return
        mallopt(-2, 1 << 26)  # M_TOP_PAD: bytes to grow by
        mallopt(-8, 1)  # M_ARENA_MAX: number of heaps


def select_precision(name: PrecisionName, device: torch.device) -> torch.dtype:
    """The dtype of the network's activations.

    `auto` takes bfloat16 if the hardware supports it, otherwise float16 on CUDA and float32
    elsewhere.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16
    uses_avx512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")  # may be forbidden
    if device.type == "cpu" and uses_avx512 and torch.cpu.get_capabilities().get("avx512_bf16"):
        return torch.bfloat16
    return torch.float32


def can_compile() -> bool:
    """Whether torch.compile can build kernels for a GPU; prints a note on what is missing.

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
    """Mixed precision in the block; does nothing for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def gpu_utilization(device: torch.device) -> float | None:
    """Percent of the last second in which the GPU was busy; None if it cannot be read."""
    if device.type != "cuda":
        return None
    try:
        return float(torch.cuda.utilization(device))
    except Exception:  # no nvidia-ml-py, no driver, or an error of NVML's own, as with MIG
        return None
