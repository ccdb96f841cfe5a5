"""The names that flags take, apart from the slow imports of the code that acts on them.

So every script can answer --help and refuse a wrong flag before it imports PyTorch.
"""

from typing import Literal

DatasetName = Literal["stl10", "digits", "folder"]
SplitName = Literal["unlabeled", "train", "test"]
DeviceName = Literal["auto", "cuda", "mps", "cpu"]
PrecisionName = Literal["auto", "bf16", "fp16", "fp32"]
Placement = Literal["auto", "device", "stream"]
BatchNorm = Literal["frozen", "train"]
WeightsName = Literal["none", "imagenet"]
WandbMode = Literal["auto", "online", "offline", "disabled"]
ProjectionName = Literal["pca", "tsne", "umap"]
Format = Literal["table", "csv", "json"]
"""Of predictions."""
