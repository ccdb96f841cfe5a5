"""Devices, and what is missing on a machine."""

import shutil
import sysconfig
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from src.runtime import device
from src.runtime.cli import RunError, UserError
from src.runtime.device import (
    can_compile,
    explaining_memory,
    gpu_utilization,
    is_fast,
    select_device,
    select_precision,
)
from src.training.flags import TrainConfig
from src.training.loop import memory_advice


def test_what_torch_compile_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def note() -> str:
        assert not can_compile()
        return capsys.readouterr().out

    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    assert "which needs Triton" in note()
    monkeypatch.setattr(device, "find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "which needs a C compiler" in note()
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "clang" else None)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert "which needs Python's headers" in note()
    (tmp_path / "Python.h").touch()
    assert can_compile()
    monkeypatch.setenv("CC", "my-compiler")
    assert "which needs a C compiler" in note()


def test_a_gpu_that_does_not_tell_its_utilization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 1 / 0)  # any error of NVML's
    assert gpu_utilization(torch.device("cuda", 0)) is None


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match="more processes here than there are GPUs: 1"):
        select_device("auto")
    assert select_device("cpu").type == "cpu"


def test_a_driver_that_is_too_old_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def is_available() -> bool:
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version "
            "12040). Please update your GPU driver by downloading ... (Triggered internally)",
            stacklevel=1,
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    reason = (
        "its driver supports CUDA 12.4 at most, and this PyTorch needs CUDA 13.0: update the "
        "driver, or install a PyTorch built for another CUDA version"
    )
    with pytest.raises(UserError, match=f"--device cuda: {reason}"):
        select_device("cuda")
    assert select_device("auto").type != "cuda"
    assert f"warning: a GPU is not used: {reason}" in capsys.readouterr().err
    assert select_device("cpu").type == "cpu"
    assert not capsys.readouterr().err


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose first kernel PyTorch has no code for."""

    def no_kernel(*_: object, device: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    values: dict[str, Any] = {
        "is_available": True, "device_count": 1, "set_device": None,
        "get_device_capability": (7, 0), "get_device_name": "Tesla V100",
        "get_arch_list": ["sm_75", "sm_80"],
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch, "zeros", no_kernel)


@pytest.mark.usefixtures("old_gpu")
def test_a_gpu_that_is_too_old_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    reason = (
        r"this PyTorch has no code for a Tesla V100 \(compute capability 7.0\), only for sm_75 "
        "sm_80: install a PyTorch built for another CUDA version"
    )
    with pytest.raises(UserError, match=reason):
        select_device("cuda")
    assert select_device("auto").type != "cuda"
    assert "warning: a GPU is not used: this PyTorch has no code" in capsys.readouterr().err


def test_a_full_gpu_is_told_with_its_size_and_a_remedy() -> None:
    message = (
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 15.77 GiB "
        "of which 12.00 MiB is free."
    )
    line = "the GPU's memory of 15.77 GiB is full: take less"
    with pytest.raises(RunError, match=line), explaining_memory("take less"):
        raise torch.OutOfMemoryError(message)
    config = TrainConfig(batch_size=64, accumulate=2)
    assert "--fresh --batch-size 32 --accumulate 4 (" in memory_advice(config)


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        (torch.float16, "cuda", True), (torch.bfloat16, "cuda", False),  # before Ampere
        (torch.float16, "cpu", False), (torch.bfloat16, "cpu", False), (torch.float32, "cpu", True),
    ],
)  # fmt: skip
def test_precisions_that_the_hardware_emulates(
    dtype: torch.dtype, device: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert is_fast(dtype, torch.device(device)) == expected


@pytest.mark.parametrize(
    ("level", "has_bf16", "expected"),
    [
        ("AVX512", True, torch.bfloat16),
        ("AVX512", False, torch.float32),
        ("AVX2", True, torch.float32),  # as with ATEN_CPU_CAPABILITY=avx2: emulated, very slow
    ],
)
def test_bfloat16_where_the_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, level: str, has_bf16: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16})
    assert select_precision("auto", torch.device("cpu")) == expected
    assert select_precision("bf16", torch.device("cpu")) == torch.bfloat16
