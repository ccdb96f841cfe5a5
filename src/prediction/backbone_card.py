"""The card of an exported backbone: what those need to know who get the file alone."""

import shlex
from pathlib import Path

from src.clusters.summary import probe_line
from src.clusters.trust import describe
from src.evaluation.tables import summary_table
from src.models.encoder import TrainedBackbone
from src.models.pretrained import PRETRAINED
from src.runtime.cli import UserError
from src.storage import checkpoint
from src.storage.artifacts import Manifest

RECIPE = (
    *("dataset", "train_on", "image_size", "arch", "bn", "weights", "temperature", "epochs"),
    *("batch_size", "accumulate", "learning_rate", "weight_decay", "warmup_epochs", "clip_norm"),
    *("precision", "seed", "crop_min", "flip", "jitter", "gray", "blur"),
    *("rotation", "shear", "shift", "zoom", "view_size", "backbone_rate", "trained_share"),
)
"""The flags of a run that change what it computes."""

PICTURES = {
    "stl10": "STL-10 (Coates et al. 2011)",
    "digits": "scikit-learn's handwritten digits",
    "folder": "from a folder",
}

RIGHTS = {
    "stl10": "STL-10's pictures come from ImageNet, whose terms allow non-commercial research only",
    "digits": "the digits are from the UCI repository (CC BY 4.0)",
    "folder": "the owners of the pictures may have a say",
}


def backbone_card(file: Path, trained: TrainedBackbone, feature_dir: Path) -> str:
    """Markdown without a path of this machine.

    Args:
        file: of the exported backbone.
        feature_dir: where the scores are, if any.
    """
    config, saved = trained.config, checkpoint.load(trained.file, trained.digest)
    data, arch, side = config["dataset"], config["arch"], trained.dataset["image_size"]
    torch = saved.get("versions", {}).get("torch", "unknown")
    return f"""\
# {arch}, trained with SimCLR

`{file.name}` turns pictures of {side} px into {trained.backbone.feature_dim:,} features: {arch} as
in torchvision and timm, without the classifier, for evaluation mode. Input: RGB in [0, 1],
normalized with mean {trained.backbone.mean} and standard deviation {trained.backbone.std}.

## Data

Pictures: {PICTURES[data]}, fingerprint {trained.dataset["fingerprint"]}.
{_origin(config["weights"])}

## Recipe

Epoch {trained.epoch} of:

```
python src/train.py {" ".join(_flags(config))}
```

Commit {saved.get("commit") or "unknown"} ("+" marks local changes), PyTorch {torch}, checkpoint
digest {trained.digest}.

## Scores

{_scores(trained, feature_dir)}

## License

The code that trained it is under the MIT license. Whoever publishes the weights chooses theirs;
{RIGHTS[data]}.

## Limits

- Learned from the pictures above: features of other kinds of pictures, or of other sizes than
  {side} px, may be far worse.
- Classes that differ in details only are not separated.
- What the pictures show too often or too rarely shapes the features; no test for bias was made.
"""


def _origin(weights: str) -> str:
    if weights == "none":
        return "No label was used."
    learned, known = "which may have been learned with labels", PRETRAINED.get(weights)
    if known:
        learned = f"learned {known.learned}, {known.license}, {known.source}"
    name = Path(weights).name
    return f"Training began with the weights {name} ({learned}); no label was used after that."


def _flags(config: checkpoint.Flags) -> list[str]:
    flags = []
    for name in (name for name in RECIPE if name in config):
        value = Path(config[name]).name if name == "weights" else config[name]
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name.replace('_', '-')}", *(shlex.quote(str(v)) for v in values)]
    return flags


def _scores(trained: TrainedBackbone, feature_dir: Path) -> str:
    """Those of this checkpoint's features, if they are in `feature_dir`."""
    try:
        manifest = Manifest(feature_dir)
        source = manifest.extraction["checkpoint"]
        if source is None or source["digest"] != trained.digest:
            raise UserError("the features are those of another checkpoint")
        scores = manifest.metrics()
    except UserError:
        return "None found for this checkpoint."
    splits = manifest.extraction["dataset"]["splits"].items()
    images = " and ".join(f"{count:,} of {split}" for split, count in splits)
    parts = [f"Of the pictures ({images}):", f"```\n{summary_table(scores)}\n```"]
    if "linear_probe" in scores:
        parts.append(f"{probe_line(scores['linear_probe'])}.")
    if "trust" in scores:
        parts.append(f"Without labels: {describe(scores['trust'])}.")
    return "\n\n".join(parts)
