"""Devices, and what is missing on a machine."""

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from src.runtime import device
from src.runtime.cli import UserError
from src.runtime.device import can_compile, gpu_utilization, select_device, select_precision


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
