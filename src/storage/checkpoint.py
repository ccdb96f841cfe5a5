"""Checkpoints: saved so that no crash can damage them, and loaded without running their code.

A checkpoint is written under a temporary name, read back, flushed to disk, and only then renamed.
It holds tensors and Python's built-in types only, and is loaded with `weights_only=True`: a file
from a stranger can hold wrong numbers but cannot run code.
"""

import contextlib
import io
import math
import pickle
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field, InstanceOf, JsonValue, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn
from typing_extensions import NotRequired, TypedDict

from src.runtime.cli import RunError, UserError, reason_of
from src.runtime.flag_choices import DatasetName
from src.storage.artifacts import Tracking
from src.storage.files import (
    LOCK,
    digest,
    half_written,
    locked,
    misfit,
    open_regular,
    refuse_strangers,
    replacing,
)

FORMAT = "simclr checkpoint, version 1"
METRICS_LOG = "metrics.jsonl"

_NAME = re.compile(r"simclr_epoch_(\d{4,})(?:_step_(\d+))?\.pt")

Result = TypeVar("Result")


class TrainedOn(TypedDict):
    fingerprint: str
    image_size: PositiveInt
    """Side in pixels."""


class Flags(TypedDict):
    """The flags of the run that later stages need, and those that resuming takes over; the others
    are there as well. Those that need not be in the file have defaults."""

    arch: str
    bn: NotRequired[Literal["frozen", "train"]]
    weights: str
    dataset: DatasetName
    data_dir: str
    cache_dir: str | None

    trained_share: NotRequired[PositiveFloat]

    # `ViewSettings`
    view_size: NotRequired[NonNegativeInt]
    crop_min: NotRequired[PositiveFloat]
    flip: NotRequired[float]
    jitter: NotRequired[float]
    gray: NotRequired[float]
    blur: NotRequired[float]
    rotation: NotRequired[float]
    shear: NotRequired[float]
    shift: NotRequired[float]
    zoom: NotRequired[float]

    # of `CHOSEN` in `training/flags.py`
    image_size: NotRequired[PositiveInt]
    batch_size: NotRequired[PositiveInt]
    epochs: NotRequired[NonNegativeInt]
    warmup_epochs: NotRequired[Annotated[float, Field(ge=0)]]
    checkpoint_every: NotRequired[PositiveInt]
    log_every: NotRequired[PositiveInt]
    temperature: NotRequired[PositiveFloat]
    backbone_rate: NotRequired[PositiveFloat]


class SavedState(TypedDict):
    """What every stage needs of a checkpoint."""

    model: dict[str, InstanceOf[torch.Tensor]]
    initial: NotRequired[dict[str, InstanceOf[torch.Tensor]]]
    """The backbone's weights before training, if later stages use an average with them."""
    epoch: NonNegativeInt
    config: Flags
    dataset: TrainedOn
    tracking: Tracking


class OptimizerState(TypedDict):
    state: dict[int, dict[str, InstanceOf[torch.Tensor]]]
    """The moments of every parameter, by its number."""


class ScalerState(TypedDict):
    scale: PositiveFloat
    growth_factor: PositiveFloat
    backoff_factor: PositiveFloat
    growth_interval: PositiveInt
    _growth_tracker: NonNegativeInt


class ResumableState(SavedState):
    """What resuming needs of a checkpoint."""

    step: NonNegativeInt
    loss: float | None
    optimizer: OptimizerState
    scaler: ScalerState
    totals: Annotated[list[float], Field(min_length=5, max_length=5)]


class BadCheckpoint(UserError):
    """The file is not an intact checkpoint of this project."""


class OtherCheckpoint(BadCheckpoint):
    """The file is not the one that was recorded."""


def file_name(epoch: int, step: int | None = None) -> str:
    """The checkpoint after `epoch` whole epochs, or `step` steps into the next one."""
    return f"simclr_epoch_{epoch:04d}" + (f"_step_{step:07d}" if step else "") + ".pt"


def listed(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, ordered by the epoch and step in their names."""
    named = {p: m for p in directory.glob("simclr_epoch_*.pt") if (m := _NAME.fullmatch(p.name))}
    return sorted(named, key=lambda file: (int(named[file][1]), int(named[file][2] or 0)))


def save(file: Path, state: dict[str, Any]) -> None:
    """Write `state` to `file`, whole or not at all.

    Raises:
        RunError: a number is not finite, or the file cannot be written; `file` is unchanged.
    """
    try:
        with replacing(file) as temporary:
            torch.save({"format": FORMAT, **state}, temporary)
            _intact(temporary, temporary.read_bytes())
    except (OSError, RuntimeError, BadCheckpoint) as error:
        raise RunError(
            f"{file} could not be written ({reason_of(error)}); earlier checkpoints are intact"
        ) from None


def load(file: Path, recorded: str | None = None) -> dict[str, Any]:
    """The state that `save` wrote, on the CPU, and the `digest` of the file.

    Args:
        recorded: the digest of an earlier `load`, which proves that the file is still intact.

    Raises:
        OtherCheckpoint: the file has another digest than `recorded`.
        BadCheckpoint: the file is missing, truncated, damaged, of another kind, or holds more
            than tensors and built-in types, or other content than `SavedState` says.
    """
    try:
        with open_regular(file) as stream:
            content = stream.read()
    except PermissionError:
        raise
    except FileNotFoundError:
        there = ", ".join(other.name for other in listed(file.parent)) or "no checkpoint"
        raise BadCheckpoint(f"{file} is missing: {file.parent} holds {there}") from None
    except OSError as error:
        raise BadCheckpoint(f"{file} cannot be read ({error.strerror})") from None
    found = digest(io.BytesIO(content))
    if recorded and found != recorded:
        raise OtherCheckpoint(f"{file} is another checkpoint, or damaged")
    state = _intact(file, content, is_known=recorded is not None)
    if problem := misfit(state, SavedState) or misfit(state["config"], dict[str, JsonValue]):
        raise BadCheckpoint(f"{file} is damaged, or of another version: {problem}")
    return state | {"digest": found}


def _intact(file: Path, content: bytes, is_known: bool = False) -> dict[str, Any]:
    """The state in `content`, that of `file`, which an earlier call found intact if `is_known`."""
    if not content:
        raise BadCheckpoint(f"{file} is empty")
    if not is_known:
        # torch.load ignores the archive's checksums: only they reveal a flipped bit in a tensor.
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if is_larger(archive):
                    raise zipfile.BadZipFile("it claims to hold more than its bytes")
                damaged = archive.testzip()
        except Exception as error:  # of many kinds, as for torch.load
            raise BadCheckpoint(f"{file} is damaged or truncated ({reason_of(error)})") from None
        if damaged is not None:
            raise BadCheckpoint(f"{file} is damaged: the checksum of {damaged} does not match")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not is_known and tree_size(state, torch.Tensor.numel) > len(content):
            raise ValueError("it holds itself, or a part again and again")
        not_finite = None if is_known else _not_finite(state)
    except pickle.UnpicklingError:
        raise BadCheckpoint(
            f"{file} holds more than tensors and built-in types: refused, as it could run code"
        ) from None
    except Exception as error:  # of many kinds: what the file holds decides what is called
        raise BadCheckpoint(f"{file} is damaged: {reason_of(error)}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise BadCheckpoint(f"{file} is not a checkpoint of this project")
    if not_finite is not None:
        raise BadCheckpoint(f"{file} holds numbers that are not finite: checkpoint{not_finite}")
    return state


def load_into(model: nn.Module, weights: dict[str, torch.Tensor], file: Path) -> None:
    """Load the weights that `file` holds; raises BadCheckpoint if they are another network's."""
    for name, own in model.state_dict().items():
        if name in weights and weights[name].dtype != own.dtype:
            raise BadCheckpoint(f"{file} holds another network: {name} is {weights[name].dtype}")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise BadCheckpoint(f"{file} holds another network: {reason}") from None


class Newest:
    """The newest checkpoint in a directory that can be used. No file is read twice.

    Each one that cannot be used is named on standard error and skipped.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._files = directory, listed(directory)
        self._count, self._state = len(self._files), None

    def use(self, use: Callable[[Path, dict[str, Any]], Result]) -> Result | None:
        """What `use` makes of the newest one that is intact and that it does not refuse with
        BadCheckpoint; None if the directory holds no checkpoint at all.

        Raises:
            UserError: no checkpoint can be used.
        """
        while self._files:
            file = self._files[-1]
            try:
                state, self._state = self._state or load(file), None
                return use(file, state)
            except BadCheckpoint as error:
                print(f"warning: skipped: {error}", file=sys.stderr)
                self._files.pop()
        if self._count:
            raise UserError(
                f"none of the {self._count} checkpoints in {self._directory} can be used: put an "
                "intact one there, or start over: the command that trained them, with --fresh"
            )
        return None

    def flags(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest intact one, kept in memory for `use`, and the flags in it."""

        def keep(file: Path, state: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
            self._state = state
            return file, state["config"]

        return self.use(keep)


def prune(directory: Path, current: Path, keep: int | None) -> None:
    """Delete what `current`, just saved, supersedes: earlier checkpoints from the middle of an
    epoch, and all but the last `keep` of the others. Epoch 0, before training, stays."""
    others = [p for p in listed(directory) if p != current]
    mid_epoch = [p for p in others if "_step_" in p.name]
    whole_epochs = [p for p in others if p not in mid_epoch and p.name != file_name(0)]
    surplus = [] if keep is None else whole_epochs[: max(0, len(whole_epochs) + 1 - keep)]
    for file in mid_epoch + surplus:
        file.unlink(missing_ok=True)


def set_aside(directory: Path) -> Path | None:
    """Move an earlier run's files into a new folder and return it; None if there are none."""
    files = listed(directory) + [p for p in [directory / METRICS_LOG] if p.exists()]
    if not files:
        return None
    aside = directory / time.strftime("before-%Y%m%d-%H%M%S")
    aside.mkdir()
    for file in files:
        file.replace(aside / file.name)
    return aside


@contextlib.contextmanager
def training_in(directory: Path) -> Iterator[None]:
    """Lock the directory for one training run, and delete half-written files of a killed one."""
    directory.mkdir(parents=True, exist_ok=True)
    if not listed(directory):  # otherwise the log is of an earlier run
        refuse_strangers(directory, [METRICS_LOG], "--checkpoint-dir")
    with locked(
        directory / LOCK,
        f"another training run is using {directory}: wait for it, or give this one a --name",
    ):
        for names in ("simclr_epoch_*.pt", METRICS_LOG):
            for file in half_written(directory, names):
                file.unlink()
        yield


def is_larger(archive: zipfile.ZipFile) -> bool:
    """Whether it claims to hold more bytes than it has, as one does that is compressed."""
    assert archive.fp
    return sum(info.file_size for info in archive.infolist()) > archive.fp.seek(0, io.SEEK_END)


def tree_size(
    content: Any, size: Callable[[torch.Tensor], int], known: dict[int, float] | None = None
) -> float:
    """The number of values in `content`, each counted as often as a walk through it meets it, and
    of the letters of strings; infinite if it holds itself. What is not more than the bytes of its
    file can be walked through.

    Args:
        size: what a tensor counts for.
        known: the sizes of containers that were counted before.
    """
    if isinstance(content, torch.Tensor):
        return 1 + size(content)
    if isinstance(content, str | bytes):
        return 1 + len(content)
    if not isinstance(content, dict | list | tuple | set | frozenset):
        return 1
    known = {} if known is None else known
    if id(content) not in known:
        known[id(content)] = math.inf
        parts = [*content, *content.values()] if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(tree_size(part, size, known) for part in parts)
    return known[id(content)]


def _not_finite(value: Any) -> str | None:
    """Where in `value` the first NaN or infinite number is, such as `.model.fc.bias`."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, part in value.items():
            if (place := _not_finite(part)) is not None:
                return f".{key}{place}"
        return None
    is_number = isinstance(value, float | torch.Tensor)
    return "" if is_number and not torch.as_tensor(value).isfinite().all() else None
