"""The architecture: scripts stand on leaves, and never on each other."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
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


SCRIPTS = {module(file) for file in SOURCES if '__name__ == "__main__"' in file.read_text()}


def test_there_are_scripts() -> None:
    assert {"src.train", "src.feature_extraction", "src.clustering"} <= SCRIPTS


def test_no_module_imports_a_script() -> None:
    wrong = {module(f): bad for f in SOURCES if (bad := imported(f) & SCRIPTS)}
    assert not wrong


def test_imports_have_no_cycles() -> None:
    graph = {module(f): {n for n in imported(f) if n in map(module, SOURCES)} for f in SOURCES}
    while leaves := {name for name, needs in graph.items() if not needs}:
        graph = {name: needs - leaves for name, needs in graph.items() if name not in leaves}
    assert not graph, f"a cycle among {sorted(graph)}"


def test_only_artifacts_spells_the_files_of_the_contract() -> None:
    for file in SOURCES:
        if module(file) == "src.storage.artifacts":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not (node.value.endswith(".npy") and "\n" not in node.value), (
                    f"{file.name}: {node.value}"
                )


def test_every_folder_of_modules_is_installed() -> None:
    """An editable installation, which is all that the other tests see, would not miss one."""
    packages = re.search(r"packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert packages is not None
    listed = set(re.findall(r'"([\w.]+)"', packages[1]))
    assert listed >= {module(file).rpartition(".")[0] for file in SOURCES} - {""}
