"""Five training steps, alone or under torchrun; the main process keeps what came of each.

python tests/few_steps.py frozen float32 OUTPUT
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from src.runtime import distributed
from src.train import begin, train_step
from src.training.recipe import TrainConfig
from src.training.state import freeze, set_up

STEPS = 5


def five_steps(bn: str, dtype: torch.dtype, output: Path) -> None:
    """With batch norm in training for the first two steps, or frozen from the start.

    In float32 GELU takes ReLU's place: whether rounding pushes a ReLU over its kink is chance, and
    moves a gradient by percents.
    """
    if dtype == torch.float32:
        F.relu = lambda x, inplace=False: F.gelu(x)
    config = TrainConfig.for_dataset(
        "digits", bn=bn, batch_size=6, accumulate=2, precision="fp32", device="cpu",
        warmup_epochs=0, checkpoint_dir=output.parent,
    )  # fmt: skip
    setup = set_up(config)
    run = begin(setup)
    run.model.to(dtype)
    run.model.backbone.register_forward_pre_hook(lambda _, args: (args[0].to(dtype),))
    network = distributed.wrap_ddp(run.model, setup.device)
    losses, gradients = [], []
    run.optimizer.register_step_pre_hook(
        lambda *_: gradients.append({n: p.grad.clone() for n, p in run.model.named_parameters()})
    )
    for group in run.optimizer.param_groups:
        group["lr"] = 1e-5
    for batches in setup.batches.prefetched(0, STEPS):
        loss, _ = train_step(network, run.optimizer, run.scaler, batches, config, setup.dtype)
        losses.append(loss)
        run.step += 1
        if run.step == 2:
            freeze(run, setup)
    if distributed.is_main():
        found = {"losses": torch.stack(losses), "gradients": gradients}
        torch.save({**found, "model": run.model.state_dict()}, output)


if __name__ == "__main__":
    with distributed.process_group():
        five_steps(sys.argv[1], getattr(torch, sys.argv[2]), Path(sys.argv[3]))
