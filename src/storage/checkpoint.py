"""Checkpoints: saved so that no crash can damage them, and loaded without running their code.

A checkpoint is written under a temporary name, read back, flushed to disk, and only then renamed.
It holds tensors and Python's built-in types only, and is loaded with `weights_only=True`: a file
from a stranger can hold wrong numbers but cannot run code.
"""

import contextlib
import hashlib
import pickle
import re
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from src.runtime.cli import RunError, UserError
from src.storage.artifacts import replacing, temporary_path

FORMAT = "simclr checkpoint, version 1"
METRICS_LOG = "metrics.jsonl"

_NAME = re.compile(r"simclr_epoch_(\d{4,})(?:_step_(\d+))?\.pt")


class BadCheckpoint(UserError):
    """The file is not an intact checkpoint of this project."""


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
    if bad := _not_finite(state):
        raise RunError(f"{bad} is not finite: no checkpoint was written")
    try:
        with replacing(file) as temporary:
            torch.save({"format": FORMAT, **state}, temporary)
            load(temporary)
    except (OSError, RuntimeError, BadCheckpoint) as error:
        raise RunError(
            f"{file} could not be written ({_reason(error)}); earlier checkpoints are intact"
        ) from None


def load(file: Path) -> dict[str, Any]:
    """The state that `save` wrote, on the CPU.

    Raises:
        BadCheckpoint: the file is missing, truncated, damaged, of another kind, or holds more
            than tensors and built-in types.
    """
    if not file.exists():
        raise BadCheckpoint(f"{file} is missing: run python src/train.py first")
    try:  # torch.load ignores the archive's checksums: only they reveal a flipped bit in a tensor
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        size = file.stat().st_size
        reason = "is empty" if size == 0 else f"is damaged or truncated ({_reason(error)})"
        raise BadCheckpoint(f"{file} {reason}") from None
    if damaged is not None:
        raise BadCheckpoint(f"{file} is damaged: the checksum of {damaged} does not match")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise BadCheckpoint(
            f"{file} holds more than tensors and built-in types: refused, as it could run code"
        ) from None
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise BadCheckpoint(f"{file} is damaged: {_reason(error)}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise BadCheckpoint(f"{file} is not a checkpoint of this project")
    return state


def newest(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest intact checkpoint; None if the directory holds no checkpoint at all.

    Each damaged one is named on standard error and skipped.

    Raises:
        UserError: all checkpoints are damaged.
    """
    files = listed(directory)
    for file in reversed(files):
        try:
            return file, load(file)
        except BadCheckpoint as error:
            print(f"warning: skipped: {error}", file=sys.stderr)
    if files:
        raise UserError(
            f"none of the {len(files)} checkpoints in {directory} can be used: put an intact one "
            "there, or start over with python src/train.py --fresh"
        )
    return None


def prune(directory: Path, current: Path, keep: int | None) -> None:
    """Delete what `current`, just saved, supersedes: earlier checkpoints from the middle of an
    epoch, and all but the last `keep` of the others. The untrained network, epoch 0, stays."""
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
def locked(directory: Path) -> Iterator[None]:
    """Lock the directory for one training run, and delete half-written files of a killed one. The
    operating system releases the lock when the process dies."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(directory / ".lock").acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another training run is using {directory}: wait for it, or choose another "
            "--checkpoint-dir"
        ) from None
    with lock:
        for half_written in directory.glob(temporary_path(Path("simclr_epoch_*.pt")).name):
            half_written.unlink()
        yield


def file_digest(file: Path) -> str:
    """The first 16 hexadecimal digits of the file's SHA-256."""
    sha = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            sha.update(block)
    return sha.hexdigest()[:16]


def _not_finite(value: Any, name: str = "checkpoint") -> str | None:
    """Where in `value` the first NaN or infinite number is, such as `checkpoint.model.fc.bias`."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        parts = (_not_finite(part, f"{name}.{key}") for key, part in value.items())
        return next(filter(None, parts), None)
    is_number = isinstance(value, float | torch.Tensor)
    return name if is_number and not torch.as_tensor(value).isfinite().all() else None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
