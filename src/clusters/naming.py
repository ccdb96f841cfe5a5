"""Follow what a person said in names.json: carry it over to new clusters, and fit the head that
assigns new pictures to groups.

The head is the logistic regression of `head.py`, of the groups of the fitted images. A picture that
a person moved is an example too, of any split, and counts as much as `WEIGHT` others (docs/log.md).

Shape letters: N images, P principal components, G groups.
"""

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dataset.load_dataset import Dataset, reload_dataset
from src.clusters.carry_over import read_past, remember
from src.clusters.confidence import certainty
from src.clusters.groups import Groups, load_groups
from src.clusters.head import LinearHead, batches, fit_head
from src.clusters.names import read_names
from src.clusters.words import nearest_words, read_words, with_words, words_table
from src.runtime.cli import UserError, printable
from src.runtime.commands import command
from src.storage import artifacts
from src.storage.artifacts import FEATURES, NAMING, REDUCED, Manifest, Stage
from src.storage.files import replacing, write_json

WEIGHT = 3.0


def name_again(directory: Path) -> None:
    """Follow names.json without clustering again.

    Raises:
        UserError: there are no clusters or no names, or names.json is damaged.
    """
    with artifacts.only_writer(directory):
        _ = Manifest(directory).clustering
        if not os.path.lexists(directory / artifacts.NAMES):
            raise UserError(
                f"there is no {directory / artifacts.NAMES}: name clusters on the page "
                f"{directory / artifacts.REPORT}, and download the names into that folder"
            )
        remember_last(directory)
        follow(directory)
        say_what_is_older(directory)


def suggest(directory: Path, rows: Path | None, lines: Path | None) -> None:
    """Name the clusters that have no name by words, see `words.py`.

    Raises:
        UserError: there are no clusters, names.json is damaged, or as `read_words`.
    """
    with artifacts.only_writer(directory):
        manifest = Manifest(directory)
        fit_on = manifest.clustering["fit_on"]
        x_ND = manifest.load(FEATURES, fit_on)
        words_WD, words = read_words(rows, lines, x_ND.shape[1])
        remember_last(directory)
        groups = settled(manifest)
        found = nearest_words(x_ND, groups.of_images[fit_on], len(groups.names), words_WD)
        print(words_table(groups, *found, words))
        names = with_words(groups, *found, words)
        if names != groups.given.names:
            write_json(directory / artifacts.NAMES, replace(groups.given, names=names).content)
            follow(directory)
            say_what_is_older(directory)


def remember_last(directory: Path, pictures: Dataset | None = None) -> None:
    """Keep the clusters of every picture, unless they are remembered.

    Args:
        pictures: None looks for them.
    """
    with contextlib.suppress(UserError):  # of other features, or there are none
        manifest = Manifest(directory)
        past = read_past(directory, manifest.clusters_id)
        if past and (past["digests"] or not pictures):
            return
        with contextlib.suppress(UserError):
            pictures = pictures or reload_dataset(manifest.extraction["dataset"])
        names = None
        with contextlib.suppress(UserError):
            names = read_names(directory)
        remember(manifest, pictures, names and names.clusters)


def say_what_is_older(directory: Path) -> None:
    older = [name for name in (artifacts.REPORT, artifacts.IMAGES) if (directory / name).exists()]
    if older:
        shown = " and ".join(older)
        print(f"note: to bring {shown} up to date, run {command('visualize_features.py')}")


def settled(manifest: Manifest) -> Groups:
    """The groups, with names.json rewritten for the present clusters where it is of others, and
    with the digests of pictures; the earlier file is kept."""
    file, own = manifest.directory / artifacts.NAMES, manifest.clusters_id
    before, groups = read_names(manifest.directory), load_groups(manifest, notes := [])
    for note in notes:
        print(f"note: {printable(note)}")
    if before and before != groups.given:
        if before.clusters != own:
            kept = artifacts.old_names(manifest.directory, before.clusters)
            with replacing(kept) as temporary:
                temporary.write_bytes(file.read_bytes())
            print(f"kept the names of the earlier clusters as {kept}")
        write_json(file, groups.given.content)
    return groups


def follow(directory: Path) -> None:
    """Follow names.json, if there is one: write it for the present clusters, fit the head."""
    if not os.path.lexists(directory / artifacts.NAMES):
        return
    manifest = Manifest(directory)
    groups = settled(manifest)
    if groups.given.is_shaped:
        write_head(manifest, groups)
    counts = np.bincount(
        1 + np.concatenate([*groups.of_images.values()]), minlength=1 + len(groups.names)
    )
    shown = ", ".join(f"{name} {n:,}" for name, n in zip(groups.names, counts[1:], strict=True))
    moved = sum(int(of_split.sum()) for of_split in groups.moved.values())
    print(f"groups: {printable(shown)}; {moved:,} pictures moved, {counts[0]:,} ignored")


def write_head(manifest: Manifest, groups: Groups) -> None:
    """Fit the head of the groups, and write it with the certainty of every image."""
    reduced = {split: manifest.load(REDUCED, split) for split in groups.of_images}
    linear = fit_groups(groups, reduced, manifest.clustering["fit_on"])
    stage = Stage(manifest.directory, NAMING)
    stage.save(artifacts.GROUP_WEIGHTS, linear.weights.numpy())
    stage.save(artifacts.GROUP_BIAS, linear.bias.numpy())
    clustering = manifest.clustering
    is_smoothed = "head_agreement" in manifest.metrics()["fit"]
    scale = clustering["confidence_scale"] if is_smoothed else 1.0
    for split, x_NP in reduced.items():
        scores_NG = torch.cat([linear(x_BP) for x_BP in batches(x_NP)])
        sure_N = certainty(clustering["certainty"], scores_NG, scale).numpy()
        is_other = scores_NG.argmax(1).numpy() != groups.of_images[split]
        sure_N = np.where(groups.moved[split], 1, np.where(is_other, 0, sure_N))
        stage.save(artifacts.GROUP_CERTAINTY, sure_N, split)
    stage.record(
        {
            "clusters": manifest.clusters_id,
            "names": groups.given.digest,
            "groups": groups.names,
            "scale": scale,
        }
    )


def fit_groups(groups: Groups, reduced: dict[str, np.ndarray], fit_on: str) -> LinearHead:
    """Examples are the images of the split `fit_on` and those that were moved, none ignored.

    Args:
        reduced: by split the principal components (N, P).
    """
    rows = {
        split: np.flatnonzero((of >= 0) & (groups.moved[split] | (split == fit_on)))
        for split, of in groups.of_images.items()
    }
    x_NP, groups_N, moved_N = (
        np.concatenate([parts[split][own] for split, own in rows.items()])
        for parts in (reduced, groups.of_images, groups.moved)
    )
    return fit_head(x_NP, groups_N, len(groups.names), np.where(moved_N, WEIGHT, 1.0))
