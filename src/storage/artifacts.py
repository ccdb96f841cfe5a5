"""The contract between the stages: every file in `features/`, written by one stage and checked by
every reader.

Shape letters: N images, n of them, D features, S raw pixels, P principal components, K clusters,
F fine clusters, G groups.

No other module spells one of these file names. A stage records in the manifest what it wrote, with
a digest of every file. Whoever reads a file compares it with that record, so a damaged file, one of
another run, and one that is replaced meanwhile are refused.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from typing_extensions import TypedDict

from src.runtime.cli import RunError, UserError
from src.runtime.commands import command
from src.runtime.flag_choices import DatasetName
from src.storage.experiments import no_results
from src.storage.files import (
    LOCK,
    digest,
    half_written,
    json_digest,
    locked,
    map_array,
    misfit,
    new_array,
    read_json,
    reading,
    refuse_strangers,
    replacing,
    to_json,
    try_writing,
    write_json,
)
from src.storage.scores import VERSION, Scores

CertaintyName = Literal["confidence", "margin"]
SPLITS = ("unlabeled", "train", "test")

EXTRACTION = "src/feature_extraction.py"
IMPORT = "src/import_features.py"
"""Writes the same files as `EXTRACTION`, in its place."""
CLUSTERING = "src/clustering.py"
NAMING = f"{CLUSTERING} --names"
"""Fits the head of new pictures to names.json."""


@dataclass(frozen=True)
class Artifact:
    """A `.npy` file between two stages; `{split}` in its name stands for one of `SPLITS`."""

    file: str
    dtype: type
    shape: str
    """Shape letters, such as "ND"."""
    writer: str
    """The script that writes the file, and its flags."""

    @property
    def stage(self) -> str:
        """The stage that writes the file."""
        return self.writer if self.writer == NAMING else self.writer.split()[0]

    @property
    def command(self) -> str:
        return command(*self.writer.split())

    @property
    def files(self) -> list[str]:
        """The name of the file, or those of all splits."""
        return [*dict.fromkeys(self.file.format(split=split) for split in SPLITS)]


FEATURES = Artifact("{split}_features.npy", np.float32, "ND", EXTRACTION)
UNTRAINED_FEATURES = Artifact(
    "untrained_{split}_features.npy", np.float32, "ND", f"{EXTRACTION} --untrained"
)
LABELS = Artifact("{split}_labels.npy", np.int64, "N", EXTRACTION)
VIEWS = Artifact("{split}_views.npy", np.float32, "2nD", EXTRACTION)
"""Features of two random views of n images of the `default_split`, not of imported ones."""
VIEW_PIXELS = Artifact("{split}_view_pixels.npy", np.float32, "2nS", EXTRACTION)
"""Raw pixels of the same views."""

REDUCED = Artifact("{split}_pca.npy", np.float32, "NP", CLUSTERING)
PCA_MEAN = Artifact("pca_mean.npy", np.float32, "D", CLUSTERING)
PCA_COMPONENTS = Artifact("pca_components.npy", np.float32, "PD", CLUSTERING)
PCA_VARIANCE_RATIO = Artifact("pca_explained_variance_ratio.npy", np.float32, "P", CLUSTERING)
CENTROIDS = Artifact("centroids.npy", np.float32, "KP", CLUSTERING)
ASSIGNMENTS = Artifact("{split}_clusters.npy", np.int64, "N", CLUSTERING)
FINE = Artifact("{split}_fine.npy", np.int64, "N", CLUSTERING)
"""The fine cluster of every image, see `src/clusters/fine.py`."""
FINE_TREE = Artifact("fine_tree.npy", np.float64, "M4", CLUSTERING)
"""The M = F - 1 unions of F fine clusters, as SciPy's `linkage`."""
CERTAINTY = Artifact("{split}_certainty.npy", np.float32, "N", CLUSTERING)
"""Confidence or margin, as `ClusteringRecord.certainty` says."""
DISTANCE = Artifact("{split}_distance.npy", np.float32, "N", CLUSTERING)
"""To the centroid of the own cluster among the principal components."""
UNUSUAL = Artifact("{split}_unusual.npy", np.bool_, "N", CLUSTERING)
HEAD_WEIGHTS = Artifact("head_weights.npy", np.float32, "KP", CLUSTERING)
HEAD_BIAS = Artifact("head_bias.npy", np.float32, "K", CLUSTERING)
CLUSTER_TO_CLASS = Artifact("cluster_to_class.npy", np.int64, "K", CLUSTERING)

GROUP_WEIGHTS = Artifact("group_weights.npy", np.float32, "GP", NAMING)
GROUP_BIAS = Artifact("group_bias.npy", np.float32, "G", NAMING)
GROUP_CERTAINTY = Artifact("{split}_group_certainty.npy", np.float32, "N", NAMING)
"""As `CERTAINTY`, of the group."""

ARTIFACTS = [value for value in [*globals().values()] if isinstance(value, Artifact)]
"""All of the above."""

MANIFEST = "manifest.json"
METRICS = "metrics.json"
FIGURES = "figures"
REPORT = "report.html"
IMAGES = "images.csv"
MODEL = "model.onnx"
NAMES = "names.json"
"""Written by hand or by the page, so no stage records it; `clusters/names.py` checks it."""
PAST_CLUSTERS = "clusters_{clusters_id}.json"
"""Of one of the last clusterings, see `clusters/carry_over.py`."""


class CheckpointRecord(TypedDict):
    file: str
    digest: str
    epoch: int
    config: dict[str, Any]
    """The flags of the training."""


class DatasetRecord(TypedDict):
    name: DatasetName | Literal["features"]
    """`features` are imported ones without pictures."""
    data_dir: str | None
    cache_dir: str | None
    image_size: int | None
    fingerprint: str
    class_names: list[str]
    splits: dict[str, int]
    """Number of images."""


class Tracking(TypedDict):
    group: str
    run_id: str | None


class StageRecord(TypedDict):
    """What every stage records in its part of the manifest."""

    commit: str | None
    versions: dict[str, str]
    files: dict[str, str]
    """Name and digest of every file that the stage wrote."""
    digest: str
    """Of this part."""


class ExtractionRecord(StageRecord):
    id: str
    checkpoint: CheckpointRecord | None
    """None for imported features, whose network is not here."""
    dataset: DatasetRecord
    precision: str
    tracking: Tracking


class ClusteringRecord(StageRecord):
    features: str
    """The extraction's `id`."""
    fit_on: str
    clusters: int
    certainty: CertaintyName
    """What a prediction's certainty is: confidence with labels, otherwise margin."""
    confidence_scale: float
    unusual_distance: float
    """A picture farther from every cluster is unusual, see `src/clusters/head.py`."""
    config: dict[str, Any]
    """The flags of the clustering."""


class NamingRecord(StageRecord):
    clusters: str
    """`Manifest.clusters_id`."""
    names: str
    """Digest of what names.json says."""
    groups: list[str]
    """The names of the G groups of the head."""
    scale: float
    """The confidence scale of its scores."""


Record = TypeVar("Record", bound=StageRecord)


def path(artifact: Artifact, directory: Path, split: str = "") -> Path:
    return directory / artifact.file.format(split=split)


def old_names(directory: Path, clusters_id: str) -> Path:
    """Where the names of other clusters are kept."""
    known = clusters_id if re.fullmatch("[0-9a-f]{16}", clusters_id) else json_digest(clusters_id)
    return directory / f"names_{known}.json"


def past_clusters(directory: Path, clusters_id: str) -> Path:
    return directory / PAST_CLUSTERS.format(clusters_id=clusters_id)


def default_split(sizes: dict[str, int]) -> str:
    """The split that clusters are fitted on unless a flag names another: train, else the largest,
    by the number of images of each."""
    return "train" if "train" in sizes else max(sizes, key=lambda split: sizes[split])


# --- reading ----------------------------------------------------------------------------------


class Manifest:
    """What the finished stages in a directory recorded, read once, and the files they wrote.

    Raises:
        UserError: in the constructor and on access: a stage did not finish, or a file is missing,
            damaged, or not the one that was recorded.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        file = directory / MANIFEST
        if not os.path.lexists(file):
            raise UserError(no_results(directory, "--feature-dir"))
        self._parts = read_json(file, f"run {command(EXTRACTION)} again")

    @cached_property
    def extraction(self) -> ExtractionRecord:
        return self._part(EXTRACTION, ExtractionRecord)

    @cached_property
    def clustering(self) -> ClusteringRecord:
        part = self._part(CLUSTERING, ClusteringRecord)
        if part["features"] != self.extraction["id"]:
            raise UserError(
                f"the clusters in {self.directory} belong to other features: run "
                f"{command(CLUSTERING)} again"
            )
        return part

    @property
    def naming(self) -> NamingRecord | None:
        """None if no head was fitted to names of the present clusters."""
        if NAMING not in self._parts:
            return None
        part = self._part(NAMING, NamingRecord)
        return part if part["clusters"] == self.clusters_id else None

    @property
    def clusters_id(self) -> str:
        """Changes with the images, the clusters, fine ones too, their numbers and their classes."""
        files = self.clustering["files"]
        digests = [files.get(x.file) for x in (HEAD_WEIGHTS, HEAD_BIAS, CLUSTER_TO_CLASS)]
        if any(name in files for name in FINE.files):  # not of earlier versions
            digests += [self.extraction["id"], *map(files.get, FINE.files)]
        return json_digest([*digests, self.extraction["dataset"]["class_names"]])

    def load(self, artifact: Artifact, split: str = "") -> np.ndarray:
        """The array, memory-mapped and read-only."""
        file = path(artifact, self.directory, split)
        if not self.has(artifact, split):
            raise UserError(f"{file} is missing: run {artifact.command} first")
        is_imported = artifact.stage == EXTRACTION and self.extraction["checkpoint"] is None
        remedy = command(IMPORT) if is_imported else artifact.command
        with self._checked(file, artifact.stage, remedy) as stream:
            return map_array(stream, "r")

    def has(self, artifact: Artifact, split: str = "") -> bool:
        """Whether the stage wrote it, as with labels that not every split has."""
        return path(artifact, self.directory, split).name in self._files(artifact.stage)

    def metrics(self) -> Scores:
        """The content of metrics.json."""
        file = self.directory / METRICS
        with self._checked(file, CLUSTERING, command(CLUSTERING)) as stream:
            scores = json.loads(stream.read())
        if scores.get("version") != VERSION:
            raise UserError(
                f"{file} is of another version of this program: run {command(CLUSTERING)} to "
                "write it again"
            )
        return scores

    def _files(self, stage: str) -> dict[str, str]:
        if stage == NAMING:
            return self.naming["files"] if self.naming else {}
        return (self.extraction if stage == EXTRACTION else self.clustering)["files"]

    @contextlib.contextmanager
    def _checked(self, file: Path, stage: str, remedy: str) -> Iterator[Any]:
        """`file`, open at its start, once its digest is that which `stage` recorded."""
        recorded = self._files(stage).get(file.name)
        with reading(file, f"run {remedy} to write it again") as stream:
            if digest(stream) != recorded:
                raise UserError(
                    f"{file} does not match its recorded digest (damaged, from another run, or "
                    f"replaced while being read): try again, or run {remedy}"
                )
            stream.seek(0)
            yield stream

    def _part(self, stage: str, description: type[Record]) -> Record:
        file, remedy = self.directory / MANIFEST, f"run {command(*stage.split())} again"
        if stage not in self._parts:
            raise UserError(
                f"{self.directory} has no finished results of {stage}: run "
                f"{command(*stage.split())}"
            )
        part = self._parts[stage]
        if problem := misfit(part, description):
            raise UserError(f"{file} is damaged or from another version ({problem}): {remedy}")
        if part["digest"] != _part_digest(part):
            raise UserError(f"{file} was changed after {stage} wrote it: {remedy}")
        return part


# --- writing ----------------------------------------------------------------------------------


class Stage:
    """Writes the files of one stage, and records them when all are there.

    From its first file on until `record`, the manifest does not know the stage as finished.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.name = directory, name
        self.files: dict[str, str] = {}

    def save(self, artifact: Artifact, array: np.ndarray, split: str = "") -> None:
        """Write `array`, converted to the artifact's dtype."""
        with self.create(artifact, array.shape, split) as out:
            out[...] = array

    @contextlib.contextmanager
    def create(
        self, artifact: Artifact, shape: tuple[int, ...], split: str = ""
    ) -> Iterator[np.ndarray]:
        """A writable array of `shape`, mapped to the file if possible, which takes its final name
        unless the block raises.

        Raises:
            RunError: it holds NaN or infinite numbers.
        """
        assert len(shape) == len(artifact.shape), f"{artifact.file} has the shape {artifact.shape}"
        file = path(artifact, self.directory, split)
        with (
            self._replacing(file) as temporary,
            new_array(temporary, artifact.dtype, shape) as array,
        ):
            yield array
            if not_finite := _count_not_finite(array):
                raise RunError(
                    f"{not_finite:,} of {array.size:,} numbers for {file} are not finite, so it "
                    "was not written: try other weights, or --precision fp32"
                )

    def write_json(self, name: str, content: Any) -> None:
        with self._replacing(self.directory / name) as temporary:
            temporary.write_text(to_json(content), encoding="utf-8")

    def record(self, part: dict[str, Any]) -> None:
        """Finish: record `part`, the files and the code that wrote them, and delete files that an
        earlier run left."""
        from src.storage.provenance import git_commit, versions  # imports torch

        for artifact in ARTIFACTS:
            if artifact.stage == self.name:
                for name in {*artifact.files} - {*self.files}:
                    (self.directory / name).unlink(missing_ok=True)
        written = {"commit": git_commit(), "versions": versions(), "files": self.files}
        record(self.directory, self.name, part | written)

    @contextlib.contextmanager
    def _replacing(self, file: Path) -> Iterator[Path]:
        with replacing(file) as temporary:
            yield temporary
            with temporary.open("rb") as stream:
                written = digest(stream)
            if not self.files:
                record(self.directory, self.name, None)
            self.files[file.name] = written


@contextlib.contextmanager
def writing(directory: Path, stage: str) -> Iterator[Stage]:
    """Write the files of `stage`, the only writer in `directory` for the duration of the block."""
    if stage == EXTRACTION:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(directory / MANIFEST):  # else they are of an earlier run
            refuse_strangers(directory, _names(), "--feature-dir")
    with only_writer(directory):
        yield Stage(directory, stage)


@contextlib.contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Everything that a stage reads and writes in `directory` belongs into such a block. It begins
    by deleting half-written files of killed processes.

    Raises:
        UserError: another process is in such a block, or `directory` does not exist.
    """
    if not directory.is_dir():
        raise UserError(no_results(directory, "--feature-dir"))
    with locked(
        directory / LOCK,
        f"another stage is writing in {directory}: wait for it, or choose another --feature-dir",
    ):
        try_writing(directory / MANIFEST)
        for names in ("*.npy", "*.json", REPORT, IMAGES, MODEL):
            for file in half_written(directory, names):
                file.unlink(missing_ok=True)
        for file in half_written(directory / FIGURES, ""):
            file.unlink(missing_ok=True)
        yield


def record(directory: Path, stage: str, part: dict[str, Any] | None) -> None:
    """Set the part of the manifest that `stage` owns; None removes it while its files change."""
    file = directory / MANIFEST
    try:
        parts = read_json(file, "")
    except UserError:  # missing or damaged: whatever was finished has to run again
        parts = {}
    parts.pop(stage, None)
    if part is not None:
        parts[stage] = part | {"digest": _part_digest(part)}
    write_json(file, parts)


def _names() -> list[str]:
    """Of everything but the manifest that stages write."""
    arrays = [name for artifact in ARTIFACTS for name in artifact.files]
    return [*arrays, METRICS, FIGURES, REPORT, IMAGES, MODEL]


def _part_digest(part: Any) -> str:
    return json_digest(part | {"digest": None})


def _count_not_finite(array: np.ndarray) -> int:
    blocks = (array[i : i + 512] for i in range(0, len(array), 512))  # little memory at a time
    return sum(x.size - np.count_nonzero(np.isfinite(x)) for x in blocks)
