"""Saving a training run so that it survives anything, and finding the newest whole checkpoint.

A checkpoint is written beside its final name, flushed to disk, read back, and only then renamed.
It holds tensors and Python's built-in types only, and is loaded with `weights_only=True`: a file
from a stranger can carry wrong numbers but cannot run code.
"""

import contextlib
import hashlib
import pickle
import re
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
    """The file is not a whole checkpoint of this project."""


def file_name(epoch: int, step: int | None = None) -> str:
    """The checkpoint after `epoch` whole epochs, or `step` steps into the next one."""
    return f"simclr_epoch_{epoch:04d}" + (f"_step_{step:07d}" if step else "") + ".pt"


def listed(directory: Path) -> list[Path]:
    """The checkpoints in `directory` by their names, newest last."""
    found = [(m, p) for p in directory.glob("simclr_epoch_*.pt") if (m := _NAME.fullmatch(p.name))]
    return [p for _, p in sorted(found, key=lambda mp: (int(mp[0][1]), int(mp[0][2] or 0)))]


def save(file: Path, state: dict[str, Any]) -> None:
    """Write `state` to `file`, whole or not at all.

    Raises:
        RunError: a number is not finite, or the file cannot be written; nothing has changed then.
    """
    if bad := _not_finite(state):
        raise RunError(f"{bad} is not finite: no checkpoint was written")
    try:
        with replacing(file) as temporary:
            torch.save({"format": FORMAT, **state}, temporary)
            load(temporary)
    except (OSError, RuntimeError, BadCheckpoint) as error:
        raise RunError(
            f"{file} could not be written ({_reason(error)}); the checkpoints before it are intact"
        ) from None


class Saver:
    """Writes checkpoints in a thread of its own, one after the other: training goes on meanwhile,
    and its tensors may change as soon as `save` returns.

    An error comes out of the next call, of `save` or of `wait`. Used as a context manager, it
    waits at the end, whatever ended the block: what had begun becomes a checkpoint.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def save(self, file: Path, state: dict[str, Any], keep: int | None) -> None:
        """Begin to write `state`, and to `prune` when it is written."""
        self.wait()
        self._writing = self._thread.submit(self._write, file, _copied(state), keep)

    def wait(self) -> None:
        """Until what was given to `save` is on disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    @staticmethod
    def _write(file: Path, state: dict[str, Any], keep: int | None) -> None:
        save(file, state)
        prune(file.parent, file, keep)


def _copied(value: Any) -> Any:
    """The same with tensors of its own, in memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(part) for part in value)
    return value


def load(file: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU.

    Raises:
        BadCheckpoint: the file is missing, truncated, damaged, of another kind, or holds more
            than tensors and built-in types.
    """
    if not file.exists():
        raise BadCheckpoint(f"{file} is missing: run python src/train.py first")
    _check_sums(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise BadCheckpoint(
            f"{file} holds more than tensors and built-in types: refused, loading it could run code"
        ) from None
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise BadCheckpoint(f"{file} is damaged: {_reason(error)}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise BadCheckpoint(f"{file} is not a checkpoint of this project")
    return state


def newest(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint; None where there is no checkpoint at all.

    Those passed over are named on standard error.

    Raises:
        UserError: there are checkpoints, but none can be used.
    """
    candidates = listed(directory)
    for file in reversed(candidates):
        try:
            return file, load(file)
        except BadCheckpoint as error:
            print(f"warning: passed over: {error}", file=sys.stderr)
    if candidates:
        raise UserError(
            f"none of the {len(candidates)} checkpoints in {directory} can be used: put a whole "
            "one there, or start over with python src/train.py --fresh"
        )
    return None


def prune(directory: Path, current: Path, keep: int | None) -> None:
    """After `current` was saved: take away what was written in the middle of an epoch before it,
    and all but the last `keep` of the others. The untrained network, epoch 0, always stays."""
    others = [p for p in listed(directory) if p != current]
    interim = [p for p in others if "_step_" in p.name]
    whole = [p for p in others if p not in interim and p.name != file_name(0)]
    surplus = [] if keep is None else whole[: max(0, len(whole) + 1 - keep)]
    for file in interim + surplus:
        file.unlink(missing_ok=True)


def set_aside(directory: Path) -> Path | None:
    """Move an earlier run's files into a folder of their own; None if there were none."""
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
    """Hold the directory for one trainer, without what a killed one had only half written; the
    system lets go of it when the process dies."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another training run holds {directory}: wait for it, or choose another "
            "--checkpoint-dir"
        ) from None
    try:
        for half in directory.glob(temporary_path(Path("simclr_epoch_*.pt")).name):
            half.unlink()
        yield
    finally:
        lock.release()


def file_digest(file: Path) -> str:
    """SHA-256 of the file, its first 16 hexadecimal digits."""
    sha = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            sha.update(block)
    return sha.hexdigest()[:16]


def _check_sums(file: Path) -> None:
    """A checkpoint is a zip archive with a checksum for every part: a flipped bit shows there,
    and nowhere else (torch.load does not look)."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        size = file.stat().st_size
        reason = "is empty" if size == 0 else f"is damaged or truncated ({_reason(error)})"
        raise BadCheckpoint(f"{file} {reason}") from None
    if damaged is not None:
        raise BadCheckpoint(f"{file} is damaged: the checksum of {damaged} does not match")


def _not_finite(value: Any, name: str = "checkpoint") -> str | None:
    """The name of the first number in `value` that is NaN or infinite."""
    if isinstance(value, torch.Tensor):
        return name if value.is_floating_point() and not value.isfinite().all() else None
    if isinstance(value, float):
        return name if value != value or value in (float("inf"), float("-inf")) else None
    if isinstance(value, dict):
        parts = ((f"{name}.{key}", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        parts = ((f"{name}[{i}]", part) for i, part in enumerate(value))
    else:
        return None
    return next((bad for key, part in parts if (bad := _not_finite(part, key))), None)


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
