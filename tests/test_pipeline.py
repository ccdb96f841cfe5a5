"""The whole chain, run as a person runs it: one script after the other, from an empty directory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from dataset.load_dataset import load_dataset
from tests.helpers import HELPERS, ROOT
from tests.helpers.processes import Script, run_python

EXTERNAL = {"hungarian_accuracy", "nmi", "ari", "knn_accuracy"}
INTERNAL = {"silhouette", "davies_bouldin"}
LATER = ("src/clustering.py", "src/inference.py", "visualize_features.py")


def done(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stderr
    return run.stdout


def train(script: Script, *flags: object) -> None:
    small = ("--arch", "resnet18", "--epochs", 1, "--device", "cpu", "--wandb", "offline")
    done(script("src/train.py", *small, *flags))
    done(script("src/feature_extraction.py", "--untrained"))


def test_digits(small_script: Script, tmp_path: Path) -> None:
    train(small_script, "--dataset", "digits", "--batch-size", 256)
    table = done(small_script("src/clustering.py", "--baselines", "--restarts", 10))
    for row in ("learned features", "raw pixels", "before training"):
        assert row in table
    metrics = json.loads((tmp_path / "features/metrics.json").read_text())
    for split, images in (("train", 1438), ("test", 359)):
        assert metrics["kmeans"]["splits"][split]["images"] == images
        assert metrics["kmeans"]["splits"][split].keys() >= EXTERNAL | INTERNAL
    log = (tmp_path / "checkpoints/metrics.jsonl").read_text().splitlines()
    watched = json.loads(log[-1])["knn_accuracy"]  # of the network before batch norm is folded
    assert watched == pytest.approx(metrics["kmeans"]["splits"]["train"]["knn_accuracy"], abs=0.003)
    pixels = metrics["baselines"]["raw_pixels"]["kmeans"]["splits"]["train"]["hungarian_accuracy"]
    assert pixels == pytest.approx(0.77, abs=0.08)
    assert list((tmp_path / "wandb").glob("offline-run-*"))

    shown = done(small_script("src/inference.py", "--json")).splitlines()
    clusters = np.load(tmp_path / "features/test_clusters.npy")
    rows = np.linspace(0, 358, 5).astype(int)
    assert [json.loads(line)["cluster"] for line in shown] == clusters[rows].tolist()

    drawn = done(small_script("visualize_features.py", "--projection", "pca"))
    assert "open features/report.html in a browser" in drawn
    assert (tmp_path / "features/report.html").stat().st_size > 100_000
    assert len(list((tmp_path / "features/figures").glob("*.png"))) >= 6


def test_weights_from_elsewhere_without_training(script: Script, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    network(torch.randn(64, 3, 32, 32))  # statistics of its own
    torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pth")
    flags = ("--dataset", "digits", "--arch", "resnet18", "--weights", "weights.pth")
    flags = (*flags, "--device", "cpu")
    made = done(script("src/train.py", "--epochs", 0, *flags, "--wandb", "offline"))
    assert "nothing was trained: checkpoints/simclr_epoch_0000.pt" in made
    assert "to train on" not in made
    done(script("src/feature_extraction.py", "--untrained", "--precision", "fp32"))
    assert not list((tmp_path / "features").glob("untrained*"))
    images = torch.from_numpy(load_dataset("digits", Path()).splits["test"].images)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    network.fc = torch.nn.Identity()
    with torch.inference_mode():
        expected = network.eval()(
            torchvision.transforms.functional.normalize(images / 255, mean, std)
        )
    features = np.load(tmp_path / "features/test_features.npy")
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)

    table = done(script("src/clustering.py", "--baselines", "--restarts", 2))
    assert "raw pixels" in table
    assert "before training" not in table
    (line,) = done(script("src/inference.py", "--json", "--sample", 1)).splitlines()
    clusters = np.load(tmp_path / "features/test_clusters.npy")
    assert json.loads(line)["cluster"] == clusters[0]
    assert "ONNX Runtime puts 16" in done(script("src/export.py", "--check-images", 16))
    drawn = done(script("visualize_features.py", "--projection", "pca"))
    assert "no training log in checkpoints" in drawn
    assert 'id="training"' not in (tmp_path / "features/report.html").read_text()
    assert script("src/train.py", "--epochs", 0, *flags, "--bn", "train").returncode == 2


ODD = (b"caf\xe9", b"two\nlines", b"\x1b[31mred", b"x" * 255, "Füße".encode())


def test_odd_names_from_pictures_to_the_report(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = os.fsencode(tmp_path) + b"/f\xfctter"
    try:
        for i, name in enumerate(ODD * 4):
            for folder in (b"train", b"test"):
                place = Path(os.fsdecode(pictures + b"/" + folder + b"/" + name))
                place.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(255, size=(32, 32, 3), dtype=np.uint8) // (1 + i % 4)
                Image.fromarray(pixels).save(place / f"{i}{place.name[:9]}.png")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    (place / "bad\x1b\nname.png").write_text("no picture")

    def run(name: str, *flags: object) -> str:
        env = {"PYTHONIOENCODING": "ascii", "WANDB_MODE": "offline"}
        script = (HELPERS / "small_network.py", ROOT / name)
        done = run_python(*script, *flags, cwd=tmp_path, **env)
        assert done.returncode == (3 if "inference" in name else 0), done.stderr
        for stream in (done.stderr, "" if "inference" in name else done.stdout):
            assert stream.isascii()
            assert all(line.isprintable() for line in stream.split("\n")), stream
            assert "W&B: " not in stream.replace("W&B: offline run", "")
        return done.stdout

    folder = os.fsdecode(pictures)
    small = ("--arch", "resnet18", "--epochs", 1, "--image-size", 32, "--batch-size", 8)
    run("src/train.py", "--dataset", "folder", "--data-dir", folder, *small, "--device", "cpu")
    run("src/feature_extraction.py", "--untrained")
    run("src/clustering.py", "--baselines", "--wandb", "offline")
    outputs = ("--csv", "--montage", "m.png", "--sort-into", "sorted", "--wandb", "offline")
    assert "caf\udce9/" in run("src/inference.py", folder, *outputs)
    run("visualize_features.py", "--projection", "pca", "--wandb", "offline")
    assert len(list(tmp_path.glob("sorted/*/*.png"))) == 40
    report = (tmp_path / "features/report.html").read_text(encoding="utf-8")
    assert "caf\\udce9" in report
    assert len(list((tmp_path / "features/figures").glob("*.png"))) >= 8


def test_stl10_without_a_test_split(small_script: Script, tmp_path: Path, stl10_dir: Path) -> None:
    data = tmp_path / "data" / "stl10_binary"
    data.mkdir(parents=True)
    for name in ("unlabeled_X.bin", "train_X.bin", "train_y.bin"):
        (data / name).symlink_to(stl10_dir / "stl10_binary" / name)
    train(small_script, "--data-dir", data.parent, "--batch-size", 16)
    own = ("--components", 10, "--clusters", 10, "--fit-on", "unlabeled", "--baselines")
    done(small_script("src/clustering.py", *own))
    splits = json.loads((tmp_path / "features/metrics.json").read_text())["kmeans"]["splits"]
    assert splits.keys() == {"unlabeled", "train"}
    assert not EXTERNAL & splits["unlabeled"].keys()
    assert splits["unlabeled"].keys() >= INTERNAL
    assert np.load(tmp_path / "features/unlabeled_pca.npy").shape == (20, 10)
    assert np.load(tmp_path / "features/train_features.npy").shape == (40, 32)


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (("src/train.py", "--dataset", "digits", "--batch-size", 5000), "--batch-size"),
        (("src/train.py", "--dataset", "mnist"), "mnist"),
        (("src/train.py", "--epocs", 3), "--epocs"),
        (("src/train.py", "--epochs", "many"), "--epochs"),
        (("src/feature_extraction.py",), "python src/train.py"),
        *(((later,), "FOLDER, then python src/feature_extraction.py") for later in LATER),
        (("src/clustering.py", "--clusters", 0), "--clusters"),
    ],
)
def test_wrong_input_gets_one_line(script: Script, command: tuple, names: str) -> None:
    run = script(*command)
    lines = run.stderr.strip().splitlines()
    assert run.returncode == 2
    assert names in lines[-1]
    assert len(lines) == 1, run.stderr


SCRIPTS = sorted(
    str(file.relative_to(ROOT))
    for file in (*ROOT.glob("*.py"), *ROOT.glob("src/*.py"), *ROOT.glob("dataset/*.py"))
    if '__name__ == "__main__"' in file.read_text()
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_needs_nothing(script: Script, name: str) -> None:
    text = done(script(name, "--help"))
    assert "default" in text
    assert "python" in text


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_python_without_the_packages_says_what_to_do(name: str) -> None:
    program = [sys.executable, "-S", str(ROOT / name), "--help"]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(program, env=clean, capture_output=True, text=True)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert "source .venv/bin/activate" in line


CLOSED = ("stdin", "stdout", "stderr", "stdin stdout stderr")


@pytest.mark.parametrize(
    ("name", "closed"),
    [*(("src/train.py", one) for one in CLOSED[:-1]), *((name, CLOSED[-1]) for name in SCRIPTS)],
)
def test_closed_streams(name: str, closed: str, tmp_path: Path) -> None:
    for flag, code in (("--help", 0), ("--nonsense", 2)):
        run = run_python(ROOT / name, flag, cwd=tmp_path, CLOSED_STREAMS=closed)
        assert run.returncode == code
        assert "Traceback" not in run.stderr
