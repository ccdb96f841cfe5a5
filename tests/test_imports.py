"""The architecture: scripts import modules, and never each other."""

import ast
import re
from pathlib import Path

from tests.helpers import ROOT
from tests.helpers.processes import run_python

SOURCES = [*ROOT.glob("dataset/*.py"), *ROOT.glob("src/**/*.py"), ROOT / "visualize_features.py"]


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


LAYERS = (
    ("src.runtime",), ("src.storage",), ("dataset", "src.evaluation", "src.models", "src.tracking"),
    ("src.clusters",), ("src.training", "src.prediction", "src.visualization"), ("src.features",),
)  # fmt: skip
"""The folders of modules; each imports only from those before it."""

SCRIPTS = {module(file) for file in SOURCES if '__name__ == "__main__"' in file.read_text()}


def test_no_module_imports_a_script() -> None:
    wrong = {module(f): bad for f in SOURCES if (bad := imported(f) & SCRIPTS)}
    assert not wrong


def test_imports_have_no_cycles() -> None:
    graph = {module(f): {n for n in imported(f) if n in map(module, SOURCES)} for f in SOURCES}
    while leaves := {name for name, needs in graph.items() if not needs}:
        graph = {name: needs - leaves for name, needs in graph.items() if name not in leaves}
    assert not graph, f"a cycle among {sorted(graph)}"


def test_no_import_runs_upward() -> None:
    level = {folder: i for i, layer in enumerate(LAYERS) for folder in layer}
    for file in set(SOURCES) - {ROOT / "src/__init__.py"}:
        name = module(file)
        if name not in SCRIPTS:
            own = name.rpartition(".")[0]
            folders = {n.rpartition(".")[0] for n in imported(file)} & set(level)
            wrong = {f for f in folders - {own} if level[f] >= level[own]}
            assert not wrong, f"{name} imports from {wrong}"


def test_only_artifacts_spells_the_files_of_the_contract() -> None:
    for file in SOURCES:
        if module(file) != "src.storage.artifacts":
            assert not re.search(r'\.npy["\']', file.read_text()), file.name


def test_every_folder_of_modules_is_installed() -> None:
    """An editable installation, which is all that the other tests see, would not miss one."""
    packages = re.search(r"packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert packages is not None
    listed = set(re.findall(r'"([\w.]+)"', packages[1]))
    assert listed >= {module(file).rpartition(".")[0] for file in SOURCES} - {""}


def test_the_command_line_needs_no_torch_and_shows_progress_in_the_main_process_only() -> None:
    code = """
import sys
from src.runtime import cli
assert "torch" not in sys.modules
sys.stderr.isatty = lambda: True
list(cli.progress(range(3), desc="steps"))
"""
    for rank, is_shown in (("0", True), ("1", False)):
        run = run_python("-c", code, RANK=rank)
        assert run.returncode == 0, run.stderr
        assert ("steps" in run.stderr) == is_shown
