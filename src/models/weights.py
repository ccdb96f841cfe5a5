"""Pretrained weights for a backbone: torchvision's for ImageNet, or a state dict in a file."""

import pickle
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from src.models.batch_norm import standardized
from src.models.simclr import Architecture, Backbone
from src.runtime.cli import UserError
from src.storage.checkpoint import FORMAT

WeightsName = Literal["none", "imagenet"]

PREFIXES = ("module.", "model.", "encoder.", "backbone.")
"""Prefixes that other projects give a backbone's keys."""


def load_weights(backbone: Backbone, arch: Architecture, weights: str | Path) -> None:
    """Load weights and batch-norm statistics into the backbone.

    Args:
        weights: `imagenet`, or a file with a state dict, bare or under `state_dict` or `model`,
            such as a checkpoint of this project. Prefixes are stripped; a classifier and anything
            else outside the backbone is ignored.

    Raises:
        UserError: the file cannot be used, or keys or shapes do not fit; names each of them.
    """
    state = imagenet(arch) if weights == "imagenet" else backbone_part(read(Path(weights)))
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        misfits = " ".join(str(error).split())
        raise UserError(f"--weights {weights} does not fit {arch}: {misfits}") from None


def imagenet(arch: Architecture) -> dict[str, Tensor]:
    try:
        source = get_model_weights(arch).DEFAULT  # type: ignore[attr-defined]
    except ValueError:
        raise UserError(f"--weights imagenet: torchvision has none for --arch {arch}") from None
    try:
        return backbone_part(source.get_state_dict(progress=True, check_hash=True))
    except (URLError, OSError) as error:
        raise UserError(
            f"{source.url} could not be downloaded ({error}): download it on a machine with a "
            "network, and give the file to --weights"
        ) from None


def read(file: Path) -> dict[str, Any]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"--weights {file}: there is no such file") from None
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        raise UserError(f"--weights {file} is damaged, or holds more than tensors") from None
    config = state["config"] if isinstance(state, dict) and state.get("format") == FORMAT else {}
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"--weights {file} holds no state dict")
    if config.get("bn") == "frozen" and config["weights"] == "none":  # see FrozenBatchNorm2d
        state = {key: standardized(v) if v.ndim == 4 else v for key, v in state.items()}
    return state


def backbone_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's entries under torchvision's names, without the classifier."""
    while prefix := next((p for p in PREFIXES if any(key.startswith(p) for key in state)), None):
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return {key: value for key, value in state.items() if not key.startswith("fc.")}
