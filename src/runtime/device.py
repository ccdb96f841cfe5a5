"""The device, its precision, and what it can compile."""

import contextlib
import ctypes
import os
import re
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from src.runtime import distributed
from src.runtime.cli import RunError, UserError, printable, reason_of
from src.runtime.flag_choices import DeviceName, PrecisionName

DTYPES: dict[PrecisionName, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}


OTHER_BUILD = "install a PyTorch built for another CUDA version (README, Troubleshooting)"


def select_device(name: DeviceName) -> torch.device:
    """The device of that name; `auto` takes CUDA, Apple's MPS or the CPU, in this order.

    On CUDA, float32 is float32: neither convolutions nor matrix products round to TF32.
    """
    problem = None
    if name in ("auto", "cuda"):
        has_cuda, problem = _check_cuda()
        if name == "cuda" and not has_cuda:
            reason = problem or "no such device on this machine"
            raise UserError(f"--device cuda: {reason}; use --device auto")
        if name == "auto":
            name = "cuda" if has_cuda else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: no such device on this machine; use --device auto")
    if problem and distributed.is_main():
        print(f"warning: a GPU is not used: {problem}", file=sys.stderr)
    if name == "cpu":
        keep_freed_memory()
    if name == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # for matrix products, PyTorch's own default
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)


def _check_cuda() -> tuple[bool, str | None]:
    """Whether this process's GPU works, made the current one; and why not, if there is one."""
    with warnings.catch_warnings(record=True) as caught:  # PyTorch's own explanations
        warnings.simplefilter("always")
        if not torch.cuda.is_available():
            text = " ".join(str(w.message) for w in caught)
            if version := re.search(r"driver .* too old \(found version (\d+)\)", text):
                major, minor = divmod(int(version[1]) // 10, 100)
                return False, (
                    f"its driver supports CUDA {major}.{minor} at most, and this PyTorch needs "
                    f"CUDA {torch.version.cuda}: update the driver, or {OTHER_BUILD}"
                )
            return False, printable(text) or None
        index, count = distributed.local_rank(), torch.cuda.device_count()
        if index >= count:
            raise UserError(f"torchrun started more processes here than there are GPUs: {count}")
        torch.cuda.set_device(index)
        try:
            torch.zeros(1, device="cuda").add_(1).item()
        except RuntimeError as error:
            if "no kernel image" not in str(error):
                return False, printable(reason_of(error))
            major, minor = torch.cuda.get_device_capability()
            return False, (
                f"this PyTorch has no code for a {torch.cuda.get_device_name()} (compute "
                f"capability {major}.{minor}), only for {' '.join(torch.cuda.get_arch_list())}: "
                f"{OTHER_BUILD}"
            )
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return True, None


@contextlib.contextmanager
def explaining_memory(advice: str) -> Iterator[None]:
    """In the block, a GPU that runs out of memory ends the command with one line and `advice`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = re.search(r"a total capacity of ([\d.]+ \w+)", str(error))
        of = f" of {size[1]}" if size else ""
        raise RunError(f"the GPU's memory{of} is full: {advice}") from None


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


def is_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the hardware computes in `dtype`, instead of emulating it, at a fraction of the speed
    of float32."""
    if dtype == torch.float32 or (dtype == torch.float16 and device.type == "cuda"):
        return True
    return dtype == select_precision("auto", device)


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
