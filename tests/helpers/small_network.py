"""A script of this project in which ResNet-18 is a small network, in seconds less.

python tests/helpers/small_network.py src/train.py --arch resnet18
"""

import runpy
import sys
from pathlib import Path

from src.models.architectures import ARCHITECTURES

SMALL = ARCHITECTURES["resnet18"]._replace(blocks=(2, 1), widths=(16, 32))

if __name__ == "__main__":
    ARCHITECTURES["resnet18"] = SMALL
    sys.argv.pop(0)
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
