"""The commit that files record."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip


def repository(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    git(folder, "init", "-q")
    (folder / "a").write_text(folder.name)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "a")
    return git(folder, "rev-parse", "HEAD")


def copy_sources(folder: Path) -> None:
    for name in ("src", "dataset"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.bin"))


def recorded(folder: Path, **env: str) -> str:
    """What the copy in `folder` records, run as its commands are."""
    code = f"""
import sys
sys.path.insert(0, {str(folder)!r})
from src.storage.provenance import git_commit
print(git_commit())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_a_repository_around_an_unpacked_archive_is_not_its_commit(tmp_path: Path) -> None:
    repository(tmp_path)
    copy_sources(tmp_path / "unpacked")
    assert recorded(tmp_path / "unpacked", PATH="/usr/bin:/bin") == "None"


def test_the_environment_does_not_choose_the_repository(tmp_path: Path) -> None:
    repository(tmp_path / "other")
    (tmp_path / "own").mkdir()
    copy_sources(tmp_path / "own")
    own = repository(tmp_path / "own")
    path = {"PATH": "/usr/bin:/bin", "GIT_DIR": str(tmp_path / "other/.git")}
    assert recorded(tmp_path / "own", **path).startswith(own)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_repository_of_another_owner_counts(tmp_path: Path) -> None:
    """As in a container that mounts a user's checkout: git would answer "dubious ownership"."""
    (tmp_path / "own").mkdir()
    copy_sources(tmp_path / "own")
    own = repository(tmp_path / "own")
    for file in (tmp_path / "own", *(tmp_path / "own").rglob("*")):
        os.chown(file, 65534, 65534)
    assert recorded(tmp_path / "own", PATH="/usr/bin:/bin").startswith(own)


def test_a_command_runs_the_code_beside_it(tmp_path: Path) -> None:
    """Also with the environment of another checkout, and where a package has the same name."""
    copy_sources(tmp_path / "clone")
    (tmp_path / "packages/dataset").mkdir(parents=True)
    (tmp_path / "packages/dataset/__init__.py").write_text("raise SystemExit('another dataset')")
    flags = tmp_path / "clone/src/clusters/flags.py"
    flags.write_text(flags.read_text().replace("class ClusteringConfig:", "class Renamed:"))
    for script, says in (("clustering.py", "ClusteringConfig"), ("train.py", "")):
        run = subprocess.run(
            [sys.executable, str(tmp_path / "clone/src" / script), "--help"],
            capture_output=True, text=True,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path / "packages")},
        )  # fmt: skip
        assert (run.returncode == 0) == (not says), run.stderr
        assert says in run.stderr
