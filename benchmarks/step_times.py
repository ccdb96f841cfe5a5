"""The time and memory of each step of a stage: runs a script with its functions timed.

    python benchmarks/step_times.py src/clustering.py --feature-dir DIR

Prints, for every step, seconds on the clock, seconds of all cores together, its share of those, and
the most memory while it ran, without files that are mapped: the system takes those back when it
needs the memory. Needs /proc (Linux).
"""

import os
import runpy
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's own packages

from src.evaluation.tables import aligned

STEPS = {
    "import": (
        ("src.features.importing", "read_rows", "check the numbers"),
        ("src.features.importing", "save_features", "write the features"),
    ),
    "clustering": (
        ("src.clusters.stage", "read_inputs", "read, with digests"),
        ("src.clusters.method", "fit_pca", "PCA"),
        ("src.clusters.pca", "PCA.transform", "components of every image"),
        ("src.clusters.method", "smooth", "smoothing"),
        ("src.clusters.method", "kmeans", "K-means"),
        ("src.clusters.fine", "kmeans", "K-means of the fine clusters"),
        ("src.clusters.method", "fit_head", "head"),
        ("src.clusters.stage", "calibrated_head", "unusual images"),
        ("src.clusters.stage", "per_image", "certainty, distance"),
        ("src.clusters.scoring", "internal_metrics", "silhouette, Davies-Bouldin"),
        ("src.clusters.scoring", "knn_of", "k-NN"),
        ("src.clusters.stage", "trust_report", "trust verdict"),
        ("src.clusters.stage", "save", "write"),
        ("src.clusters.stage", "remember_last", "remember clusters"),
    ),
    "visualization": (
        ("src.visualization.stage", "load_results", "read, with digests"),
        ("src.visualization.stage", "project", "map"),
        ("src.visualization.stage", "find_copies", "near-duplicates"),
        ("src.visualization.stage", "silhouettes", "silhouettes"),
        ("src.visualization.stage", "write_report", "page"),
        ("src.visualization.stage", "write_images", "images.csv"),
        ("src.visualization.stage", "projection_map", "draw the map"),
    ),
}
MODULES = {
    "import_features.py": "import", "clustering.py": "clustering",
    "visualize_features.py": "visualization",
}  # fmt: skip
REST = "everything else"


class StepTimes:
    """A step within a step counts as the outer one."""

    def __init__(self) -> None:
        self.clock: defaultdict[str, float] = defaultdict(float)
        self.cores: defaultdict[str, float] = defaultdict(float)
        self.memory: defaultdict[str, int] = defaultdict(int)
        self.running = REST
        self.since = time.monotonic(), time.process_time()
        threading.Thread(target=self._watch, daemon=True).start()

    def timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            if self.running != REST:
                return function(*arguments, **options)
            self._count()
            self.running = label
            try:
                return function(*arguments, **options)
            finally:
                self._count()
                self.running = REST

        return run

    def table(self) -> str:
        self._count()
        total = sum(self.cores.values())
        rows = [["step", "seconds", "of all cores", "share", "memory"]]
        for step in sorted(self.cores, key=lambda step: -self.cores[step]):
            share, memory = self.cores[step] / total, self.memory[step] / 2**20
            seconds = f"{self.clock[step]:,.1f}", f"{self.cores[step]:,.1f}"
            rows.append([step, *seconds, f"{share:.1%}", f"{memory:.1f} GB"])
        most = max(self.memory.values()) / 2**20
        rows.append(
            ["all", f"{sum(self.clock.values()):,.1f}", f"{total:,.1f}", "", f"{most:.1f} GB"]
        )
        return aligned(rows)

    def _count(self) -> None:
        now = time.monotonic(), time.process_time()
        self.clock[self.running] += now[0] - self.since[0]
        self.cores[self.running] += now[1] - self.since[1]
        self.since = now

    def _watch(self) -> None:
        while True:
            step = self.running
            lines = Path("/proc/self/status").read_text().splitlines()
            kilobytes = next(int(x.split()[1]) for x in lines if x.startswith("RssAnon"))
            self.memory[step] = max(self.memory[step], kilobytes)
            time.sleep(0.1)


def main() -> None:
    script, times = Path(sys.argv[1]), StepTimes()
    for module, name, label in STEPS.get(MODULES.get(script.name, ""), ()):
        owner: Any = import_module(module)
        *classes, function = name.split(".")
        for class_ in classes:
            owner = getattr(owner, class_)
        setattr(owner, function, times.timed(label, getattr(owner, function)))
    sys.argv = sys.argv[1:]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        print(times.table(), flush=True)


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[1])
    main()
