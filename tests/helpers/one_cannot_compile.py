"""Under torchrun: the second process cannot compile, and the step goes on in both without."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.backends.debugging import aot_eager

from src.runtime import distributed
from src.training.compilation import network_for
from src.training.flags import TrainConfig
from src.training.loop import add_gradients
from src.training.setup import prepare
from src.training.state import random_state
from src.training.stop_signal import StopSignal


def backend(graph: Any, inputs: list[Any]) -> Any:
    if distributed.rank() == 1:
        raise RuntimeError("no room for the compiler")
    return aot_eager(graph, inputs)


def main(directory: Path) -> None:
    config = TrainConfig.for_dataset(
        "digits", precision="fp32", device="cpu", batch_size=4, checkpoint_dir=directory
    )
    setup = prepare(config)
    state = random_state(setup)
    batches = setup.batches.load(0)
    step = partial(
        add_gradients, scaler=state.scaler, batches=batches, config=config, dtype=setup.dtype
    )
    network = network_for(state.model, setup.device, True, step, StopSignal())
    assert not hasattr(network, "_orig_mod"), "compiled"
    step(network)
    for gradient in (p.grad for p in state.model.parameters()):
        assert torch.equal(gradient, distributed.from_main(gradient))


if __name__ == "__main__":
    torch.compile = partial(torch.compile, backend=backend)
    with tempfile.TemporaryDirectory() as directory, distributed.process_group():
        main(Path(directory))
