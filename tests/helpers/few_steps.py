"""Five training steps, alone or under torchrun; the main process saves their results.

python tests/helpers/few_steps.py frozen float32 OUTPUT
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from src.models.architectures import ARCHITECTURES
from src.runtime import distributed
from src.runtime.prefetch import prefetch
from src.training.flags import TrainConfig
from src.training.loop import train_step
from src.training.setup import prepare
from src.training.state import end_warmup, restore_or_initialize
from tests.helpers.small_network import SMALL

STEPS = 5


def five_steps(bn: str, dtype: torch.dtype, output: Path) -> None:
    """With batch norm in training for the first two steps, or frozen from the start.

    In float32, GELU replaces ReLU: rounding may push a ReLU over its kink, which changes a
    gradient by percents.
    """
    if dtype == torch.float32:
        F.relu = lambda x, inplace=False: F.gelu(x)
    ARCHITECTURES["small"] = SMALL
    config = TrainConfig.for_dataset(
        "digits", arch="small", bn=bn, batch_size=6, accumulate=2, precision="fp32", device="cpu",
        warmup_epochs=0, checkpoint_dir=output.parent,
    )  # fmt: skip
    setup = prepare(config)
    state = restore_or_initialize(setup, None)
    state.model.to(dtype)
    state.model.backbone.register_forward_pre_hook(lambda _, args: (args[0].to(dtype),))
    network = distributed.wrap_ddp(state.model, setup.device)
    losses, gradients = [], []
    state.optimizer.register_step_pre_hook(
        lambda *_: gradients.append({n: p.grad.clone() for n, p in state.model.named_parameters()})
    )
    for group in state.optimizer.param_groups:
        group["lr"] = 1e-5
    for batches in prefetch(setup.batches.load, range(STEPS)):
        loss, _ = train_step(network, state.optimizer, state.scaler, batches, config, setup.dtype)
        losses.append(loss)
        state.step += 1
        if state.step == 2:
            end_warmup(state, setup)
    if distributed.is_main():
        results = {"losses": torch.stack(losses), "gradients": gradients}
        torch.save({**results, "model": state.model.state_dict()}, output)


if __name__ == "__main__":
    with distributed.process_group():
        five_steps(sys.argv[1], getattr(torch, sys.argv[2]), Path(sys.argv[3]))
