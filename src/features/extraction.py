"""Features of every split, from the frozen backbone of the newest checkpoint."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataset.folder import refuse_among
from dataset.load_dataset import Dataset, Split, load_dataset
from src.features.flags import ExtractionConfig
from src.models.encoder import GPU_BATCH, TrainedBackbone, encode, encode_into
from src.models.preprocessing import pixels, raw_pixels
from src.runtime import distributed
from src.runtime.cli import UserError, progress
from src.runtime.device import explaining_memory, select_device, select_precision
from src.storage import artifacts, checkpoint
from src.storage.artifacts import EXTRACTION, FEATURES, LABELS, UNTRAINED_FEATURES, Artifact, Stage
from src.storage.files import json_digest
from src.training.batches import paired_views
from src.training.flags import ViewSettings


def run(config: ExtractionConfig) -> None:
    if config.batch_size is not None and config.batch_size < 1:
        raise UserError("--batch-size must be above 0")
    advice = f"lower --batch-size (now {config.batch_size or GPU_BATCH})"
    with distributed.process_group(), explaining_memory(advice):
        extract_all(config)


def extract_all(config: ExtractionConfig) -> None:
    device = select_device(config.device)
    dtype = select_precision(config.precision, device)
    trained = TrainedBackbone.load(config.checkpoint, config.checkpoint_dir, device)
    networks = {FEATURES: trained}
    file = trained.file.with_name(checkpoint.file_name(0))
    if config.untrained and file == trained.file:
        print(f"note: {file} is epoch 0 itself: its features are not written twice")
    elif config.untrained:
        networks[UNTRAINED_FEATURES] = TrainedBackbone.load(file, config.checkpoint_dir, device)
    data_dir = config.data_dir or Path(trained.config["data_dir"])
    cache_dir = config.cache_dir or trained.cache_dir
    if trained.config["dataset"] == "folder":
        refuse_among("--feature-dir", config.feature_dir, data_dir)
    with distributed.local_main_first():  # decodes for the others
        side = trained.dataset["image_size"]
        dataset = load_dataset(trained.config["dataset"], data_dir, side, cache_dir)
    if dataset.fingerprint != trained.dataset["fingerprint"]:
        print(f"note: {trained.file} was trained on other images than those in {data_dir}")

    is_main = distributed.is_main()
    with artifacts.writing(config.feature_dir, EXTRACTION) if is_main else nullcontext() as stage:
        for artifact, network in networks.items():
            extract(network, dataset.splits, artifact, stage, config, dtype)
        if stage:
            for name, split in dataset.splits.items():
                if split.labels is not None:
                    stage.save(LABELS, split.labels, name)
            part = manifest_part(trained, dataset, data_dir, cache_dir, dtype)
            name = artifacts.default_split(part["dataset"]["splits"])
            x_2nD, pixels_2nS = encode_views(trained, dataset.splits[name].images, dtype)
            stage.save(artifacts.VIEWS, x_2nD, name)
            stage.save(artifacts.VIEW_PIXELS, pixels_2nS, name)
            stage.record(part)


def manifest_part(
    trained: TrainedBackbone,
    dataset: Dataset,
    data_dir: Path,
    cache_dir: Path | None,
    dtype: torch.dtype,
) -> dict[str, Any]:
    part = {
        "checkpoint": {
            "file": str(trained.file),
            "digest": trained.digest,
            "epoch": trained.epoch,
            "config": trained.config,
        },
        "dataset": {
            "name": dataset.name,
            "data_dir": str(data_dir),
            "cache_dir": cache_dir and str(cache_dir),
            "image_size": dataset.image_size,
            "fingerprint": dataset.fingerprint,
            "class_names": list(dataset.class_names),
            "splits": {name: len(split.images) for name, split in dataset.splits.items()},
        },
        "precision": str(dtype).removeprefix("torch."),
        "tracking": trained.tracking,
    }
    identity = [part["checkpoint"]["digest"], part["dataset"], part["precision"]]
    return part | {"id": json_digest(identity)}


def extract(
    trained: TrainedBackbone,
    splits: dict[str, Split],
    artifact: Artifact,
    stage: Stage | None,
    config: ExtractionConfig,
    dtype: torch.dtype,
) -> None:
    """Write the features of every split directly into its file; `stage` is the main process's."""
    for name, split in splits.items():
        shape = (len(split.images), trained.backbone.feature_dim)
        started = time.monotonic()
        with stage.create(artifact, shape, name) if stage else nullcontext() as out:
            bar = progress(total=shape[0], desc=name, unit="image")
            for count in encode_into(
                out, trained.backbone, split.images, dtype, config.batch_size, shared=True
            ):
                bar.update(count)
            bar.close()
        speed = shape[0] / (time.monotonic() - started)
        file = artifacts.path(artifact, config.feature_dir, name)
        print(f"{file}: {shape[0]:,} x {shape[1]:,}, {speed:,.0f} images/s")


def encode_views(
    trained: TrainedBackbone, images_NCSS: np.ndarray, dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Features (2, n, D) and raw pixels (2, n, S), float32, of two random views of n images, drawn
    as in training."""
    device = next(trained.backbone.parameters()).device
    features, raw = [], []
    for x in paired_views(images_NCSS, ViewSettings.of(trained.config), device):
        features.append(encode(trained.backbone, x, dtype).cpu().unflatten(0, (2, -1)))
        raw.append(raw_pixels(pixels(x)).cpu().unflatten(0, (2, -1)))
    return torch.cat(features, 1).numpy(), torch.cat(raw, 1).numpy()
