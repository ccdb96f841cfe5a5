"""A small dataset in STL-10's own format, and scripts run as a user runs them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset.load_dataset import load_dataset
from docs.make_pictures import FLAGS
from tests.helpers import HELPERS, ROOT
from tests.helpers.browser import OpenReport, Report
from tests.helpers.digits import save_picture
from tests.helpers.fake_wandb_server import FakeServer
from tests.helpers.finished_run import FinishedRun, finish_digits
from tests.helpers.pixel_run import pixel_run
from tests.helpers.processes import Script, run_python
from tests.helpers.tracked_run import KEY, clean_environment


def write_stl10(folder: Path, split: str, count: int, labeled: bool) -> None:
    """Noisy pictures of ten classes, each a color and a direction; column-major, labels from 1."""
    rng = np.random.default_rng(len(split))
    labels = np.arange(count) % 10
    y, x = np.mgrid[:96, :96] / 96
    images = np.empty((count, 3, 96, 96))
    for image, label in zip(images, labels, strict=True):
        angle = np.pi * label / 10 + rng.normal(0, 0.05)
        stripes = np.sin(20 * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6))
        color = 0.5 + 0.5 * np.cos(2 * np.pi * (label / 10 + np.array([0, 1 / 3, 2 / 3])))
        image[:] = color[:, None, None] * (140 + 80 * stripes) + rng.normal(0, 15, (3, 96, 96))
    columns_first = images.clip(0, 255).astype(np.uint8).transpose(0, 1, 3, 2)
    columns_first.tofile(folder / f"{split}_X.bin")
    if labeled:
        (labels + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")


@pytest.fixture(scope="session")
def stl10_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `--data-dir`: 20 unlabeled, 40 train and 20 test images."""
    directory = tmp_path_factory.mktemp("data")
    folder = directory / "stl10_binary"
    folder.mkdir()
    write_stl10(folder, "unlabeled", 20, labeled=False)
    write_stl10(folder, "train", 40, labeled=True)
    write_stl10(folder, "test", 20, labeled=True)
    return directory


@pytest.fixture(scope="session")
def pictures_dir(stl10_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as a folder of pictures, for trainings at a small size."""
    directory = tmp_path_factory.mktemp("pictures")
    for name, split in load_dataset("stl10", stl10_dir).splits.items():
        for i, image in enumerate(split.images):
            folder = directory / name / ("" if split.labels is None else str(split.labels[i]))
            save_picture(image, folder / f"{i:02d}.png")
    return directory


@pytest.fixture(scope="session")
def pixel_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pixels of the digits as features, clustered. Shared, as the next one."""
    directory = tmp_path_factory.mktemp("pixels")
    pixel_run(directory, "digits", Path())
    return directory


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Shared: a test that changes it takes a copy."""
    return finish_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Run `script("src/train.py", "--epochs", 1)` in an empty directory, with its own outputs."""
    return lambda name, *arguments: run_python(ROOT / name, *arguments, cwd=tmp_path)


@pytest.fixture
def small_script(script: Script) -> Script:
    """The same, with a small network in place of ResNet-18."""
    return lambda name, *arguments: script(HELPERS / "small_network.py", ROOT / name, *arguments)


@pytest.fixture(name="environment")
def wandb_environment(tmp_path: Path) -> dict[str, str]:
    return clean_environment(tmp_path)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture
def online(environment: dict[str, str], server: FakeServer) -> dict[str, str]:
    return environment | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}


@pytest.fixture(scope="module")
def program() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    return browser or pytest.skip(f"none of {', '.join(names)} is installed, and no $CHROMIUM")


@pytest.fixture(scope="module")
def chromium(program: str) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_report(chromium: Any) -> Iterator[OpenReport]:
    """Opens the report in a directory; the test fails if anything goes wrong in the page."""
    reports = []

    def open_in_browser(directory: Path, **context: Any) -> Report:
        reports.append(Report(chromium, directory, **context))
        return reports[-1]

    yield open_in_browser
    for report in reports:
        report.page.close()
        assert report.complaints == []
        assert all(url.startswith(("file:", "blob:", "data:")) for url in report.urls)
