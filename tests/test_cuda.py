"""What only a GPU can show; skipped without one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from src.runtime.device import can_compile
from src.storage import checkpoint
from src.train import main
from src.training import compilation, loop
from src.training.flags import TrainConfig
from src.training.setup import prepare
from src.training.state import end_warmup, restore_or_initialize

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """11 steps in each of two epochs, the first one a warm-up."""
    return TrainConfig.for_dataset(
        "digits", checkpoint_dir=tmp_path / "cuda", device="cuda", precision="fp32", epochs=2,
        warmup_epochs=1.0, log_every=1, checkpoint_every=1, monitor_every=9, wandb="disabled",
    )  # fmt: skip


def losses(config: TrainConfig) -> list[float]:
    lines = (config.checkpoint_dir / checkpoint.METRICS_LOG).read_text().splitlines()
    return [r["loss"] for line in lines if (r := json.loads(line))["kind"] == "step"]


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return checkpoint.load(config.checkpoint_dir / checkpoint.file_name(2))["model"]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("placement", ["device", "stream"])
def test_a_step_never_waits_for_the_device(
    config: TrainConfig, precision: Any, placement: Any
) -> None:
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("no bf16")
    config = replace(config, precision=precision, images=placement, accumulate=2)
    state = restore_or_initialize(setup := prepare(config), None)
    for step in range(4):
        if step == 2:
            end_warmup(state, setup)
        try:
            # The first step of each network selects algorithms and fills the allocator.
            torch.cuda.set_sync_debug_mode("error" if step % 2 else "default")
            batches = setup.batches.load(step)
            loss, norm = loop.train_step(
                state.model, state.optimizer, state.scaler, batches, config, setup.dtype
            )
            state.totals.add(loss, norm)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(number is not None for number in state.totals.means().values())


def test_training_is_that_of_a_cpu(config: TrainConfig, tmp_path: Path) -> None:
    """In float32, as long as rounding has not grown."""
    on_cpu = replace(config, device="cpu", checkpoint_dir=tmp_path / "cpu", learning_rate=1e-5)
    on_cuda = replace(config, learning_rate=1e-5)
    assert main(on_cpu) == main(on_cuda) == 0
    assert losses(on_cuda) == pytest.approx(losses(on_cpu), abs=2e-3)


def test_a_deterministic_run_resumes_to_the_bit(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, precision="auto", deterministic=True)
    whole = replace(config, checkpoint_dir=tmp_path / "whole")
    try:
        main(whole)
        main(replace(config, epochs=2))
        (config.checkpoint_dir / checkpoint.file_name(2)).unlink()
        main(config)
    finally:
        torch.use_deterministic_algorithms(False)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(config).items())


def test_compiled_training_is_the_same(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_compile():
        pytest.skip("nothing to compile with")
    monkeypatch.setattr(compilation, "WORTH_STEPS", 5)  # so that auto compiles
    config = replace(config, learning_rate=1e-5)
    without = replace(config, compile="off", checkpoint_dir=tmp_path / "without")
    main(without)
    torch._dynamo.utils.counters.clear()
    main(config)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    assert losses(config) == pytest.approx(losses(without), abs=2e-3)
