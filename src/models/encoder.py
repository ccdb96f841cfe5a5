"""From images to the backbone's features, the input of every stage after training."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.models.backbone import Backbone, average
from src.models.batch_norm import fold_batch_norm
from src.models.preprocessing import preprocess
from src.models.simclr import SimCLR
from src.runtime import distributed
from src.runtime.cli import UserError
from src.runtime.device import autocast
from src.runtime.prefetch import prefetch
from src.storage import checkpoint
from src.storage.artifacts import Tracking
from src.storage.checkpoint import BadCheckpoint, Flags, TrainedOn
from src.storage.experiments import no_results

GPU_BATCH = 256
"""Images in a batch on a GPU."""


@torch.inference_mode()
def encode(backbone: Backbone, images_BCSS: Tensor, dtype: torch.dtype) -> Tensor:
    """Features (B, D), float32, of one batch on the backbone's device, uint8 images or normalized
    views; `dtype` is the precision of the activations."""
    x = preprocess(images_BCSS) if images_BCSS.dtype == torch.uint8 else images_BCSS
    with autocast(x.device, dtype):
        return backbone(x).float()


def default_batch_size(device: torch.device, side: int) -> int:
    """`GPU_BATCH`, and on a CPU no more pixels than so many images of 96 px have: more are no
    faster there, and take gigabytes (docs/log.md)."""
    if device.type != "cpu":
        return GPU_BATCH
    return min(GPU_BATCH, max(1, GPU_BATCH * 96**2 // side**2))


def encode_into(
    features_ND: np.ndarray | None,
    backbone: Backbone,
    images_NCSS: np.ndarray,
    dtype: torch.dtype,
    batch_size: int | None = None,
    shared: bool = False,
) -> Iterator[int]:
    """Fill `features_ND` with the features of uint8 images; yields the size of each part done.

    A thread reads the next batch while the network works on this one, and a GPU works on while the
    features of the last one are written. Neither the images nor the features need to fit in memory.

    Args:
        features_ND: None in every process except the main one.
        batch_size: by default `default_batch_size`.
        shared: under torchrun, the processes take turns with the batches and the main one collects
            the features. The batches are the same, so the features are bit-identical.
    """
    processes, rank = (distributed.size(), distributed.rank()) if shared else (1, 0)
    device = next(backbone.parameters()).device
    batch_size = batch_size or default_batch_size(device, images_NCSS.shape[-1])
    was_training = backbone.training
    backbone.eval()
    total = len(images_NCSS)

    def read(start: int) -> Tensor:
        i = start + rank * batch_size
        batch = torch.from_numpy(np.ascontiguousarray(images_NCSS[i : i + batch_size]))
        return batch.pin_memory() if device.type == "cuda" else batch

    def compute(batch: Tensor) -> tuple[Tensor, Any]:
        """The features, complete once the GPU, if there is one, has reached the event."""
        on_gpu = device.type == "cuda"
        features = torch.zeros(batch_size, backbone.feature_dim, pin_memory=on_gpu)
        if len(batch):  # this process may have none in the last round
            images = batch.to(device, non_blocking=True)
            features[: len(batch)].copy_(encode(backbone, images, dtype), non_blocking=True)
        return features, torch.cuda.current_stream().record_event() if on_gpu else None

    def write(start: int, features: Tensor, done: Any) -> int:
        if done:
            done.synchronize()
        stop = min(total, start + batch_size * processes)
        parts = distributed.to_main(features) if shared else [features]
        if parts is not None and features_ND is not None:
            features_ND[start:stop] = torch.cat(parts)[: stop - start].numpy()
        return stop - start

    starts = range(0, total, batch_size * processes)
    computed = None
    for start, batch in zip(starts, prefetch(read, starts), strict=True):
        following = (start, *compute(batch))
        if computed:  # written while the GPU works on the following batch
            yield write(*computed)
        computed = following
    if computed:
        yield write(*computed)
    backbone.train(was_training)


def encode_all(backbone: Backbone, images_NCSS: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Features (N, D), float32, of uint8 images (N, 3, S, S)."""
    features = np.empty((len(images_NCSS), backbone.feature_dim), np.float32)
    for _ in encode_into(features, backbone, images_NCSS, dtype):
        pass
    return features


@dataclass(frozen=True)
class TrainedBackbone:
    """A frozen backbone and what its checkpoint records about the run."""

    file: Path
    backbone: Backbone
    digest: str
    """Of the file."""
    epoch: int
    config: Flags
    dataset: TrainedOn
    tracking: Tracking

    @property
    def cache_dir(self) -> Path | None:
        """Where training kept the decoded pictures of a folder."""
        return Path(self.config["cache_dir"]) if self.config["cache_dir"] else None

    @classmethod
    def load(
        cls,
        file: Path | None,
        directory: Path,
        device: torch.device,
        recorded: str | None = None,
    ) -> "TrainedBackbone":
        """From the checkpoint `file`, or from the newest intact one in `directory`.

        Args:
            recorded: the digest of an earlier `load` of `file`.

        Raises:
            OtherCheckpoint: the file has another digest than `recorded`.
            UserError: there is none, or it cannot be used.
        """
        if file:
            return cls._restored(file, checkpoint.load(file, recorded), device)
        use = partial(cls._restored, device=device)
        if (newest := checkpoint.Newest(directory).use(use)) is None:
            raise UserError(no_results(directory, "--checkpoint-dir"))
        return newest

    @classmethod
    def _restored(
        cls, file: Path, saved: dict[str, Any], device: torch.device
    ) -> "TrainedBackbone":
        config, side = saved["config"], saved["dataset"]["image_size"]
        bn, is_pretrained = config.get("bn", "frozen"), config["weights"] != "none"
        try:
            model = SimCLR(config["arch"], bn, is_pretrained, side)
        except UserError as error:
            raise BadCheckpoint(f"{file} holds a network that cannot be made: {error}") from None
        checkpoint.load_into(model, saved["model"], file)
        if initial := saved.get("initial"):
            trained = model.backbone.state_dict()
            share = config.get("trained_share", 1.0)
            checkpoint.load_into(model.backbone, average(initial, trained, share), file)
        backbone = model.backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        fold_batch_norm(backbone)
        described = ("digest", "epoch", "config", "dataset", "tracking")
        return cls(file, backbone, **{key: saved[key] for key in described})
