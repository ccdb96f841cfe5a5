"""Training batches, from the memory-mapped images to the device: a function of seed and step."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.runtime import distributed
from src.runtime.flag_choices import Placement
from src.training.flags import TrainConfig, ViewSettings
from src.training.randomness import EPOCH_ORDER, PAIRS, VIEWS, random_stream
from src.training.views import ViewParameters, draw, make_views


class ImageStore:
    """uint8 images of several splits, indexed as one.

    Args:
        arrays: each (N, 3, S, S) uint8; memory maps are read image by image.
        device: where `gather` puts its result.
        placement: "device" copies all images there once, "stream" reads them batch by batch,
            "auto" copies them if they fill less than a third of the device's free memory.

    Shape letter: S side of an image in pixels.
    """

    def __init__(self, arrays: list[np.ndarray], device: torch.device, placement: Placement):
        self.arrays = arrays
        self.device = device
        self.side = arrays[0].shape[-1]
        self.starts = np.cumsum([0] + [len(array) for array in arrays])
        self.bytes = sum(array.nbytes for array in arrays)
        if placement == "auto":
            # On the CPU a memory map already is memory, which the system can drop.
            fits = device.type == "cuda" and self.bytes < torch.cuda.mem_get_info(device)[0] / 3
            placement = "device" if fits else "stream"
        self.placement = placement
        self.resident = self._copy_all() if placement == "device" else None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def gather(self, indices: Tensor) -> Tensor:
        """Images (B, 3, S, S) on the device, for int64 indices (B,) on the CPU."""
        if self.resident is not None:
            return self.resident[indices.to(self.device, non_blocking=True)]
        batch = torch.empty(
            (len(indices), *self.arrays[0].shape[1:]),
            dtype=torch.uint8,
            pin_memory=self.device.type == "cuda",
        )
        array_of_row = np.searchsorted(self.starts, indices.numpy(), side="right") - 1
        for number, array in enumerate(self.arrays):
            rows = np.flatnonzero(array_of_row == number)
            batch.numpy()[rows] = array[indices.numpy()[rows] - self.starts[number]]
        return batch.to(self.device, non_blocking=True)

    def views(self, indices: Tensor, settings: ViewSettings, rng: torch.Generator) -> Tensor:
        """One random view of each image, normalized, (B, 3, V, V) on the device."""
        parameters = draw(settings, len(indices), self.side, rng)
        moved = _to_device(parameters, self.device)
        return make_views(self.gather(indices), moved, settings.view_size)

    def _copy_all(self, block: int = 4096) -> Tensor:
        shape = (len(self), *self.arrays[0].shape[1:])
        resident = torch.empty(shape, dtype=torch.uint8, device=self.device)
        for array, start in zip(self.arrays, self.starts[:-1], strict=True):
            for i in range(0, len(array), block):
                part = torch.from_numpy(np.ascontiguousarray(array[i : i + block]))
                resident[start + i : start + i + len(part)] = part.to(self.device)
        return resident


def paired_views(
    images_NCSS: np.ndarray, settings: ViewSettings, device: torch.device, count: int = 128
) -> Iterator[Tensor]:
    """Two random views of each of at most `count` uint8 images, the same in every call.

    Yields:
        The first views of up to 32 images, then their second ones: (2B, 3, V, V), normalized.
    """
    store, rng = ImageStore([images_NCSS], device, "stream"), random_stream(0, PAIRS)
    for rows_B in torch.randperm(len(store), generator=rng)[:count].split(32):
        yield store.views(rows_B.repeat(2), settings, rng)


class Batch(NamedTuple):
    """B uint8 images (B, 3, S, S) and the parameters of their 2B views, on the device: under
    torchrun, this process's part of the whole batch."""

    images_BCSS: Tensor
    parameters: ViewParameters


class TrainingBatches:
    """The images of every step, and the parameters of their views.

    A step takes `accumulate` batches of `batch_size` images. The order of an epoch depends only on
    (seed, epoch) and the views only on (seed, step), so training can be resumed after any step.
    The last, incomplete step of an epoch is dropped; each epoch is reshuffled.
    """

    def __init__(self, store: ImageStore, config: TrainConfig):
        self.store, self.config = store, config
        # At least one: with --epochs 0, the images need not fill a step.
        self.per_epoch = max(1, len(store) // config.images_per_step)
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> Tensor:
        rng = random_stream(self.config.seed, EPOCH_ORDER, epoch)
        return torch.randperm(len(self.store), generator=rng)

    def load(self, step: int) -> list[Batch]:
        """The batches of a step; steps are counted from 0 over all epochs."""
        epoch, i = divmod(step, self.per_epoch)
        indices = self._order(epoch).split(self.config.batch_size)
        rng = random_stream(self.config.seed, VIEWS, step)
        count = self.config.accumulate
        return [self._batch(batch, rng) for batch in indices[i * count : (i + 1) * count]]

    def _batch(self, indices: Tensor, rng: torch.Generator) -> Batch:
        """Random numbers are drawn for the whole batch, of which this process takes its part."""
        views, rows = 2 * len(indices), slice(None)
        if distributed.size() > 1:
            rows = distributed.own_rows(views)
            indices = indices[distributed.own_part(len(indices))]
        parameters = draw(self.config.views, views, self.store.side, rng, rows)
        return Batch(self.store.gather(indices), _to_device(parameters, self.store.device))


def _to_device(parameters: ViewParameters, device: torch.device) -> ViewParameters:
    """Copy without waiting for the device."""
    if device.type == "cuda":
        parameters = ViewParameters(*(tensor.pin_memory() for tensor in parameters))
    return ViewParameters(*(tensor.to(device, non_blocking=True) for tensor in parameters))
