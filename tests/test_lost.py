"""A stage that finds no results says which experiments there are, and what to type."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.runtime import cli, commands
from src.runtime.cli import UserError
from src.storage.artifacts import Manifest

FEATURES, CHECKPOINTS = "features/{}/manifest.json", "checkpoints/{}/simclr_epoch_0008.pt"
STAGES = {
    "src/feature_extraction.py": ("ExtractionConfig", CHECKPOINTS),
    "src/clustering.py": ("ClusteringConfig", FEATURES),
    "src/clustering.py --names": ("ClusteringConfig", FEATURES),
    "src/inference.py photo.jpg": ("InferenceConfig", FEATURES),
    "src/inference.py --sort-into sorted": ("InferenceConfig", FEATURES),
    "src/export.py": ("ExportConfig", FEATURES),
    "src/export.py --backbone b.pt": ("ExportConfig", CHECKPOINTS),
    "visualize_features.py": ("VisualizeConfig", FEATURES),
}
"""What a person types, the class of its flags, and the file that another experiment has."""

Say = Callable[..., str]


@pytest.fixture
def said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Say:
    """The one line of a command typed in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "_given", {})
    monkeypatch.setattr(commands, "_typed", [])

    def say(stage: str, typed: str) -> str:
        monkeypatch.setattr(sys, "argv", typed.split())
        script = typed.split()[0].removesuffix(".py").replace("/", ".")
        module: Any = importlib.import_module(script)
        with pytest.raises(SystemExit) as exit_:
            cli.run_script(module.main, getattr(module, STAGES[stage][0]))
        assert exit_.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return say


def experiment(file: str, seconds: float = 0) -> None:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    os.utime(path, (seconds, seconds))


@pytest.mark.parametrize("stage", STAGES)
def test_experiments_that_there_are(said: Say, stage: str) -> None:
    """The name that resembles the one given is meant, otherwise that of the newest results."""
    name, *arguments = stage.split()
    for number, other in enumerate(("pictures", "zoo", "trip")):
        experiment(STAGES[stage][1].format(other), number % 2)
    for given, meant in (("--name picture", "pictures"), ("", "zoo")):
        line = said(stage, f"{name} {given} {' '.join(arguments)}")
        assert "the experiments there are: pictures, trip, zoo; did you" in line
        again = " ".join([name, "--name", meant, *arguments])
        assert line.endswith(f"did you mean --name {meant}? Type: python {again}")
        assert "train.py" not in line


@pytest.mark.parametrize(
    ("there", "given", "expected"),
    [
        ("features/manifest.json", "--name=pictures", "no --name? Type: python src/clustering.py"),
        ("mine/a/manifest.json", "--feature-dir mine/b", "did you mean --feature-dir mine/a?"),
        ("features/a/manifest.json", "--feature-dir mine/b", "did you mean --name a?"),
        # The next stage is missing, not another experiment.
        (CHECKPOINTS.format("b"), "--name b", "run python src/feature_extraction.py --name b"),
    ],
)
def test_other_places(said: Say, there: str, given: str, expected: str) -> None:
    experiment(there)
    assert expected in said("src/clustering.py", f"src/clustering.py {given}")


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_at_all_leads_to_own_pictures(said: Say, stage: str) -> None:
    """Never to a download of STL-10, which train.py begins without --dataset."""
    assert "run python src/train.py --dataset folder --data-dir FOLDER" in said(stage, stage)


def test_a_long_command_is_not_repeated(said: Say) -> None:
    experiment(FEATURES.format("pictures"))
    photos = " ".join(f"photo_{i}.jpg" for i in range(50))
    line = said("src/inference.py photo.jpg", f"src/inference.py {photos}")
    assert line.endswith("did you mean --name pictures?")


def test_a_library_repeats_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "_typed", [])
    experiment(FEATURES.format("pictures"))
    with pytest.raises(UserError, match=r"in features; .* did you mean --name pictures\?$"):
        Manifest(Path("features"))
