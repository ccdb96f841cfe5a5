"""docs/extending.md: its patches apply to a copy of the code, which then trains and loads."""

import importlib.util
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import HELPERS, ROOT
from tests.helpers.processes import environment
from tests.helpers.script_server import PRELOADED, ScriptServer

SECTIONS = (ROOT / "docs/extending.md").read_text().split("\n## ")[1:]
EXAMPLES = {section.splitlines()[0]: section for section in SECTIONS}
Train = Callable[..., str]
QUICK = "--image-size 16 --batch-size 20 --epochs 1 --warmup-epochs 0 --device cpu --wandb disabled"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The modules, as patches find them."""
    root = tmp_path_factory.mktemp("copy")
    for file in [*ROOT.glob("src/**/*.py"), *ROOT.glob("dataset/*.py")]:
        target = root / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return root


@pytest.fixture(scope="module")
def server(copy: Path) -> Iterator[ScriptServer]:
    """Imports nothing of the code, which every patch changes."""
    heavy = tuple(name for name in PRELOADED if not name.startswith("src."))
    server = ScriptServer(env(copy), heavy)
    yield server
    server.close()


@pytest.fixture
def train(
    request: pytest.FixtureRequest, copy: Path, server: ScriptServer, tmp_path: Path
) -> Iterator[Train]:
    """While the patch of an example is applied: runs its command, with flags that make it quick."""
    example = EXAMPLES[request.param]
    patch = "\n".join(re.findall(r"```diff\n(.*?\n)```", example, re.DOTALL))
    assert 1 <= patch.count("\n+++ ") <= 3  # more files, and the code is cut the wrong way
    (command,) = re.findall(r"```\npython (.*)\n```", example)

    def run(*flags: object) -> str:
        script, *arguments = shlex.split(f"{command} {QUICK}")
        arguments = [str(copy / script), *arguments, *map(str, flags)]
        process = server.start(str(HELPERS / "small_network.py"), arguments, tmp_path, env(copy))
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "trained for 1 epochs: checkpoints/" in out
        return out

    apply(copy, patch)
    yield run
    apply(copy, patch, "--reverse")


def env(copy: Path) -> dict[str, str]:
    return environment(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1")


def apply(root: Path, patch: str, *flags: str) -> None:
    subprocess.run(
        ["git", "apply", "--whitespace=error", *flags], input=patch, text=True, check=True,
        cwd=root, env=os.environ | {"GIT_CEILING_DIRECTORIES": str(root.parent)},
    )  # fmt: skip


def load(file: Path) -> Any:
    """A patched module; what it imports is not patched."""
    spec = importlib.util.spec_from_file_location("patched", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_four_examples() -> None:
    kinds = ("loss", "augmentation", "data set", "backbone")
    assert list(EXAMPLES) == [f"Another {kind}" for kind in kinds]


@pytest.mark.parametrize("train", ["Another loss"], indirect=True)
def test_loss(train: Train, copy: Path, pictures_dir: Path) -> None:
    z = torch.randn(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = (z / z.norm(dim=1, keepdim=True)).tolist()
    losses = []
    for i in range(10):
        pair = (i + 5) % 10
        s = [np.dot(u[i], u[j]) / 0.3 for j in range(10)]
        losses.append(np.log(sum(np.exp(s[j]) for j in range(10) if j not in (i, pair))) - s[pair])
    found = load(copy / "src/models/simclr.py").decoupled(z, 0.3)
    assert found.item() == pytest.approx(np.mean(losses), abs=1e-5)
    train("--dataset", "folder", "--data-dir", pictures_dir, "--arch", "resnet18")


@pytest.mark.parametrize("train", ["Another augmentation"], indirect=True)
def test_augmentation(train: Train, copy: Path, pictures_dir: Path) -> None:
    settings = load(copy / "src/training/flags.py").ViewSettings
    views = load(copy / "src/training/views.py")
    images = torch.randint(0, 256, (400, 3, 20, 20), dtype=torch.uint8)
    plain, cut = (
        views.make_views(
            images,
            views.draw(settings(cutout=length), 400, 20, torch.Generator().manual_seed(0)),
        )
        for length in (0.0, 0.4)
    )
    hidden = (cut == 0).all(dim=1)
    assert torch.equal(cut.movedim(1, 3)[~hidden], plain.movedim(1, 3)[~hidden])
    assert hidden.sum((1, 2)).max() == 8 * 8
    # Along each axis E[min(1, c + 0.2) - max(0, c - 0.2)] for c uniform from 0 to 1.
    assert hidden.float().mean().item() == pytest.approx((0.4 - 0.2**2) ** 2, abs=0.01)
    train("--dataset", "folder", "--data-dir", pictures_dir, "--arch", "resnet18")


@pytest.mark.parametrize("train", ["Another data set"], indirect=True)
def test_data_set(train: Train, copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8)
    labels = np.arange(50) % 10
    for name, rows in {"data_batch_1": range(20), "data_batch_2": range(20, 40),
                       "test_batch": range(40, 50)}.items():  # fmt: skip
        records = [bytes([labels[i]]) + images[i].transpose(2, 0, 1).tobytes() for i in rows]
        (folder / f"{name}.bin").write_bytes(b"".join(records))
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    splits, class_names = load(copy / "dataset/cifar10.py").load_cifar10(tmp_path)
    assert class_names == list("abcdefghij")
    for split, rows in (("train", slice(40)), ("test", slice(40, 50))):
        found, found_labels = splits[split]
        np.testing.assert_array_equal(found, images[rows].transpose(0, 3, 1, 2))
        assert found_labels.tolist() == labels[rows].tolist()
    assert "cifar10: train 40, test 10 images" in train("--data-dir", tmp_path)


@pytest.mark.parametrize("train", ["Another backbone"], indirect=True)
def test_backbone(train: Train, copy: Path, pictures_dir: Path) -> None:
    resnet = load(copy / "src/models/resnet.py")
    resnet.ARCHITECTURES = load(copy / "src/models/architectures.py").ARCHITECTURES
    backbone = resnet.ResNet("wide_small")
    sides = []
    backbone.layer1.register_forward_hook(lambda _, x, y: sides.append(y.shape[-1]))
    assert backbone(torch.zeros(2, 3, 16, 16)).shape == (2, 320)
    assert sides == [16]
    assert "wide_small on cpu" in train("--dataset", "folder", "--data-dir", pictures_dir)
