"""Draw the figures of a run and one page to explore its clusters."""

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from dataset.folder import refuse_among
from src.evaluation.silhouette import silhouette_samples
from src.runtime.cli import check_seed
from src.storage import artifacts, checkpoint
from src.storage.artifacts import ExtractionRecord
from src.storage.metrics_log import Record, read_metrics
from src.storage.scores import SplitScores, used_splits
from src.tracking.tracker import stage_tracker
from src.visualization import figures
from src.visualization.duplicates import find_copies
from src.visualization.flags import VisualizeConfig
from src.visualization.images_table import write_images
from src.visualization.map_figure import projection_map
from src.visualization.projection import FIT_POINTS, TITLES, can_arrange, project
from src.visualization.report import write_report
from src.visualization.results import Results, load_results

SILHOUETTES = 10_000
"""Images in the silhouette figure: the time is quadratic, and more do not change its shape."""
PICTURES = 8
"""Pictures of each cluster, both nearest to the centroid and least certain."""


def run(config: VisualizeConfig) -> None:
    check_seed(config.seed)
    with artifacts.only_writer(config.feature_dir):
        visualize(config)


def visualize(config: VisualizeConfig) -> None:
    started = time.monotonic()
    results = load_results(config.feature_dir, config.data_dir)
    if results.extraction["dataset"]["name"] == "folder" and results.picture_dir:
        refuse_among("--feature-dir", config.feature_dir, results.picture_dir)
        if config.wandb not in (None, "disabled"):  # it keeps copies
            refuse_among("--wandb-dir", config.wandb_dir, results.picture_dir)
    folder = config.feature_dir / artifacts.FIGURES
    report, table = (config.feature_dir / name for name in (artifacts.REPORT, artifacts.IMAGES))
    artifacts.try_writing(report, table, folder / f"map.{config.format}")
    records = training_records(config.checkpoint_dir, results.extraction)
    method = config.projection if can_arrange(results.x_NP) else "pca"
    print(f"{TITLES[method]} of {len(results.x_NP):,} images")
    if len(results.x_NP) > FIT_POINTS and method != "pca":
        print(f"note: {FIT_POINTS:,} are embedded, the others placed among their neighbors")
    xy_N2 = project(results.x_NP, method, config.seed)
    copies = find_copies(results)

    files = []
    is_own = results.extraction["dataset"]["name"] == "folder"
    mode = config.wandb or ("disabled" if is_own else "auto")
    tracker = stage_tracker(mode, config.wandb_dir, "visualization", config, results.extraction)
    with figures.styled(), tracker:
        for name, figure in draw(results, records, xy_N2, TITLES[method]):
            files.append(folder / f"{name}.{config.format}")
            with artifacts.replacing(files[-1]) as temporary:
                figure.savefig(temporary, format=config.format)
            if mode != "disabled":
                picture = files[-1] if config.format == "png" else pixels(figure)
                tracker.image(f"figures/{name}", picture)
        write_report(report, results, records, copies, xy_N2, TITLES[method])
        write_images(table, results, copies, xy_N2)

    print(f"wrote {len(files)} figures to {folder} in {time.monotonic() - started:.0f} s")
    print(f"wrote {table} (one row per image)")
    print(f"open {report} in a browser ({report.stat().st_size / 2**20:.1f} MB)")


def training_records(directory: Path | None, extraction: ExtractionRecord) -> list[Record]:
    """The training log in `directory`, by default that of the features' checkpoint."""
    if directory is None:
        if extraction["checkpoint"] is None:
            print("note: the features were imported, so there are no training curves")
            return []
        directory = Path(extraction["checkpoint"]["file"]).parent
    records = read_metrics(directory / checkpoint.METRICS_LOG)
    if not records:
        print(f"note: no training log in {directory}, so no training curves")
    return records


def pixels(figure: Figure) -> np.ndarray:
    """The figure as uint8 (height, width, 3): Weights & Biases takes no PDF."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return np.asarray(Image.open(png).convert("RGB"))


def draw(
    results: Results, records: list[Record], xy_N2: np.ndarray, method: str
) -> Iterator[tuple[str, Figure]]:
    """The name and figure of everything that the run has data for."""
    names, metrics = results.grouping.labels, results.metrics
    if records:
        yield "training", figures.training_curves(records)
    yield "pca_variance", figures.pca_variance(results.variance_ratio)
    yield "map", projection_map(results, xy_N2, method)
    if metrics["fit"]["named_on"] is None:
        print("note: no labels, so no confusion matrix and no classes in the map")
    for split, scores in used_splits(metrics).items():
        if (figure := confusion(results, split, scores)) is not None:
            yield f"confusion_{split}", figure
    if (figure := silhouettes(results, results.clustering["fit_on"])) is not None:
        yield "silhouette", figure
    sizes = {
        split: np.bincount(1 + results.groups[results.rows(split)], minlength=1 + len(names))[1:]
        for split in results.split_names
    }
    yield "cluster_sizes", figures.cluster_sizes(sizes, names)
    if results.dataset is not None:
        yield "clusters", picture_rows(results)
    if "scan" in metrics:
        yield "cluster_scan", figures.cluster_scan(metrics["scan"])


def confusion(results: Results, split: str, scores: SplitScores) -> Figure | None:
    """Of the classes that occur; None without labels, and for more of them than fit."""
    if "confusion" not in scores or "hungarian_accuracy" not in scores:
        return None
    of_image, of_cluster, images = np.array(scores["confusion"]).T
    has_class = of_cluster >= 0
    classes = np.union1d(of_image, of_cluster[has_class])
    if len(classes) > figures.CONFUSED:
        print(
            f"note: no confusion matrix of {len(classes):,} classes; metrics.json has its numbers"
        )
        return None
    rows, columns = np.searchsorted(classes, of_image), np.searchsorted(classes, of_cluster)
    columns[~has_class] = len(classes)
    counts = np.zeros((len(classes), len(classes) + (not has_class.all())), int)
    counts[rows, columns] = images
    title = f"{split}: accuracy {scores['hungarian_accuracy']:.1%}"
    return figures.confusion_matrix(counts, [results.class_names[c] for c in classes], title)


def silhouettes(results: Results, split: str) -> Figure | None:
    rows = results.rows(split)
    rows = rows[np.linspace(0, len(rows) - 1, min(SILHOUETTES, len(rows))).astype(int)]
    rows = rows[results.groups[rows] >= 0]
    groups = results.groups[rows]
    if not 1 < len(np.unique(groups)) < len(groups):
        print(f"note: no silhouette: {split} needs two clusters and more images than clusters")
        return None
    scores = silhouette_samples(results.x_NP[rows], groups)
    return figures.silhouette_profile(scores, groups, results.grouping.labels, results.group_colors)


def picture_rows(results: Results) -> Figure:
    """The pictures nearest to each centroid, and the least certain ones."""
    names = results.grouping.labels
    sizes = np.bincount(1 + results.groups, minlength=1 + len(names))[1:]
    largest = np.sort(np.argsort(-sizes, kind="stable")[: figures.CLUSTER_ROWS])
    if len(largest) < len(sizes):
        print(f"note: pictures of the {len(largest)} largest of {len(sizes)} groups only")
    rows = []
    for g in largest[sizes[largest] > 0]:
        own = np.flatnonzero(results.groups == g)
        nearest = own[np.argsort(results.distance[own], kind="stable")[:PICTURES]]
        unsure = own[np.argsort(results.certainty[own], kind="stable")[:PICTURES]]
        rows.append((names[g], results.pictures(nearest), results.pictures(unsure)))
    return figures.cluster_pictures(rows, ("Nearest to the centroid", "Least certain"))
