"""torch.compile: when it is worth it, that it computes the same, and that it ends no training."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import aot_eager

from src.models.architectures import ARCHITECTURES
from src.storage import checkpoint
from src.train import main
from src.training import compilation
from src.training.compilation import compile_plan, described, network_for
from src.training.flags import TrainConfig
from src.training.forecast import Clock, StepTimer
from src.training.stop_signal import StopSignal
from tests.helpers import HELPERS
from tests.helpers.small_network import SMALL
from tests.test_distributed import together

ARCHITECTURES["small"] = SMALL
CPU = torch.device("cpu")


@pytest.fixture
def config(stl10_dir: Path, tmp_path: Path) -> TrainConfig:
    """Three steps in an epoch."""
    return TrainConfig(
        data_dir=stl10_dir, checkpoint_dir=tmp_path / "checkpoints", arch="small", epochs=2,
        batch_size=16, warmup_epochs=1, precision="fp32", log_every=1, wandb="disabled",
        monitor_every=9, device="cpu", checkpoint_every=1, compile="on",
    )  # fmt: skip


def use_backend(monkeypatch: pytest.MonkeyPatch, backend: Callable[..., Any]) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))


def broken(*_: Any) -> Any:
    raise RuntimeError("no compiler today\nand more lines")


def backend_without_a_compiler(graph: Any, inputs: list[Any]) -> Any:
    broken()


def final_state(config: TrainConfig) -> dict[str, Any]:
    state = checkpoint.load(config.checkpoint_dir / checkpoint.file_name(config.epochs or 0))
    return {part: state[part] for part in ("model", "optimizer", "loss", "totals")}


def plan_of(first: int = 0, **changes: Any) -> dict[int, bool]:
    """The plan for 1,000 warm-up steps of 5,000, on CUDA."""
    values = {"bn": "frozen", "pretrained": False, "compile": "auto", "deterministic": False}
    setup = {"device": torch.device("cuda"), "warmup_steps": 1_000, "steps": 5_000}
    setup |= {name: changes.pop(name) for name in set(setup) & set(changes)}
    return compile_plan(SimpleNamespace(config=SimpleNamespace(**values | changes), **setup), first)


def test_auto_compiles_where_the_steps_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "can_compile", lambda: True)
    assert plan_of() == {0: False, 1_000: True}
    assert plan_of(warmup_steps=2_000, steps=3_000) == {0: True, 2_000: False}
    assert plan_of(first=2_500) == {2_500: True}
    assert plan_of(first=3_001) == {3_001: False}
    assert plan_of(first=3_001, deterministic=True) == {3_001: True}  # as if never stopped
    assert plan_of(bn="train", steps=2_000) == plan_of(pretrained=True, steps=2_000) == {0: True}
    assert plan_of(steps=1_999, bn="train") == {0: False}
    assert plan_of(device=CPU) == plan_of(compile="off") == {0: False}
    assert plan_of(compile="on", device=CPU, steps=1_001) == {0: True, 1_000: True}
    monkeypatch.setattr(compilation, "can_compile", lambda: False)
    assert plan_of() == {0: False}


def test_the_announcement_says_whether_it_compiles() -> None:
    def line(plan: dict[int, bool], compile: str = "auto", device: str = "cuda") -> str:
        setup: Any = SimpleNamespace(
            config=SimpleNamespace(compile=compile), device=torch.device(device)
        )
        return described(plan, setup)

    assert line({0: False, 1_000: True}) == "; compiled from step 1,000 on"
    assert "without torch.compile (worth its minutes from 2,000 steps on)" in line({0: False})
    assert line({0: False}, device="cpu") == line({0: False}, compile="off") == ""


@pytest.mark.parametrize(
    "backend",
    [
        backend_without_a_compiler,
        aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph), bw_compiler=broken),
    ],
    ids=["forward", "backward"],
)
def test_a_compilation_that_fails_changes_nothing(
    config: TrainConfig,
    backend: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = replace(config, bn="train")  # whose statistics every forward pass changes
    without = replace(own, compile="off", checkpoint_dir=tmp_path / "without")
    main(without)
    use_backend(monkeypatch, backend)
    assert main(own) == 0
    text = capsys.readouterr().out
    line = "note: torch.compile failed (RuntimeError: no compiler today): training without it"
    assert text.count(line) == 1
    assert text.index("; compiled from step 0 on") < text.index("compiling the network with torch")
    torch.testing.assert_close(final_state(own), final_state(without), rtol=0, atol=0)


def test_ctrl_c_ends_a_compilation_at_once(
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the second one, after the warm-up; nothing is lost."""
    undisturbed = replace(config, compile="off", checkpoint_dir=tmp_path / "undisturbed")
    main(undisturbed)
    started = 0.0

    def backend(graph: Any, inputs: list[Any]) -> Any:
        nonlocal started
        if "compiled in" in capsys.readouterr().out:
            started = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        return aot_eager(graph, inputs)

    use_backend(monkeypatch, backend)
    assert main(config) == 130
    assert time.monotonic() - started < 30
    assert "stopped: progress saved to" in capsys.readouterr().out
    assert checkpoint.listed(config.checkpoint_dir)[-1].name == checkpoint.file_name(1)
    main(replace(config, compile="off"))
    losses = [final_state(c)["loss"] for c in (config, undisturbed)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_the_estimate_leaves_compilations_out(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 100.0, 400.0, 407.0])
    monkeypatch.setattr("src.training.forecast.time.monotonic", lambda: next(times))
    clock = Clock()
    timer = StepTimer(0, 130, clock)
    assert timer.estimate(timer.FROM, torch.zeros(())) is None  # at 0
    with clock.paused():  # from 100 to 400
        pass
    line = timer.estimate(timer.TO, torch.zeros(()))  # at 407: 107 for 7 steps
    assert line == "about 31 minutes of training to go"


def test_a_signal_before_a_compilation_is_heard() -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        model: Any = nn.Linear(2, 2)
        assert network_for(model, CPU, True, lambda _: pytest.fail("compiled"), stop) is None
        assert stop.exit_code == 143


SMALL_ONES = [("resnet8", "frozen", "warm-up"), ("bottlenecks", "train", "warm-up")]
OTHERS = [
    ("resnet8", "frozen", "frozen"), ("resnet8", "train", "warm-up"),
    ("bottlenecks", "frozen", "warm-up"), ("bottlenecks", "frozen", "frozen"),
    *((f"resnet{layers}", bn, phase) for layers in (18, 34, 50, 101)
      for bn, phase in (("frozen", "warm-up"), ("frozen", "frozen"), ("train", "warm-up"))),
    ("resnet50", "frozen", "pretrained"),
    ("timm/test_vit", "frozen", "warm-up"), ("timm/test_efficientnet", "train", "warm-up"),
    ("timm/test_efficientnet", "frozen", "pretrained"),
    ("timm/tf_efficientnet_lite0", "frozen", "pretrained"),
    ("timm/tf_efficientnet_lite0", "train", "pretrained"),
]  # fmt: skip
"""Architecture, --bn, and phase."""


@pytest.mark.parametrize(
    ("processes", "cases"),
    [
        (2, SMALL_ONES),
        pytest.param(1, SMALL_ONES, marks=pytest.mark.faults),
        *(
            pytest.param(processes, [case], marks=pytest.mark.faults, id=f"{processes}-{case}")
            for processes in (1, 2)
            for case in OTHERS
        ),
    ],
)
def test_compiled_gradients_are_the_same(processes: int, cases: list[tuple[str, ...]]) -> None:
    names = [word for case in cases for word in case]
    for done in together(processes, HELPERS / "compiled_gradients.py", *names):
        assert done.returncode == 0, done.stderr


def test_one_process_that_cannot_compile_stops_no_other() -> None:
    for done in together(2, HELPERS / "one_cannot_compile.py"):
        assert done.returncode == 0, done.stderr
