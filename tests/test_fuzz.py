"""Files between the stages, damaged in every way that comes to mind: whoever reads one says so in a
line, or answers as before. `make faults` tries many more.
"""

import functools
import json
import os
import pickle
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib import format as npy
from PIL import Image
from torch import nn

from dataset.load_dataset import load_dataset
from dataset.stl10 import STL10_CLASSES
from src import clustering, feature_extraction, train
from src.clustering import ClusteringConfig
from src.feature_extraction import ExtractionConfig
from src.models.architectures import ARCHITECTURES
from src.models.encoder import TrainedBackbone
from src.prediction.predictor import Predictor
from src.runtime.cli import ENVIRONMENT_ERRORS, UserError
from src.storage import checkpoint
from src.storage.metrics_log import read_metrics
from src.training.flags import TrainConfig
from src.training.setup import prepare
from src.training.state import restore_or_initialize
from src.visualization.figures import training_curves
from src.visualization.results import load_results

Damage = Callable[[Path, np.random.Generator], None]

# --- damages of any file ----------------------------------------------------------------------


def replace_with(make: Callable[[Path], object]) -> Damage:
    def damage(file: Path, rng: np.random.Generator) -> None:
        file.unlink()
        make(file)

    return damage


def rewrite(change: Callable[[bytearray, np.random.Generator], bytes | bytearray]) -> Damage:
    return lambda file, rng: file.write_bytes(change(bytearray(file.read_bytes()), rng)) and None


def flip_bit(content: bytearray, rng: np.random.Generator) -> bytearray:
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    return content


def swap_halves(content: bytearray, rng: np.random.Generator) -> bytearray:
    cut = int(rng.integers(len(content)))
    return content[cut:] + content[:cut]


def zip_archive(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", b"1")


def other_run(file: Path, rng: np.random.Generator) -> None:
    """The same file, with the same shape, of a run with another seed."""
    past = "clusters_*.json"  # is named after the run
    folder = file.parents[2] / "other" / file.parent.name
    (other,) = folder.glob(past if file.match(past) else file.name)
    shutil.copy(other, file)


ANY: dict[str, Damage] = {
    "missing": lambda file, rng: file.unlink(),
    "empty": replace_with(lambda file: file.touch()),
    "folder": replace_with(lambda file: file.mkdir()),
    "pipe": replace_with(lambda file: os.mkfifo(file)),
    "link to itself": replace_with(lambda file: file.symlink_to(file.name)),
    "link to nothing": replace_with(lambda file: file.symlink_to("nothing")),
    "text": replace_with(lambda file: file.write_text("<html>404</html>\n")),
    "zip": replace_with(zip_archive),
    "pickle": replace_with(lambda file: file.write_bytes(pickle.dumps([1, 2]))),
    "cut short": rewrite(lambda content, rng: content[: rng.integers(len(content))]),
    "three bytes": rewrite(lambda content, rng: content[:3]),
    "twice": rewrite(lambda content, rng: content * 2),
    "longer": rewrite(lambda content, rng: content + b"\0"),
    "zeros": rewrite(lambda content, rng: bytes(len(content))),
    "noise": rewrite(lambda content, rng: rng.bytes(len(content))),
    "bit": rewrite(flip_bit),
    "bits": rewrite(lambda content, rng: flip_bit(flip_bit(content, rng), rng)),
    "last bit": rewrite(lambda content, rng: content[:-1] + bytes([content[-1] ^ 1])),
    "halves swapped": rewrite(swap_halves),
    "backwards": rewrite(lambda content, rng: content[::-1]),
}

# --- damages of an array ----------------------------------------------------------------------


def array(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def damage(file: Path, rng: np.random.Generator) -> None:
        changed = change(np.load(file))
        with file.open("wb") as out:
            np.save(out, changed)

    return damage


def header(shape: str) -> Damage:
    """The same numbers after a header that claims `shape`, any text."""

    def damage(file: Path, rng: np.random.Generator) -> None:
        x = np.load(file)
        text = f"{{'descr': '{x.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}\n"
        size = len(text).to_bytes(2, "little")
        file.write_bytes(npy.magic(1, 0) + size + text.encode() + x.tobytes())

    return damage


def set_first(value: float) -> Damage:
    def change(x: np.ndarray) -> np.ndarray:
        x.flat[0] = value
        return x

    return array(change)


ARRAY = ANY | {
    "other run": other_run,
    "rows reversed": array(lambda x: x[::-1]),
    "a row less": array(lambda x: x[:-1]),
    "a row more": array(lambda x: np.concatenate([x, x[:1]])),
    "a dimension more": array(lambda x: x[..., None]),
    "flat": array(lambda x: x.reshape(-1)),
    "wider numbers": array(lambda x: x.astype(np.float64)),
    "booleans": array(lambda x: x.astype(bool)),
    "objects": array(lambda x: x.astype(object)),
    "big-endian": array(lambda x: x.astype(x.dtype.newbyteorder(">"))),
    "negative": set_first(-7),
    "huge": set_first(2**62),
    "negative shape": header("(-1, 3)"),
    "endless shape": header("(4611686018427387904, 4611686018427387904)"),
    "boolean shape": header("(True,)"),
    "shape of text": header("'abc'"),
    "nested header": header("(" * 300 + ")" * 300),
}

# --- damages of JSON --------------------------------------------------------------------------

VALUES = (None, True, -1, 10**400, 1e300, "x", [], [[1]], {}, {"": None})


def any_place(content: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """A container somewhere in `content`, and a key of it."""
    keys = list(content) if isinstance(content, dict) else range(len(content))
    key = keys[rng.integers(len(keys))]
    inner = content[key]
    return any_place(inner, rng) if inner and isinstance(inner, dict | list) else (content, key)


def change_json(change: Callable[[Any, Any, np.random.Generator], None]) -> Damage:
    def damage(file: Path, rng: np.random.Generator) -> None:
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        line = rng.integers(len(lines))
        content = json.loads(lines[line])
        change(*any_place(content, rng), rng)
        lines[line] = json.dumps(content)
        file.write_text("\n".join(lines) + "\n")

    return damage


def other_value(container: Any, key: Any, rng: np.random.Generator) -> None:
    container[key] = VALUES[rng.integers(len(VALUES))]


JSON = ANY | {
    "other run": other_run,
    "list": replace_with(lambda file: file.write_text("[]\n")),
    "number": replace_with(lambda file: file.write_text("7\n")),
    "empty object": replace_with(lambda file: file.write_text("{}\n")),
    "nested deeply": replace_with(lambda file: file.write_text("[" * 100_000 + "\n")),
    "objects nested deeply": replace_with(lambda file: file.write_text('{"a":' * 100_000 + "\n")),
    "long number": replace_with(lambda file: file.write_text("9" * 5000 + "\n")),
    "NaN": rewrite(lambda content, rng: content.replace(b"0", b"NaN", 1)),
    **{f"key removed {n}": change_json(lambda c, key, rng: c.pop(key)) for n in range(5)},
    **{f"other value {n}": change_json(other_value) for n in range(15)},
}

# --- damages of a checkpoint whose checksums are right ----------------------------------------


def resaved(change: Callable[[dict[str, Any], np.random.Generator], None]) -> Damage:
    def damage(file: Path, rng: np.random.Generator) -> None:
        state = torch.load(file, weights_only=True)
        change(state, rng)
        torch.save(state, file)

    return damage


def place(state: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    keys = [key for key in state if key not in ("format", "commit", "versions")]
    key = keys[rng.integers(len(keys))]
    return place(state[key], rng) if isinstance(state[key], dict) and state[key] else (state, key)


def other_part(state: dict[str, Any], rng: np.random.Generator) -> None:
    container, key = place(state, rng)
    values = (None, "x", [], {}, -1, torch.zeros(2, 3), torch.zeros(0), float("nan"))
    container[key] = values[rng.integers(len(values))]


def part_removed(state: dict[str, Any], rng: np.random.Generator) -> None:
    container, key = place(state, rng)
    del container[key]


def moments(state: dict[str, Any]) -> dict[str, Any]:
    return state["optimizer"]["state"][0]


CHECKPOINT = ANY | {
    "a list": resaved(lambda state, rng: state.clear()),
    "another network": resaved(lambda state, rng: state["config"].update(arch="resnet50")),
    "unknown network": resaved(lambda state, rng: state["config"].update(arch="vgg")),
    "other moments": resaved(lambda state, rng: moments(state).update(exp_avg=torch.zeros(2))),
    "no moments": resaved(lambda state, rng: moments(state).clear()),
    "a flag of tensors": resaved(lambda state, rng: state["config"].update(seed=torch.zeros(2))),
    "no image": resaved(lambda state, rng: state["dataset"].update(image_size=0)),
    **{f"part removed {n}": resaved(part_removed) for n in range(10)},
    **{f"other part {n}": resaved(other_part) for n in range(20)},
}


# --- a run, and what its stages answer --------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def tiny_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        tiny = ARCHITECTURES["resnet18"]._replace(blocks=(1,), widths=(8,))
        patch.setitem(ARCHITECTURES, "tiny", tiny)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and in `other/` one with another seed."""
    root = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for number, color in enumerate(((200, 0, 0), (0, 200, 0), (0, 0, 200))):
            folder = root / "pictures" / split / f"class {number}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.uint8(color + rng.integers(0, 55, (24, 24, 3)))
                Image.fromarray(pixels).save(folder / f"{i}.png")
    for seed, place in ((0, root), (1, root / "other")):
        train.main(train_config(root, place / "checkpoints", seed=seed, epochs=2))
        extraction(root, place)
        cluster(place / "features")
    return root


def train_config(root: Path, directory: Path, **flags: Any) -> TrainConfig:
    return TrainConfig(
        "folder", root / "pictures", image_size=24, arch="tiny", batch_size=6, device="cpu",
        checkpoint_every=1, log_every=1, monitor_every=9, wandb="disabled",
        checkpoint_dir=directory, cache_dir=root / "cache", **flags,
    )  # fmt: skip


def extraction(root: Path, place: Path) -> bytes:
    features = place / "features"
    flags = {"data_dir": root / "pictures", "device": "cpu", "untrained": True}
    feature_extraction.main(
        ExtractionConfig(checkpoint_dir=place / "checkpoints", feature_dir=features, **flags)
    )
    return (features / "train_features.npy").read_bytes()


def cluster(features: Path) -> bytes:
    flags = {"components": 4, "clusters": "3", "restarts": 2, "wandb": "disabled"}
    clustering.main(ClusteringConfig(feature_dir=features, baselines=True, **flags))  # type: ignore[arg-type]
    return (features / "metrics.json").read_bytes() + (features / "centroids.npy").read_bytes()


def predictions(features: Path) -> bytes:
    images = np.random.default_rng(0).integers(0, 255, (3, 3, 24, 24)).astype(np.uint8)
    predictor = Predictor.load(features, device="cpu")
    predicted = predictor.predict(images)
    names = [predictor.class_of(k) for k in predicted.clusters]
    return pickle.dumps((predicted.distances, predicted.certainty, names))


def shown(features: Path) -> bytes:
    results = vars(load_results(features)) | {"dataset": None}
    return pickle.dumps({key: np.array(x) if isinstance(x, np.ndarray) else x
                         for key, x in results.items()})  # fmt: skip


class Hangs(BaseException):
    """No `except` of the product catches it."""


@contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    def too_long(*_: object) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answer(read: Callable[[Path], Any], directory: Path) -> Any:
    """What a stage answers; None if it ends with one line."""
    try:
        with no_longer_than(60):
            return read(directory)
    except (UserError, OSError) as error:
        is_expected = isinstance(error, UserError) or error.errno in ENVIRONMENT_ERRORS
        if not is_expected or "\n" in str(error) or len(str(error)) > 1000:
            raise
        return None


ROUNDS = pytest.mark.parametrize(
    "rounds", [1, pytest.param(20, marks=[pytest.mark.faults, pytest.mark.timeout(3600)])]
)


def damaged(source: Path, damages: dict[str, Damage], rounds: int) -> Iterator[tuple[str, Path]]:
    """A folder like that of `source`, with that file damaged in one way after the other, and the
    name of the damage. The other files are links: no stage may write into a file that exists."""
    target = source.parents[1] / "damaged" / source.parent.name
    before = contents(source.parent)
    for seed in range(rounds):
        for number, (name, damage) in enumerate(damages.items()):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source.parent, target, copy_function=os.link)
            (target / source.name).unlink()
            shutil.copy(source, target)
            damage(target / source.name, np.random.default_rng([seed, number]))
            yield f"{source.name}: {name}, seed {seed}", target
    assert contents(source.parent) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


READERS = {
    "features": (cluster,), "labels": (shown, cluster), "pca": (shown,), "clusters": (shown,),
    "unusual": (shown,), "views": (cluster,), "pixels": (cluster,),
    "mean": (predictions,), "components": (predictions,), "ratio": (shown,),
    "centroids": (predictions,), "weights": (predictions,), "bias": (predictions,),
    "class": (predictions, shown), "certainty": (shown,), "distance": (shown,),
    "metrics": (shown,), "fine": (shown,), "tree": (shown,), "past": (shown,),
    "manifest": (predictions, shown, cluster),
}  # fmt: skip
"""By the last word of a file's name. Clustering is the last, as it writes."""


@ROUNDS
def test_features_and_clusters(run: Path, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The checkpoint is whole, and most of the time would go into reading it again.
    monkeypatch.setattr(TrainedBackbone, "load", functools.cache(TrainedBackbone.load))
    expected = {read: read(run / "features") for read in (cluster, predictions, shown)}
    files = [file for file in (run / "features").iterdir() if file.suffix in (".npy", ".json")]
    assert len(files) == 31
    for file in sorted(files):
        damages = ARRAY if file.suffix == ".npy" else JSON
        kind = "past" if file.match("clusters_*") else file.stem.split("_")[-1]
        for what, directory in damaged(file, damages, rounds):
            for read in READERS[kind]:
                with named(what):
                    assert answer(read, directory) in (None, expected[read])


@ROUNDS
def test_checkpoints(run: Path, rounds: int, tmp_path: Path) -> None:
    """A damaged one is passed over. Other weights under sound checksums are not noticed."""

    def extracted(directory: Path) -> bytes:
        trained = TrainedBackbone.load(None, directory, torch.device("cpu"))
        return weights(trained.backbone)

    def resumed(directory: Path) -> bytes:
        newest = checkpoint.Newest(directory)
        setup = prepare(train_config(run, directory, seed=0, epochs=3), newest)
        return weights(restore_or_initialize(setup, newest).model)

    files = checkpoint.listed(run / "checkpoints")
    assert len(files) == 3
    expected: dict[Any, list[bytes]] = {extracted: [], resumed: []}
    for file in files[1:]:
        directory = tmp_path / file.stem
        directory.mkdir()
        shutil.copy(file, directory)
        for read, answers in expected.items():
            answers.append(read(directory))
    for what, directory in damaged(files[-1], CHECKPOINT, rounds):
        for read, answers in expected.items():
            with named(what):
                answered = answer(read, directory)
                if answered is None:  # resuming with other flags is refused
                    assert read is resumed
                    assert "part" in what or "network" in what
                else:
                    assert answered in answers or "part" in what
                    assert answered == answers[0] or "moments" not in what or read is extracted


def weights(model: nn.Module) -> bytes:
    return b"".join(x.numpy().tobytes() for x in model.state_dict().values())


@ROUNDS
def test_the_training_log(run: Path, rounds: int) -> None:
    for what, directory in damaged(run / "checkpoints" / checkpoint.METRICS_LOG, JSON, rounds):
        with named(what):
            assert answer(curves, directory) is not None


def curves(directory: Path) -> int:
    records = read_metrics(directory / checkpoint.METRICS_LOG)
    if records:
        training_curves(records)
    return len(records)


@ROUNDS
def test_decoded_pictures(run: Path, rounds: int) -> None:
    """They are decoded again."""

    def images(directory: Path) -> bytes:
        cache = directory.parent
        dataset = load_dataset("folder", run / "pictures", 24, cache)
        return pickle.dumps([(np.array(x.images), x.labels) for x in dataset.splits.values()])

    cache = next((run / "cache").iterdir())
    expected = images(cache)
    for file in sorted(cache.glob("t*")):
        damages = JSON if file.suffix == ".json" else ARRAY
        impossible = ("other run", "negative", "huge")
        damages = {name: damage for name, damage in damages.items() if name not in impossible}
        for what, directory in damaged(file, damages, rounds):
            with named(what):
                is_in_the_way = "folder" in what
                assert answer(images, directory) == (None if is_in_the_way else expected)


@ROUNDS
def test_stl10(stl10_dir: Path, tmp_path: Path, rounds: int) -> None:
    """Other pixels and labels within their range are other data: a later stage refuses them."""

    def fingerprint(directory: Path) -> str:
        return load_dataset("stl10", directory.parent).fingerprint

    shutil.copytree(stl10_dir, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "stl10_binary"
    (folder / "class_names.txt").write_text("\n".join(STL10_CLASSES))
    for file in sorted(folder.iterdir()):
        for what, directory in damaged(file, ANY, rounds):
            with named(what):
                answer(fingerprint, directory)


@contextmanager
def named(what: str) -> Iterator[None]:
    try:
        yield
    except (Exception, Hangs) as error:
        raise AssertionError(what) from error
