"""A user whom the system does not know, as in containers that run under any number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import HELPERS, ROOT
from tests.helpers.digits import write_digits

UNKNOWN = """
import json, pwd, runpy, sys

def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = getpwuid
for sys.argv in json.loads(sys.argv[1]):
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""
SHOW = """
import dataclasses, getpass, os, pathlib, sys
from src.runtime.cli import run_script

@dataclasses.dataclass
class Config:
    pass

def main(config):
    pathlib.Path.home().joinpath("cache").touch()
    print(pathlib.Path.home(), getpass.getuser())

sys.argv = ["show"]
run_script(main, Config)
"""
NAMES = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "MPLCONFIGDIR", "XDG_CONFIG_HOME")


def run(code: str, *arguments: str, cwd: Path, **variables: str) -> str:
    """Standard output; standard error has to be without a word on homes or W&B."""
    known = {k: v for k, v in os.environ.items() if k not in NAMES and not k.startswith("WANDB")}
    (cwd / "tmp").mkdir()
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(cwd / "tmp")}
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, env=known | own | variables,
        capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert [e for e in process.stderr.splitlines() if "home" in e or "W&B" in e] == []
    return process.stdout


def test_every_stage_runs(tmp_path: Path) -> None:
    pictures = write_digits(tmp_path / "pictures", 24)
    train = "src/train.py --dataset folder --data-dir pictures --arch resnet18 --image-size 32"
    small = [str(HELPERS / "small_network.py")]
    stages = [
        [*small, *f"{train} --batch-size 8 --epochs 1".split()],
        [*small, "src/feature_extraction.py"],
        ["src/clustering.py", "--clusters", "2"],
        [*small, "src/inference.py", str(pictures[0]), "--wandb", "auto"],
        ["visualize_features.py", "--projection", "pca", "--wandb", "auto"],
        [*small, "src/export.py"],
    ]
    for stage in stages:
        stage[:] = [str(ROOT / word) if word.endswith(".py") else word for word in stage]
    run(UNKNOWN, json.dumps(stages), cwd=tmp_path, WANDB_API_KEY="")
    assert (tmp_path / "features" / "model.onnx").exists()
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 4


@pytest.mark.parametrize("home", ["/nonexistent", "relative", __file__])
def test_a_home_that_is_none_is_replaced_until_the_end(home: str, tmp_path: Path) -> None:
    (tmp_path / "relative").mkdir()
    place, name = run(UNKNOWN.partition("for ")[0] + SHOW, cwd=tmp_path, HOME=home).split()
    assert Path(place).parent == tmp_path / "tmp"
    assert name == f"uid{os.getuid()}"
    assert not Path(place).exists()


def test_a_home_and_a_name_are_kept(tmp_path: Path) -> None:
    printed = run(SHOW, cwd=tmp_path, HOME=str(tmp_path), USER="someone")
    assert printed.split() == [str(tmp_path), "someone"]
