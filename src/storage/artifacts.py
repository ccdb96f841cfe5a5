"""The contract between the stages: every file in `features/`, its checked load and atomic save.

Shape letters: N images, D features, P principal components, K clusters.

No other module spells one of these file names. A stage that is killed leaves the old file or the
new one under a final name, never half a file.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.runtime.cli import UserError

SPLITS = ("unlabeled", "train", "test")

EXTRACTION = "src/feature_extraction.py"
CLUSTERING = "src/clustering.py"


@dataclass(frozen=True)
class Artifact:
    """A `.npy` file between two stages; `{split}` in its name stands for one of `SPLITS`."""

    file: str
    dtype: type
    shape: str
    """Shape letters, such as "ND"."""
    writer: str
    """The command that writes the file."""


FEATURES = Artifact("{split}_features.npy", np.float32, "ND", EXTRACTION)
UNTRAINED_FEATURES = Artifact(
    "untrained_{split}_features.npy", np.float32, "ND", f"{EXTRACTION} --untrained"
)
LABELS = Artifact("{split}_labels.npy", np.int64, "N", EXTRACTION)

REDUCED = Artifact("{split}_pca.npy", np.float32, "NP", CLUSTERING)
PCA_MEAN = Artifact("pca_mean.npy", np.float32, "D", CLUSTERING)
PCA_COMPONENTS = Artifact("pca_components.npy", np.float32, "PD", CLUSTERING)
PCA_VARIANCE_RATIO = Artifact("pca_explained_variance_ratio.npy", np.float32, "P", CLUSTERING)
CENTROIDS = Artifact("centroids.npy", np.float32, "KP", CLUSTERING)
ASSIGNMENTS = Artifact("{split}_clusters.npy", np.int64, "N", CLUSTERING)
HEAD_WEIGHTS = Artifact("head_weights.npy", np.float32, "KP", CLUSTERING)
HEAD_BIAS = Artifact("head_bias.npy", np.float32, "K", CLUSTERING)
CLUSTER_TO_CLASS = Artifact("cluster_to_class.npy", np.int64, "K", CLUSTERING)

MANIFEST = "manifest.json"
METRICS = "metrics.json"
FIGURES = "figures"
REPORT = "report.html"
MODEL = "model.onnx"


def path(artifact: Artifact, directory: Path, split: str = "") -> Path:
    return directory / artifact.file.format(split=split)


def load(
    artifact: Artifact, directory: Path, split: str = "", rows: int | None = None
) -> np.ndarray:
    """The array, memory-mapped and read-only.

    Args:
        rows: how many it must have; None accepts any number.

    Raises:
        UserError: the file is missing, damaged, of another dtype, number of dimensions or of
            rows, or holds numbers that are not finite; names the command that writes it.
    """
    file = path(artifact, directory, split)
    remedy = f"run python {artifact.writer} to write it again"
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: run python {artifact.writer} first") from None
    except PermissionError:
        raise
    except (ValueError, EOFError, OSError) as error:
        reason = "not an array of numbers" if "pickle" in str(error) else str(error)
        raise UserError(f"{file} is damaged ({reason}): {remedy}") from None
    if array.dtype != artifact.dtype or array.ndim != len(artifact.shape):
        raise UserError(
            f"{file} holds {array.dtype} of shape {array.shape}, expected "
            f"{np.dtype(artifact.dtype)} ({', '.join(artifact.shape)}): {remedy}"
        )
    if rows not in (None, len(array)):
        raise UserError(f"{file} has {len(array):,} rows for {rows:,} images: {remedy}")
    blocks = (array[i : i + 8192] for i in range(0, len(array), 8192))  # little memory at a time
    if not_finite := sum(int(x.size - np.isfinite(x).sum()) for x in blocks):
        raise UserError(f"{file} holds {not_finite} numbers that are NaN or infinite: {remedy}")
    return array


def save(artifact: Artifact, directory: Path, array: np.ndarray, split: str = "") -> None:
    """Write `array`, converted to the artifact's dtype."""
    with create(artifact, directory, array.shape, split) as out:
        out[...] = array


@contextlib.contextmanager
def create(
    artifact: Artifact, directory: Path, shape: tuple[int, ...], split: str = ""
) -> Iterator[np.ndarray]:
    """A writable memory map of `shape`; it takes its final name unless the block raises."""
    assert len(shape) == len(artifact.shape), f"{artifact.file} has the shape {artifact.shape}"
    with replacing(path(artifact, directory, split)) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=artifact.dtype, shape=shape)
        # Writing to a map on a full disk kills the process with SIGBUS: reserve the blocks first.
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with temporary.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        yield array
        array.flush()


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary path next to `file`, flushed to disk and renamed to `file` after the block.

    If the block raises, the temporary file is removed and `file` stays. A symbolic link stays a
    link, and its target is replaced.
    """
    file = file.resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(file)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(file)
        sync(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(file: Path) -> Path:
    """Where `file` is written first; a killed process leaves it there."""
    return file.with_name(f".{file.name}.tmp")


def sync(file: Path) -> None:
    """Flush a file, or a directory's entries, to disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_space(folder: Path, needed: int, what: str, flag: str) -> None:
    """Raises UserError if `folder` has no room for `needed` bytes of `what`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{what} needs {needed / 1e9:.1f} GB more in {folder}, which has {free / 1e9:.1f} GB "
            f"free: make room, or name another directory with {flag}"
        )


def write_json(file: Path, content: Any) -> None:
    """Write `content` to `file`; raises ValueError for NaN, which JSON does not have."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(file: Path, writer: str) -> dict[str, Any]:
    """The object in `file`; raises UserError naming `writer` where it is missing or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing: run python {writer} first") from None
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): run python {writer} again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} does not hold a JSON object: run python {writer} again")
    return content


def json_digest(content: Any) -> str:
    """The first 16 hex digits of the SHA-256 of `content`, any JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def record(directory: Path, writer: str, part: dict[str, Any] | None) -> None:
    """Set the part of the manifest that `writer` owns; None removes it while its files change."""
    file = directory / MANIFEST
    manifest = read_json(file, EXTRACTION) if file.exists() else {}
    manifest.pop(writer, None)
    write_json(file, manifest | ({writer: part} if part is not None else {}))


def recorded(directory: Path, writer: str) -> dict[str, Any]:
    """The part of the manifest that `writer` recorded.

    Raises:
        UserError: `writer` did not finish, or an earlier stage ran again after it.
    """
    manifest = read_json(directory / MANIFEST, EXTRACTION)
    if writer not in manifest:
        raise UserError(f"{directory} holds no finished results of {writer}: run python {writer}")
    part = manifest[writer]
    if writer == CLUSTERING and part["features"] != recorded(directory, EXTRACTION)["id"]:
        raise UserError(
            f"the clusters in {directory} belong to other features: run python {CLUSTERING} again"
        )
    return part
