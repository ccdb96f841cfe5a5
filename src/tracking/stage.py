"""The Weights & Biases run of a stage after the extraction: one group with the training."""

import dataclasses
from pathlib import Path
from typing import Any

from src.storage.provenance import git_commit
from src.tracking.tracker import Tracker
from src.tracking.wandb_run import WandbMode


def stage_tracker(
    mode: WandbMode, directory: Path, job_type: str, config: Any, extraction: dict[str, Any]
) -> Tracker:
    """A run that says which images, checkpoint and features it is about.

    Args:
        mode, directory, job_type: see `Tracker`.
        config: the flags, a dataclass.
        extraction: what the extraction recorded of itself.
    """
    return Tracker(
        mode,
        directory,
        group=extraction["tracking"]["group"],
        job_type=job_type,
        config={
            **dataclasses.asdict(config),
            "commit": git_commit(),
            "dataset_fingerprint": extraction["dataset"]["fingerprint"],
            "checkpoint_digest": extraction["checkpoint"]["digest"],
            "features_id": extraction["id"],
        },
    )
