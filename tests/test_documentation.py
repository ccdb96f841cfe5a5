"""What the README and docs/ tell a reader to type or to open works."""

import dataclasses
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from src.runtime import cli
from tests.helpers import ROOT
from tests.helpers.documentation import DOCUMENTS, blocks, code, python_examples
from tests.helpers.finished_run import FinishedRun

SCRIPTS = {
    str(file.relative_to(ROOT)): match[1]
    for file in (*ROOT.glob("*.py"), *ROOT.glob("src/*.py"), *ROOT.glob("dataset/*.py"))
    if (match := re.search(r"run_script\(main, (\w+)\)", file.read_text()))
}
"""The class of the flags of each script."""

OTHER_FLAGS = {"--help", "--max-restarts"}
"""Not of a dataclass, the second one torchrun's."""


def config(script: str) -> Any:
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    return getattr(module, SCRIPTS[script])


def commands() -> list[tuple[str, list[str]]]:
    """Script and arguments of everything that python or torchrun starts."""
    pattern = rf"(?:python|torchrun.*) ({'|'.join(SCRIPTS)})(?![\w.])([^|']*)"
    found = [match for line in code() for match in re.findall(pattern, line)]
    return [(script, shlex.split(arguments, comments=True)) for script, arguments in found]


def test_every_command_parses(capsys: pytest.CaptureFixture) -> None:
    assert {script for script, _ in commands()} == SCRIPTS.keys()
    for script, arguments in commands():
        try:
            cli.parse(config(script), arguments, script, "")
        except SystemExit:
            pytest.fail(f"{script} {arguments}: {capsys.readouterr().err}")


def flags(fields: Any) -> set[str]:
    names = set()
    for field in dataclasses.fields(fields):
        nested = field.default_factory
        if dataclasses.is_dataclass(nested):
            names |= flags(nested)
        flag = field.name.replace("_", "-")
        names |= {f"--{flag}", f"--no-{flag}"}
    return names


def test_every_flag_in_the_text_exists() -> None:
    known = set.union(*(flags(config(script)) for script in SCRIPTS)) | OTHER_FLAGS
    mentioned = {re.split("[ =]", span)[0] for span in code() if span.startswith("--")}
    assert len(mentioned) > 15
    assert mentioned <= known


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {match[1] for line in code() if (match := re.search(r"(?:^|\s)make ([a-z]+)\b", line))}
    assert {"run", "sync"} <= used <= targets


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_every_link_and_file_exists(file: Path) -> None:
    text = file.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if link.startswith("http"):
            continue
        target = file.parent / path if path else file
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", t).lower().replace(" ", "-") for t in titles]
    for name in re.findall(r"\b(?:src|dataset|docs|tests|benchmarks)/[\w/]+\.\w+", text):
        assert (ROOT / name).exists() or (file.parent / name).exists(), name


def test_the_code_map_has_every_file_and_no_other() -> None:
    (tree,) = (block for block in blocks("") if block.startswith("dataset/\n"))
    listed, folders = set(), []
    for line in filter(None, tree.splitlines()):
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            listed.add("".join(folders) + name)
    files = [*ROOT.glob("dataset/*.py"), *ROOT.glob("src/**/*.py"), ROOT / "visualize_features.py"]
    assert listed == {str(f.relative_to(ROOT)) for f in files if f.name != "__init__.py"}


def test_every_python_example_runs(
    digits_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those about exported files run in test_export.py, which compares what they give."""
    (tmp_path / "features").symlink_to(digits_run.features)
    for name in ("a.jpg", "b.png", "photo.jpg"):
        Image.new("RGB", (40, 32), "white").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    examples = [e for e in python_examples() if not re.search("onnxruntime|torchvision", e)]
    assert examples
    for example in examples:
        exec(example, {})
