"""The group of every image: what a person said, where they said something.

The most specific name of an image counts: the one it was moved to, that of its fine cluster, that
of its cluster; otherwise the class of its cluster, otherwise "cluster 7". Images of equal names are
one group. Tables, figures, sorted folders and the head for new pictures follow these groups.
Clusters, their numbers and their scores stay as they are.

Shape letters: N images, K clusters, F fine clusters, G groups.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from src.clusters.carry_over import at_home, carry, located, present_pictures, read_past
from src.clusters.head import ClusterHead, LinearHead
from src.clusters.names import Names, read_names
from src.runtime.cli import UserError
from src.runtime.commands import command
from src.storage import artifacts
from src.storage.artifacts import (
    ASSIGNMENTS,
    CLUSTER_TO_CLASS,
    FINE,
    FINE_TREE,
    GROUP_BIAS,
    GROUP_WEIGHTS,
    NAMING,
    Manifest,
    NamingRecord,
)


@dataclass(frozen=True)
class Groups:
    given: Names
    """What names.json says, for the present clusters."""
    names: list[str]
    """Of the groups; those of clusters first, by number."""
    numbers: list[int | None]
    """The first cluster with the name of each group; None if there is none."""
    classes: np.ndarray
    """int64 (G,), of its first cluster, otherwise the one of its name; -1 if there is none."""
    of_images: dict[str, np.ndarray]
    """By split int64 (N,), the group of every image, -1 where it is ignored."""
    moved: dict[str, np.ndarray]
    """By split bool (N,), whether a person moved the image."""

    @property
    def labels(self) -> list[str]:
        """For figures: the number, followed by the name if there is one."""
        pairs = zip(self.names, self.numbers, strict=True)
        return [
            name if k is None else str(k) if name == f"cluster {k}" else f"{k} → {name}"
            for name, k in pairs
        ]


def load_names(manifest: Manifest, notes: list[str]) -> Names:
    """What names.json says, for the present clusters.

    Args:
        notes: receives a line on names of other clusters.

    Raises:
        UserError: as `read_names`.
    """
    own, directory = manifest.clusters_id, manifest.directory
    names = read_names(directory) or Names(own)
    if names.clusters != own:
        file = directory / artifacts.NAMES
        old, new = read_past(directory, names.clusters), read_past(directory, own)
        if old and new:
            names, kept = carry(names, old, new, own)
            shares = ", ".join(f"{name} {share:.0%}" for name, share in kept.items())
            if shares:
                notes.append(f"{file} is of other clusters; pictures that keep a name: {shares}")
        else:
            names = replace(names, clusters=own, names={}, fine={})
            notes.append(
                f"{file} names clusters that are not known any more, so only pictures that were "
                "moved or ignored count: name the clusters again"
            )
    of_pictures = names.moved or names.ignored or names.digests
    return at_home(names, present_pictures(manifest)) if of_pictures else names


def cluster_names(manifest: Manifest, given: Names) -> list[str]:
    """Of the K clusters: the given name, otherwise the class, otherwise "cluster 7", or "unnamed
    cluster 7" if something else has that name: a cluster without a name joins nothing. The page
    has the same rule."""
    class_names = manifest.extraction["dataset"]["class_names"]
    parts = (given.names, given.fine, given.moved)
    taken = {*class_names, *(name for part in parts for name in part.values())}

    def default(k: int) -> str:
        name = f"cluster {k}"
        while name in taken:
            name = f"unnamed {name}"
        return name

    classes = [*class_names, None]
    class_K = manifest.load(CLUSTER_TO_CLASS)
    return [given.names.get(str(k)) or classes[c] or default(k) for k, c in enumerate(class_K)]


def load_groups(manifest: Manifest, notes: list[str]) -> Groups:
    """`notes` receives what does not fit, a line each.

    Raises:
        UserError: every picture of the split that was clustered is ignored, or as `read_names`.
    """
    given = load_names(manifest, notes)
    of_clusters = cluster_names(manifest, given)
    of_fine = [given.fine.get(str(f)) for f in range(len(manifest.load(FINE_TREE)) + 1)]
    new_names = {*filter(None, of_fine), *given.moved.values()}
    names = [*dict.fromkeys([*of_clusters, *sorted(new_names)])]
    index = {name: g for g, name in enumerate(names)}

    splits = manifest.extraction["dataset"]["splits"]
    clusters, fine = (
        np.concatenate([manifest.load(artifact, split) for split in splits])
        for artifact in (ASSIGNMENTS, FINE)
    )
    by_fine = np.array([index[name] if name else -1 for name in of_fine])[fine]
    by_cluster = np.array([index[name] for name in of_clusters])[clusters]
    groups = np.where(by_fine >= 0, by_fine, by_cluster)
    moved, rows = np.zeros(len(groups), bool), located(given, present_pictures(manifest))
    for key, name in given.moved.items():
        if key in rows:
            groups[rows[key]], moved[rows[key]] = index[name], True
    groups[[rows[key] for key in given.ignored if key in rows]] = -1
    notes += _misfits(given, len(of_clusters), len(of_fine), rows)

    numbers = [of_clusters.index(name) if name in of_clusters else None for name in names]
    if given.is_shaped:  # groups may be empty now
        present = np.unique(groups[groups >= 0])
        names, numbers = [names[g] for g in present], [numbers[g] for g in present]
        groups = np.where(groups < 0, -1, np.searchsorted(present, groups))
    class_names, class_K = (
        manifest.extraction["dataset"]["class_names"],
        manifest.load(CLUSTER_TO_CLASS),
    )
    class_of = {name: c for c, name in enumerate(class_names)}
    classes = [
        class_of.get(name, -1) if k is None else class_K[k]
        for name, k in zip(names, numbers, strict=True)
    ]
    ends = np.cumsum([*splits.values()])[:-1]
    parts = zip(splits, np.split(groups, ends), np.split(moved, ends), strict=True)
    by_split = {split: (of_split, were_moved) for split, of_split, were_moved in parts}
    fit_on = manifest.clustering["fit_on"]
    if (by_split[fit_on][0] < 0).all():
        file = manifest.directory / artifacts.NAMES
        raise UserError(f"{file} ignores every picture of {fit_on}: correct it")
    return Groups(
        given, names, numbers, np.array(classes),
        of_images={split: part for split, (part, _) in by_split.items()},
        moved={split: part for split, (_, part) in by_split.items()},
    )  # fmt: skip


def _misfits(given: Names, clusters: int, fine: int, rows: dict[str, int]) -> list[str]:
    """A line for each kind of thing in names.json that is not there."""
    notes = []
    kinds = (given.names, "cluster", clusters), (given.fine, "fine cluster", fine)
    for named, what, count in kinds:
        numbers = {str(k) for k in range(count)}
        if wrong := [key for key in named if key not in numbers]:
            notes.append(f"names.json names no {what} (0 to {count - 1}): {', '.join(wrong)}")
    pictures = dict.fromkeys((*given.moved, *given.ignored))
    if gone := [key for key in pictures if key not in rows]:
        notes.append(
            f"{len(gone):,} pictures that were moved or ignored are not here, such as {gone[0]}"
        )
    return notes


def fitted_to(manifest: Manifest, given: Names) -> NamingRecord | None:
    """What was fitted to just these names; None if nothing was, or names of clusters say it all."""
    fitted = manifest.naming
    return fitted if given.is_shaped and fitted and fitted["names"] == given.digest else None


def load_head(manifest: Manifest, given: Names, notes: list[str]) -> tuple[ClusterHead, list[str]]:
    """The head that assigns new pictures to clusters and groups, and the names of the groups.

    Args:
        notes: receives a line if no head was fitted to the names yet.
    """
    head, shown = ClusterHead.load(manifest), cluster_names(manifest, given)
    if fitted := fitted_to(manifest, given):
        linear = LinearHead(manifest.load(GROUP_WEIGHTS), manifest.load(GROUP_BIAS))
        head.groups, head.group_scale = linear, fitted["scale"]
        return head, fitted["groups"]
    if given.is_shaped:
        notes.append(
            "new pictures follow the names of clusters only: run "
            f"{command(*NAMING.split())}, so that they follow the other names too"
        )
    names = [*dict.fromkeys(shown)]
    head.group_of_cluster = torch.tensor([names.index(name) for name in shown])
    return head, names
