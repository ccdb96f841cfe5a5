"""Gradients of compiled networks against those without torch.compile, alone or under torchrun.

python tests/helpers/compiled_gradients.py resnet8 frozen warm-up
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from src.models.architectures import ARCHITECTURES, Design
from src.runtime import distributed
from src.training.compilation import network_for
from src.training.flags import TrainConfig
from src.training.loop import add_gradients
from src.training.setup import Setup, prepare
from src.training.state import TrainState, random_state
from src.training.stop_signal import StopSignal

ARCHITECTURES["bottlenecks"] = Design("bottleneck", (2, 1), (16, 32))
TOLERANCE = 1e-4
"""Of the difference, relative to the length of each gradient: rounding gives about 1e-5. In deep
networks it pushes ReLUs over their kinks, so that weights rounded anew are the measure there."""


def of_one_step(
    state: TrainState, setup: Setup, is_compiled: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and gradients and buffers after it; the model is as before afterwards."""
    batches = setup.batches.load(0)
    step = partial(
        add_gradients, scaler=state.scaler, batches=batches, config=setup.config, dtype=setup.dtype
    )
    network = network_for(state.model, setup.device, is_compiled, step, StopSignal())
    assert hasattr(network, "_orig_mod") == is_compiled, "not compiled"
    before = [buffer.clone() for buffer in state.model.buffers()]
    loss = step(network)
    found = {name: p.grad.clone() for name, p in state.model.named_parameters()}
    found |= {name: b.clone() for name, b in state.model.named_buffers()}
    for buffer, value in zip(state.model.buffers(), before, strict=True):
        buffer.copy_(value)
    state.model.zero_grad()
    return loss, found


def compare(arch: str, bn: str, phase: str) -> None:
    """Args: phase: warm-up, frozen, or pretrained."""
    side = {"timm": 64}.get(arch.split("/")[0], 20)
    with tempfile.TemporaryDirectory() as directory:
        config = TrainConfig.for_dataset(
            "digits", arch=arch, bn=bn, precision="fp32", device="cpu", batch_size=4, accumulate=2,
            checkpoint_dir=Path(directory), image_size=side,
            weights="pretrained" if phase == "pretrained" else "none",
        )  # fmt: skip
        setup = prepare(config)
    state = random_state(setup)
    state.model.backbone.freeze(phase != "warm-up")
    loss, expected = of_one_step(state, setup, is_compiled=False)
    torch.compiler.reset()
    compiled_loss, found = of_one_step(state, setup, is_compiled=True)
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=1e-5)
    difference, name = largest_difference(found, expected)
    print(f"{arch} {bn} {phase}: {difference:.1e} in {name}", flush=True)
    if difference >= TOLERANCE:
        rounding = torch.finfo(torch.float32).eps / 2
        for weights in state.model.parameters():
            weights.data *= 1 + rounding * torch.randn_like(weights)
        rounded = largest_difference(of_one_step(state, setup, is_compiled=False)[1], expected)
        assert difference < 2 * rounded[0], (arch, bn, phase, name, difference, rounded)


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """Relative to the length of each tensor, and where."""
    return max(
        (float((found[n].double() - e.double()).norm() / e.double().norm().clamp_min(1e-9)), n)
        for n, e in expected.items()
    )


if __name__ == "__main__":
    torch.compile = partial(torch.compile, backend="aot_eager")
    with distributed.process_group():
        for case in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3], strict=True):
            compare(*case)
