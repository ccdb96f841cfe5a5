"""Random streams: everything random in training is a function of the seed, a purpose and a step."""

import numpy as np
import torch

# The purposes. A key (seed, purpose, ...) is never used for two of them.
INITIAL_WEIGHTS, EPOCH_ORDER, VIEWS, CALIBRATION, OUTPUT_VIEWS, PAIRS = range(6)


def random_stream(*key: int) -> torch.Generator:
    """An independent CPU generator for every key, such as (seed, purpose, epoch).

    What it draws depends on the key alone. A resumed run therefore needs no saved random state,
    and every device and process draws the same.
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))
