"""Clusters of new pictures, from the backbone, the PCA and the clusters of one run.

Shape letters: B images in a batch, N images, S pixels, D features, P principal components,
K clusters.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dataset.decoding import decode
from dataset.pictures import BadPicture
from src.clusters.groups import cluster_names, load_head, load_names
from src.clusters.head import ClusterHead
from src.models.backbone import Backbone
from src.models.encoder import TrainedBackbone, encode
from src.runtime.cli import UserError, printable
from src.runtime.commands import command
from src.runtime.device import PRECISIONS, is_fast, select_device, select_precision
from src.runtime.flag_choices import DeviceName, PrecisionName
from src.storage.artifacts import (
    CLUSTER_TO_CLASS,
    CLUSTERING,
    EXTRACTION,
    CertaintyName,
    CheckpointRecord,
    ExtractionRecord,
    Manifest,
)
from src.storage.checkpoint import OtherCheckpoint


class Predictions(NamedTuple):
    """Clusters of N pictures."""

    clusters: np.ndarray
    """int64 (N,), the highest score of the linear head."""
    certainty: np.ndarray
    """float32 (N,), the `Predictor.certainty_name`; see `src/clusters/confidence.py`."""
    distances: np.ndarray
    """float32 (N, K), Euclidean, to every centroid among the principal components."""
    unusual: np.ndarray
    """bool (N,), whether it is far from every cluster, see `src/clusters/head.py`."""
    groups: np.ndarray
    """int64 (N,), an index into `Predictor.group_names`."""
    probabilities: np.ndarray
    """float32 (N, K), of the clusters; see `src/clusters/confidence.py`."""


@dataclass(frozen=True)
class Predictor:
    backbone: Backbone | None
    """None if only features are predicted."""
    head: ClusterHead
    """Always on the CPU, so that clusters do not depend on the device."""
    dtype: torch.dtype
    image_size: int
    """Side S in pixels; 0 without a backbone."""
    class_names: tuple[str, ...]
    cluster_to_class: np.ndarray
    """int64 (K,), an index into `class_names`; -1 where no class was matched."""
    cluster_names: list[str]
    """Of the K clusters, see `src/clusters/groups.py`."""
    group_names: list[str]
    manifest: Manifest

    @property
    def extraction(self) -> ExtractionRecord:
        """The extraction's part of the manifest: checkpoint, dataset, precision."""
        return self.manifest.extraction

    @property
    def certainty_name(self) -> CertaintyName:
        """What `Predictions.certainty` is: "confidence" with labels, otherwise "margin"."""
        return self.head.certainty_name

    @classmethod
    def load(
        cls,
        feature_dir: str | Path = "features",
        checkpoint_file: str | Path | None = None,
        device: DeviceName = "auto",
        precision: PrecisionName = "auto",
        features_only: bool = False,
    ) -> "Predictor":
        """From the files of the clustering stage and the checkpoint they were made with.

        Args:
            checkpoint_file: that checkpoint, if it was moved since the extraction.
            precision: of the network; `auto` is that of the extraction, unless it is slow on this
                device, which a note says.
            features_only: load no network; `predict_features` is all that works then.

        Raises:
            UserError: a file is missing or damaged, or they do not belong together.
        """
        directory = Path(feature_dir)
        manifest = Manifest(directory)
        extraction = manifest.extraction
        chosen, trained = select_device(device), None
        if not features_only:
            trained = _load_backbone(directory, checkpoint_file, extraction["checkpoint"], chosen)
        given = load_names(manifest, notes := [])
        recorded: torch.dtype = getattr(torch, extraction["precision"])
        dtype = select_precision(precision, chosen)
        if precision == "auto" and is_fast(recorded, chosen):
            dtype = recorded
        elif precision == "auto" and trained:
            notes.append(
                f"the features were extracted in {PRECISIONS[recorded]}, which is slow on this "
                f"device: predicting in {PRECISIONS[dtype]}, which moves few pictures to other "
                "clusters (0 of 2,100 in a test; certainties differ by up to 0.03); --precision "
                f"{PRECISIONS[recorded]} is exact"
            )
        head, group_names = load_head(manifest, given, notes)
        for note in notes:
            print(f"note: {printable(note)}", file=sys.stderr)
        return cls(
            trained and trained.backbone,
            head,
            dtype,
            trained.dataset["image_size"] if trained else 0,
            tuple(extraction["dataset"]["class_names"]),
            np.array(manifest.load(CLUSTER_TO_CLASS)),
            cluster_names(manifest, given),
            group_names,
            manifest,
        )

    def predict(
        self, pictures: np.ndarray | Sequence[str | Path], batch_size: int = 64
    ) -> Predictions:
        """Predict pictures, in their order.

        Args:
            pictures: paths of pictures of any size, or uint8 images (N, 3, S, S), red, green, blue.

        Raises:
            BadPicture: a file cannot be decoded; the message has its path and the reason.
            ValueError: the array has another dtype or shape.
        """
        if isinstance(pictures, np.ndarray):
            side = self.image_size
            if pictures.dtype != np.uint8 or pictures.shape[1:] != (3, side, side):
                raise ValueError(
                    f"images are {pictures.dtype} of shape {pictures.shape}, expected uint8 of "
                    f"shape (N, 3, {side}, {side})"
                )
            batches = (pictures[i : i + batch_size] for i in range(0, len(pictures), batch_size))
        else:
            batches = _decoded(pictures, self.image_size, batch_size)
        empty = np.empty((0, len(self.head.centroids)), np.float32)
        # For no pictures at all:
        none = empty.argmin(1)
        parts = [Predictions(none, empty.max(1), empty, none > 0, none, empty)]
        parts += [self.predict_features(self.features(batch)) for batch in batches]
        return Predictions(*map(np.concatenate, zip(*parts, strict=True)))

    @torch.inference_mode()
    def features(self, images_BCSS: np.ndarray) -> np.ndarray:
        """float32 (B, D), of images that fit on the device together."""
        assert self.backbone is not None
        device = next(self.backbone.parameters()).device
        images = torch.from_numpy(np.ascontiguousarray(images_BCSS)).to(device)
        return encode(self.backbone, images, self.dtype).cpu().numpy()

    @torch.inference_mode()
    def predict_features(self, features_BD: np.ndarray) -> Predictions:
        """`predict` from float32 features (B, D) of the network behind the clusters."""
        parts = torch.from_numpy(features_BD).split(self.head.batch)
        columns = zip(*(self.head(x) for x in parts), strict=True)
        return Predictions(*(torch.cat(column).numpy() for column in columns))

    def class_of(self, cluster: int) -> str | None:
        """The class that was matched to a cluster; None if none was."""
        class_index = self.cluster_to_class[cluster]
        return self.class_names[class_index] if class_index >= 0 else None


def _decoded(paths: Sequence[str | Path], side: int, batch_size: int) -> Iterator[np.ndarray]:
    decoded = decode(map(Path, paths), side, ahead=2 * batch_size)
    while batch := list(islice(decoded, batch_size)):
        images = []
        for path, picture in batch:
            if isinstance(picture, BadPicture):
                raise BadPicture(f"{path}: {picture}")
            images.append(picture)
        yield np.stack(images)


def _load_backbone(
    directory: Path,
    moved_to: str | Path | None,
    recorded: CheckpointRecord | None,
    device: torch.device,
) -> TrainedBackbone:
    """The backbone that made the features in `directory`; raises UserError for any other."""
    if recorded is None:
        raise UserError(
            f"the features in {directory} were imported, and the network that made them is not "
            "here: give its features of new pictures, "
            + command("src/inference.py", "--features", "FILE")
        )
    file = Path(moved_to or recorded["file"])
    if not file.is_file():
        raise UserError(
            f"{file} is missing: point --checkpoint at the checkpoint that the features in "
            f"{directory} were made with, or run {command(EXTRACTION)} and "
            f"{command(CLUSTERING)} again"
        )
    try:
        return TrainedBackbone.load(file, file.parent, device, recorded["digest"])
    except OtherCheckpoint:
        raise UserError(
            f"{file} is not the checkpoint that the features in {directory} were made with "
            f"({recorded['file']}): run {command(EXTRACTION, '--checkpoint', file)} and "
            f"{command(CLUSTERING)} again, or point --checkpoint at the right one"
        ) from None
