"""The values that flags accept, separate from the slow imports of the code that uses them, so that
--help and wrong flags are answered before PyTorch is imported."""

from typing import Literal

DatasetName = Literal["stl10", "digits", "folder"]
SplitName = Literal["unlabeled", "train", "test"]
DeviceName = Literal["auto", "cuda", "mps", "cpu"]
PrecisionName = Literal["auto", "bf16", "fp16", "fp32"]
Placement = Literal["auto", "device", "stream"]
BatchNorm = Literal["frozen", "train"]
WeightsName = Literal["none", "lite0", "dino", "barlowtwins", "imagenet", "pretrained"]
WandbMode = Literal["auto", "online", "offline", "disabled"]
ProjectionName = Literal["pca", "tsne", "umap"]
Format = Literal["table", "csv", "json"]
"""Of predictions."""
