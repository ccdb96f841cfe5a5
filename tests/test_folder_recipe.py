"""Defaults that suit a folder of pictures, and experiments by name."""

import dataclasses
import importlib
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
import torch

from src.clustering import ClusteringConfig
from src.clusters.choose_k import fewer
from src.export import ExportConfig
from src.feature_extraction import ExtractionConfig
from src.import_features import ImportConfig
from src.runtime import commands
from src.runtime.cli import UserError, parse
from src.storage import checkpoint
from src.train import main
from src.training import forecast
from src.training.flags import (
    CHOSEN,
    FROM_PRETRAINED,
    FROM_RANDOM,
    TrainConfig,
    check,
    replaced,
)
from src.training.recipe import CPU_VIEWS, PRETRAINED_SIDE, choose, folder_recipe, survey
from src.training.setup import prepare
from src.training.state import random_state
from tests.helpers import ROOT
from tests.helpers.digits import write_digits
from tests.helpers.pixel_run import pixel_run
from tests.helpers.processes import Script


@pytest.mark.parametrize(
    ("images", "side", "gpu", "expected"),
    [
        (13_000, 96, False, ("resnet50", 96, 256, 24, 2.0, 4, 12)),
        (13_000, 96, True, ("resnet50", 96, 256, 24, 2.0, 4, 12)),
        (100_000, 3000, True, ("resnet50", 96, 256, 24, 2.0, 4, 93)),
        (5_000, 480, False, ("resnet50", 96, 256, 64, 5.0, 10, 12)),
        (4_999, 480, False, ("resnet18", 64, 256, 24, 2.0, 4, 4)),
        (402, 96, False, ("resnet18", 64, 32, 31, 2.0, 5, 3)),
        (402, 3000, True, ("resnet50", 96, 32, 167, 13.0, 27, 20)),
        (135, 28, False, ("resnet18", 32, 16, 93, 7.0, 15, 7)),
        (12, 50, False, ("resnet18", 48, 12, 200, 16.0, 33, 2)),
        (3, 3000, False, ("resnet18", 64, 3, 200, 16.0, 33, 2)),
    ],
)
def test_what_suits_a_folder(images: int, side: int, gpu: bool, expected: tuple) -> None:
    recipe = folder_recipe(images, side, gpu, weights="none")
    assert tuple(recipe.values()) == ("none", *expected, *FROM_RANDOM.values())
    assert tuple(recipe) == CHOSEN


@pytest.mark.parametrize(
    ("images", "side", "expected"),
    [
        (13_000, 96, (32, 1, 0.05, 4, 4, 0.0158)),
        (3_781, 480, (32, 1, 0.17, 4, 1, 0.0542)),
        (1_000, 3000, (32, 2, 0.5, 4, 1, 0.1)),
        (402, 28, (32, 5, 1.25, 4, 1, 0.1)),
        (12, 50, (12, 8, 2.0, 4, 1, 0.1)),
    ],
)
def test_what_suits_a_folder_and_weights_learned_elsewhere(
    images: int, side: int, expected: tuple
) -> None:
    for gpu in (False, True):
        recipe = folder_recipe(images, side, gpu)
        *settings, rate = expected
        lite = ("lite0", "timm/tf_efficientnet_lite0", PRETRAINED_SIDE, *settings)
        values = FROM_PRETRAINED | {"backbone_rate": rate}
        assert tuple(recipe.values()) == (*lite, *values.values())
        for weights in ("dino", "imagenet"):
            assert folder_recipe(images, side, gpu, weights=weights)["arch"] == "resnet50"


@pytest.mark.parametrize("gpu", [False, True])
def test_every_number_of_pictures_gets_a_recipe_that_can_be_trained(gpu: bool) -> None:
    for images in (*range(2, 300), *range(300, 20_000, 371)):
        for weights in ("lite0", "none"):
            recipe = folder_recipe(images, 500, gpu, weights=weights)
            assert 2 <= recipe["batch_size"] <= images
            check(replaced(TrainConfig.for_dataset("folder"), dict(recipe)))
        views = 2 * images * recipe["epochs"]
        assert gpu or images >= 5_000 or recipe["epochs"] <= 24 or views < 2 * CPU_VIEWS


@pytest.mark.parametrize(
    ("images", "epochs", "flags", "rate"),
    [
        (320, 13_000, {}, 4.9e-5),
        (13_000, 400, {}, 3.9e-5),
        (10_000, 30, {"batch_size": 2}, 4.3e-5),
        (5_000_000, None, {}, 4.1e-5),
        (10**9, 10**6, {}, 2e-13),
    ],
)
def test_a_long_training_learns_slowly_and_warms_up(
    images: int, epochs: int | None, flags: dict[str, int], rate: float
) -> None:
    recipe = folder_recipe(images, 500, False, epochs, **flags)  # type: ignore[arg-type]
    check(replaced(TrainConfig.for_dataset("folder"), {**recipe, **flags}))
    assert recipe["backbone_rate"] == rate
    per_epoch = images // flags.get("batch_size", recipe["batch_size"])
    assert round(recipe["warmup_epochs"] * per_epoch) == pytest.approx(20, abs=1)


def test_what_depends_on_the_epochs_follows_those_that_are_given() -> None:
    assert folder_recipe(402, 96, False, epochs=3, weights="none")["warmup_epochs"] == 2
    assert folder_recipe(402, 96, False, epochs=1)["warmup_epochs"] == 0.25
    assert folder_recipe(402, 96, False, epochs=600)["checkpoint_every"] == 100
    for weights in ("none", "lite0"):  # --epochs 0 is the beginning of the training without it
        first = folder_recipe(402, 96, False, epochs=0, weights=weights)
        assert first == folder_recipe(402, 96, False, weights=weights) | {"epochs": 0}


def test_the_curve_of_the_loss_has_a_hundred_points_or_all() -> None:
    for epochs in (9, 10, 31, 100):
        for batch, accumulate in ((None, 1), (8, 1), (100, 1), (402, 1), (32, 6)):
            recipe = folder_recipe(402, 96, False, epochs, "none", batch, accumulate)
            steps = epochs * (402 // ((batch or recipe["batch_size"]) * accumulate))
            assert min(steps, 100) <= steps // recipe["log_every"] < 200
    assert folder_recipe(402, 96, False, epochs=6_000)["log_every"] == 100
    for wrong in ({"batch_size": 0}, {"accumulate": 0}):  # `check` refuses them afterward
        assert folder_recipe(402, 96, False, **wrong)["log_every"] > 0  # type: ignore[arg-type]


def test_the_other_datasets_keep_their_defaults() -> None:
    for dataset in ("stl10", "digits"):
        config = TrainConfig.for_dataset(dataset)
        emptied = replaced(config, dict.fromkeys(CHOSEN))
        assert choose(emptied, gpu=False, recorded={}) == config


def test_the_survey_counts_the_pictures_to_train_on(pictures_dir: Path) -> None:
    assert survey(pictures_dir, ("unlabeled", "train")) == (60, 96)
    assert survey(pictures_dir, ("test",)) == (20, 96)


@pytest.fixture
def folder(pictures_dir: Path, tmp_path: Path) -> Path:
    """Twelve pictures and a broken one."""
    few = shutil.ignore_patterns("1[2-9].png")
    directory = shutil.copytree(pictures_dir / "unlabeled", tmp_path / "pictures", ignore=few)
    (directory / "broken.png").write_text("no picture")
    return directory


def test_the_batch_that_is_given_counts(folder: Path) -> None:
    flags = {"data_dir": folder, "epochs": 100, "batch_size": 2, "accumulate": 3}
    flags |= {"weights": "none"}
    assert choose(TrainConfig.for_dataset("folder", **flags), False, {}).log_every == 2


def test_resuming_decides_nothing_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    own = {"data_dir": folder, "checkpoint_dir": tmp_path / "c", "device": "cpu"}
    own |= {"image_size": 32, "precision": "fp32", "wandb": "disabled", "name": "few"}
    own |= {"weights": "none"}
    config = TrainConfig.for_dataset("folder", **own)
    monkeypatch.setattr(commands, "_given", {})
    commands.run_with(replace(config, checkpoint_dir=Path("checkpoints/few")))
    assert main(replace(config, epochs=1)) == 0
    printed = capsys.readouterr().out
    for words in (
        "chosen for 13 pictures of about 96 px on a CPU: --arch resnet18",
        "12 images of 32 px, 12 a step; epochs: 1, steps in each: 1, steps to go: 1",
        "12 pictures and 1 steps are too few", "checkpoints: 1 of 138 MB",
        "--weights lite0 starts from",
    ):  # fmt: skip
        assert words in printed
    flags = checkpoint.load(tmp_path / "c" / checkpoint.file_name(1))["config"]
    assert (flags["batch_size"], flags["warmup_epochs"]) == (12, 2.0)
    assert main(config) == 0  # as many epochs as before: nothing is left to train
    printed = capsys.readouterr().out
    assert "1 of 1 steps are done" in printed
    assert not re.search("chosen for|too few|steps to go", printed)
    assert main(replace(config, epochs=3, log_every=5, monitor_every=1)) == 0
    printed = capsys.readouterr().out
    assert "epoch   3/3" in printed
    assert "epoch   2/3" not in printed  # nothing is measured without labels
    last = checkpoint.load(tmp_path / "c" / checkpoint.file_name(3))["config"]
    assert last == flags | {"epochs": 3, "log_every": 5, "monitor_every": 1}
    log = (tmp_path / "c" / checkpoint.METRICS_LOG).read_text()
    assert log.count('"kind": "step"') == 1  # of the first epoch, every step of which was logged
    shutil.copy(folder / "00.png", folder / "another.png")
    assert main(config) == 0
    assert "finished: it is used as it is, although" in capsys.readouterr().out
    with pytest.raises(UserError, match="other images than those now in"):
        main(replace(config, epochs=4))
    with pytest.raises(UserError, match=r"--batch-size 12 \(now 6\): .* --name"):
        main(replace(config, batch_size=6))


@pytest.fixture
def digit_run(tmp_path: Path) -> TrainConfig:
    """Twenty pictures of digits, and the command that trains on them."""
    write_digits(tmp_path / "digits", 20)
    return TrainConfig.for_dataset(
        "folder", data_dir=tmp_path / "digits", checkpoint_dir=tmp_path / "c", weights="none",
        arch="resnet8", image_size=20, device="cpu", precision="fp32", wandb="disabled",
    )  # fmt: skip


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize("flags", [{}, {"batch_size": 16}, {"epochs": 0}])
def test_a_finished_training_stays_as_it_is_with_other_pictures(
    digit_run: TrainConfig, flags: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    begun = replace(digit_run, **{"epochs": 1} | flags)  # of one step
    assert main(begun) == 0
    before = contents(digit_run.checkpoint_dir)
    pictures = sorted(digit_run.data_dir.glob("*.png"))
    more = write_digits(digit_run.data_dir / "new", 60)  # of five steps
    for changed in ([], more[20:], [*more, *pictures[5:]], pictures[1:5]):
        for file in changed:
            file.unlink(missing_ok=True)
        capsys.readouterr()
        assert main(replace(digit_run, **flags)) == 0
        assert contents(digit_run.checkpoint_dir) == before
        printed = capsys.readouterr().out
        assert f"_000{begun.epochs}.pt is finished: it is used as it is" in printed
        assert not re.search("chosen|training on|resuming|steps|epoch +1/1", printed)
    for epochs in {0, 1, 2} - {begun.epochs}:
        with pytest.raises(UserError, match="other images than those now in"):
            main(replace(begun, epochs=epochs))


def test_an_unfinished_training_names_the_pictures_not_a_batch_size(digit_run: TrainConfig) -> None:
    assert main(replace(digit_run, epochs=2, checkpoint_every=1)) == 0
    (digit_run.checkpoint_dir / checkpoint.file_name(2)).unlink()
    for file in sorted(digit_run.data_dir.glob("*.png"))[5:]:
        file.unlink()
    for flags in ({}, {"batch_size": 16}):
        with pytest.raises(UserError, match="trained with other images than those now in"):
            main(replace(digit_run, **flags))


@pytest.mark.parametrize(
    ("count", "flags", "advice"),
    [
        (1, {}, "training needs at least two pictures: {} has 1 to train on"),
        (1, {"batch_size": 2, "accumulate": 2}, "training needs at least two pictures: "),
        (2, {"accumulate": 2}, "the 2 images to train on: lower --accumulate"),
        (4, {"batch_size": 3, "accumulate": 2}, "the 4 images to train on: lower --batch-size"),
        (4, {"batch_size": 5}, "the 4 images to train on: lower --batch-size"),
    ],
)
def test_too_few_pictures_for_a_step_get_advice_that_helps(
    digit_run: TrainConfig, tmp_path: Path, count: int, flags: dict[str, int], advice: str
) -> None:
    write_digits(few := tmp_path / "few", count)
    config = replace(digit_run, data_dir=few, **flags)
    assert main(replace(config, epochs=0)) == 0  # which needs no step
    for directory in ("c", "new"):
        with pytest.raises(UserError, match=advice.format(re.escape(str(few)))):
            main(replace(config, checkpoint_dir=tmp_path / directory, epochs=1))


def test_a_training_that_was_only_begun_gets_its_epochs_when_it_starts() -> None:
    digits = TrainConfig.for_dataset("digits", epochs=None)
    for recorded, expected in ((0, 20), (7, 7)):
        recipe = folder_recipe(402, 96, False, epochs=recorded, weights="none")
        assert choose(digits, False, dict(recipe)).epochs == expected


@pytest.mark.parametrize("name", ["birds", "Vögel-2.0_b", "7"])
def test_a_name_places_the_experiment(name: str) -> None:
    for config in (TrainConfig, ExtractionConfig, ExportConfig):
        parsed: Any = parse(config, ["--name", name], "x.py", "")
        assert parsed.checkpoint_dir == Path("checkpoints", name)
        assert getattr(parsed, "feature_dir", Path("features", name)) == Path("features", name)
    parsed = parse(ExtractionConfig, [f"--name={name}", "--feature-dir", "own"], "x.py", "")
    assert parsed.feature_dir == Path("own")
    assert parsed.checkpoint_dir == Path("checkpoints", name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "a b", ".hidden", "a\n"])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(UserError, match="--name"):
        parse(ExtractionConfig, [f"--name={name}"], "x.py", "")


def test_two_experiments_do_not_touch_each_other(small_script: Script, folder: Path) -> None:
    """Also the way out of the checkpoints of another dataset."""
    flags = ("--arch", "resnet18", "--epochs", 0, "--device", "cpu")
    own = (*flags, "--dataset", "folder", "--data-dir", folder)
    assert small_script("src/train.py", "--dataset", "digits", *flags).returncode == 0
    refused = small_script("src/train.py", *own)
    assert refused.returncode == 2
    assert "--dataset digits (now folder)" in refused.stderr
    assert "--name" in refused.stderr.splitlines()[-1]
    assert "decoding" not in refused.stderr
    place = folder.parent
    before = files(place / "checkpoints")
    for stage, more in (
        ("src/train.py", own), ("src/feature_extraction.py", ()),
        ("src/clustering.py", ("--baselines", "--restarts", 2)), ("src/inference.py", ()),
        ("src/export.py", ("--check-images", 4)),
        ("visualize_features.py", ("--projection", "pca")),
    ):  # fmt: skip
        run = small_script(stage, "--name", "few", *more)
        assert run.returncode == 0, run.stderr
        if "clustering" in stage:
            assert "4 clusters instead of 10" in run.stdout
    assert {f: t for f, t in files(place / "checkpoints").items() if "few" not in f} == before
    assert [f for f in files(place / "features") if not f.startswith("few/")] == []
    saved = checkpoint.load(place / "checkpoints/few" / checkpoint.file_name(0))
    assert saved["tracking"]["group"] == "few"


def test_advice_repeats_the_name(script: Script, tmp_path: Path) -> None:
    def advice(stage: str, *flags: object) -> str:
        run = script(stage, *flags)
        assert run.returncode == 2
        return run.stderr.removesuffix("\n").rpartition("run ")[2]

    few = ("--name", "few")
    train, extract = (f"python src/{s}.py --name few" for s in ("train", "feature_extraction"))
    train += " --dataset folder --data-dir FOLDER"
    assert advice("src/feature_extraction.py", *few) == f"{train} first"
    assert advice("src/clustering.py", *few) == f"{train}, then {extract}"
    pixel_run(tmp_path / "features/few", "digits", Path())
    cluster = "python src/clustering.py --name few"
    predicted = advice("src/inference.py", *few, "--device", "cpu")
    assert predicted == f"{extract} and {cluster} again"
    (tmp_path / "features/few/train_distance.npy").unlink()
    assert advice("visualize_features.py", *few) == f"{cluster} to write it again"
    own = ("--feature-dir", "features/few")
    assert advice("visualize_features.py", *own) == (
        "python src/clustering.py --feature-dir features/few to write it again"
    )


@pytest.mark.parametrize(
    ("config", "arguments", "first", "second"),
    [
        (ClusteringConfig, "", "", ""),
        (ClusteringConfig, "--name=a", " --name a", " --name a"),
        (ExtractionConfig, "--checkpoint-dir c", " --checkpoint-dir c", " --checkpoint-dir c"),
        (ExtractionConfig, "--name a --feature-dir 'b c'", " --name a",
         " --name a --feature-dir 'b c'"),
        (TrainConfig, "--name a --checkpoint-dir checkpoints/a", " --name a", " --name a"),
        (ImportConfig, "--feature-dir f", "", " --feature-dir f"),
    ],
)  # fmt: skip
def test_advice_repeats_where_the_flags_lead(
    config: Any, arguments: str, first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_given", {})
    commands.run_with(parse(config, shlex.split(arguments), "x.py", ""))
    assert commands.command("src/train.py") == f"python src/train.py{first}"
    extract = commands.command("src/feature_extraction.py", "--checkpoint", Path("my file.pt"))
    assert extract == f"python src/feature_extraction.py{second} --checkpoint 'my file.pt'"
    assert commands.command("src/sync_wandb.py", "wandb") == "python src/sync_wandb.py wandb"


def test_a_command_takes_the_flags_that_messages_add() -> None:
    for script, directories in commands.DIRECTORIES.items():
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        config = get_type_hints(module.main)["config"]
        assert {field.name for field in dataclasses.fields(config)} >= {"name", *directories}


def files(directory: Path) -> dict[str, int]:
    return {
        str(file.relative_to(directory)): file.stat().st_mtime_ns
        for file in directory.rglob("*")
        if file.is_file()
    }


def test_few_images_get_fewer_clusters(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {1: 1, 2: 2, 3: 2, 12: 4, 29: 9, 30: 10, 999: 10}
    assert {images: fewer(10, images, False) for images in expected} == expected
    assert "9 clusters instead of 10" in capsys.readouterr().out
    assert [fewer(10, images, True) for images in (9, 10)] == [9, 10]


def test_the_minutes_are_estimated_once_from_the_first_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([100.0, 107.0] * 2)
    monkeypatch.setattr(forecast.time, "monotonic", lambda: next(clock))
    for steps, expected in ((130, ["about 2 minutes of training to go"]), (100, [])):
        timer = forecast.StepTimer(5, steps, forecast.Clock())
        lines = [timer.estimate(step, torch.zeros(())) for step in range(6, 100)]
        assert [line for line in lines if line] == expected


def test_a_full_disk_is_told_before_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda _: SimpleNamespace(free=5e8))
    own = {"image_size": 32, "batch_size": 4, "checkpoint_dir": tmp_path, "device": "cpu"}
    config = TrainConfig("folder", folder, arch="resnet18", **own)
    state = random_state(setup := prepare(config))

    def announce(**flags: int) -> None:
        forecast.announce(replace(setup, config=replace(config, **flags)), state, {})

    announce()
    warning = f"6 of 138 MB, in all 828 MB in {tmp_path}, where 0.5 GB are free: make room"
    assert warning in capsys.readouterr().err
    announce(keep=2)
    assert "checkpoints: 2 of 138 MB, in all 276 MB" in capsys.readouterr().out
    state.step = 8 * setup.batches.per_epoch
    announce(epochs=25)  # 12, 16, 20, 24 and the last
    assert "checkpoints: 5 of 138 MB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder_name", "name"),
    [
        ("pictures", "pictures"), ("my  holiday's (2)", "my-holiday-s-2"), ("über", "ber"),
        (".hidden", "hidden"), ("!!", "pictures"),
    ],
)  # fmt: skip
def test_make_run_takes_any_folder(tmp_path: Path, folder_name: str, name: str) -> None:
    (tmp_path / folder_name).mkdir()
    folder = f"{tmp_path}/{folder_name}".replace("'", "'\\''")
    env = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(tmp_path), "NAME": "host"}
    for data in (f"{tmp_path}/{folder_name}", f"~/{folder_name}", f"{tmp_path}/{folder_name}/"):
        command = ["make", "--dry-run", "--old-file=.venv/installed", "run", f"DATA={data}"]
        run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        train = f"src/train.py --dataset folder --data-dir '{folder}' --name '{name}'"
        assert train in run.stdout
        assert run.stdout.count(f"--name '{name}'") == 5
        *_, page, names, picture = run.stdout.splitlines()
        assert f"1. Open features/{name}/report.html" in page
        assert f".venv/bin/python src/clustering.py --names --name {name}" in names
        assert f".venv/bin/python src/inference.py --name {name} photo.jpg" in picture
