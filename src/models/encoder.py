"""Images through a backbone: the features that every stage after training works on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.models.batch_norm import fold_batch_norm
from src.models.preprocessing import preprocess
from src.models.simclr import Backbone, SimCLR
from src.runtime import distributed
from src.runtime.cli import UserError
from src.runtime.device import autocast, one_ahead
from src.storage import checkpoint


@torch.inference_mode()
def encode(backbone: Backbone, images_BCSS: Tensor, dtype: torch.dtype) -> Tensor:
    """Features (B, D), float32, of one uint8 batch on the backbone's device.

    Args:
        dtype: precision of the activations.
    """
    x = preprocess(images_BCSS)
    with autocast(x.device, dtype):
        return backbone(x).float()


def encode_into(
    features_ND: np.ndarray | None,
    backbone: Backbone,
    images_NCSS: np.ndarray,
    dtype: torch.dtype,
    batch_size: int = 256,
    shared: bool = False,
) -> Iterator[int]:
    """Fill `features_ND` with the features of uint8 images, yielding how many came at a time.

    The images are read batch by batch, the next one while the network works on this one, so
    neither they nor the features need to fit in memory.

    Args:
        shared: under torchrun the processes take the batches in turn, and the main one alone has
            and fills `features_ND`. The batches are the same, so the features are to the bit.
    """
    processes, rank = (distributed.size(), distributed.rank()) if shared else (1, 0)
    device = next(backbone.parameters()).device
    was_training = backbone.training
    backbone.eval()
    total = len(images_NCSS)

    def read(start: int) -> Tensor:
        i = start + rank * batch_size
        batch = torch.from_numpy(np.ascontiguousarray(images_NCSS[i : i + batch_size]))
        return batch.pin_memory() if device.type == "cuda" else batch

    starts = range(0, total, batch_size * processes)
    for start, batch in zip(starts, one_ahead(read, starts), strict=True):
        features = torch.zeros(batch_size, backbone.feature_dim)
        if len(batch):  # the last round may have none for this process
            images = batch.to(device, non_blocking=True)
            features[: len(batch)] = encode(backbone, images, dtype)
        stop = min(total, start + batch_size * processes)
        parts = distributed.to_main(features) if shared else [features]
        if parts is not None and features_ND is not None:
            features_ND[start:stop] = torch.cat(parts)[: stop - start].numpy()
        yield stop - start
    backbone.train(was_training)


def encode_all(backbone: Backbone, images_NCSS: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Features (N, D), float32, of uint8 images (N, 3, S, S)."""
    features = np.empty((len(images_NCSS), backbone.feature_dim), np.float32)
    for _ in encode_into(features, backbone, images_NCSS, dtype):
        pass
    return features


@dataclass(frozen=True)
class TrainedBackbone:
    """A frozen backbone, and what was recorded when it was trained."""

    backbone: Backbone
    image_size: int
    """Side S in pixels of the images that it was trained on."""
    epoch: int
    config: dict[str, Any]
    """The flags of the training run."""
    dataset: dict[str, Any]
    """Fingerprint, image size and class names of what it was trained on."""
    tracking: dict[str, str | None]
    file: Path

    @property
    def cache_dir(self) -> Path | None:
        """Where the decoded pictures of a folder were kept in training."""
        return Path(self.config["cache_dir"]) if self.config["cache_dir"] else None

    @classmethod
    def load(cls, file: Path | None, directory: Path, device: torch.device) -> "TrainedBackbone":
        """From the checkpoint `file`, or from the newest whole one in `directory`.

        Raises:
            UserError: there is none that can be used.
        """
        found = (file, checkpoint.load(file)) if file is not None else checkpoint.newest(directory)
        if found is None:
            raise UserError(f"no checkpoint in {directory}: run python src/train.py first")
        file, state = found
        config = state["config"]
        pretrained = config["weights"] != "none"
        model = SimCLR(
            config["arch"], config["small_images"], bn=config["bn"], pretrained=pretrained
        )
        model.load_state_dict(state["model"])
        backbone = model.backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        fold_batch_norm(backbone)
        return cls(
            backbone,
            state["dataset"]["image_size"],
            state["epoch"],
            config,
            state["dataset"],
            state["tracking"],
            file,
        )
