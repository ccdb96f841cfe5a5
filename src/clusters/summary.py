"""What clustering prints: sizes, scores and notes about them."""

from src.clusters.trust import describe
from src.evaluation.tables import CLUSTERINGS, COLUMNS, class_line, summary_table
from src.storage.scores import PcaScores, ProbeScores, Scores, SeedScores, used_splits

LOW_VARIANCE = 0.95


def metrics_report(metrics: Scores) -> str:
    """What metrics.json says about the clusters: sizes, scores, and notes about both."""
    fit_on, splits = metrics["fit"]["fit_on"], used_splits(metrics)
    sizes = splits[fit_on]["cluster_sizes"]
    lines = [f"k-means: {len(sizes)} clusters of {fit_on}, {min(sizes):,} to {max(sizes):,} images"]
    if sample := metrics["fit"].get("sample"):
        lines.append(
            f"note: found in a random sample of {sample:,} of the {sum(sizes):,} images of "
            f"{fit_on}; all of them are assigned"
        )
    if empty := sizes.count(0):
        lines.append(f"note: {empty} clusters are empty: K is too large for these features")
    counts = [f"{count:,} in {split}" for split, count in metrics["unusual"].items()]
    lines.append(f"outliers: {', '.join(counts)}")
    for split, scores in splits.items():
        if undefined := [name for key, name in COLUMNS.items() if scores.get(key, 0) is None]:
            names = ", ".join(undefined)
            lines.append(f"note: {split}: {names} undefined with one class or one cluster")
    labeled = [
        f"{split}, {class_line(scores['per_class'])}"
        for split, scores in splits.items()
        if "per_class" in scores
    ]
    lines += labeled[-1:]
    lines += ["", summary_table(metrics), ""]
    if "linear_probe" in metrics:
        lines += [probe_line(metrics["linear_probe"]), ""]
    if "trust" in metrics:
        lines.append(f"trust: {describe(metrics['trust'])}")
    if "seeds" in metrics:
        lines += seed_lines(metrics["seeds"])
    return "\n".join(lines)


def seed_lines(seeds: SeedScores) -> list[str]:
    """Mean and standard deviation of each score, a line for each clustering and split."""
    lines = []
    for key, title in CLUSTERINGS.items():
        for split, scores in seeds.get(key, {}).items():
            spreads = [
                f"{name.replace('_', ' ')} {value['mean']:.3f} ± {value['std']:.3f}"
                for name, value in scores.items()
                if value
            ]
            lines.append(f"{split}, {title}, over {seeds['count']} seeds: {', '.join(spreads)}")
    return lines


def pca_lines(pca: PcaScores, dim: int, wanted: int) -> str:
    """How much of `dim` features its components keep, and a note if that is little."""
    kept, explained = pca["components"], pca["explained_variance"]
    text = (
        f"pca: {dim:,} features reduced to {kept} components, which keep {explained:.1%} of the "
        f"variance (effective rank of the features {pca['effective_rank']:.1f})"
    )
    if kept < wanted:
        text += (
            f"\nnote: the centered features span {kept} dimensions, fewer than "
            f"--components {wanted}"
        )
    elif explained < LOW_VARIANCE:
        text += f"\nnote: less than {LOW_VARIANCE:.0%}; --components {2 * kept} would keep more"
    return text


def probe_line(probe: ProbeScores) -> str:
    fit_on, scored_on, folds = probe["fit_on"], probe["scored_on"], probe["folds"]
    on = f"on {scored_on}" if scored_on != fit_on else f"on {fit_on} itself, cross-validated,"
    return (
        f"linear probe: accuracy {probe['accuracy']:.3f} {on} of a classifier that learned the "
        f"labels of {fit_on} (C {probe['C']:.3g} by {folds}-fold cross-validation); the clusters "
        "did not"
    )
