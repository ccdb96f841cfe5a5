"""Words for groups that nobody named, where the features come from a model that knows words.

A group stands for the mean of its images, a word for its row. Both are taken relative to the mean
of all images and of all words, since images and words lie in different parts of the space. The
nearest word by cosine is suggested, and given as a name if it leads the next word by `MARGIN`.

Shape letters: N images, D features, W words, G groups.
"""

from pathlib import Path

import numpy as np

from src.clusters.groups import Groups
from src.clusters.names import clean_name
from src.clusters.pca import l2_normalized
from src.evaluation.tables import aligned
from src.runtime.cli import UserError, printable
from src.storage.user_arrays import as_float32, foreign_features, read_lines

MARGIN = 0.2
"""Lead of the nearest word, in cosine. With class means in place of words (docs/log.md) 92% to 100%
of the words above it were right; where the right word was missing, it kept back 70% to 100%."""


def read_words(rows: Path | None, lines: Path | None, dim: int) -> tuple[np.ndarray, list[str]]:
    """float32 (W, D) and W words.

    Raises:
        UserError: a file is missing or damaged, they do not belong together, the features have
            another width, or a line cannot be a name.
    """
    if not rows or not lines:
        raise UserError("--words and --word-list belong together")
    words_WD = as_float32(foreign_features(rows, "--words"))
    words = read_lines(lines, "--word-list takes a text file, a word a line")
    if len(words) != len(words_WD) or len(words) < 2:
        raise UserError(
            f"--word-list {lines} has {len(words):,} lines, --words {rows} has {len(words_WD):,} "
            "rows: it must have a line for every row, and two or more"
        )
    if words_WD.shape[1] != dim:
        raise UserError(
            f"--words {rows} has {words_WD.shape[1]:,} features a row, the images have {dim:,}: "
            "use the text features of the same model"
        )
    names = [clean_name(word, f"{lines}: line {i}") for i, word in enumerate(words, start=1)]
    return words_WD, names


def nearest_words(
    x_ND: np.ndarray, groups_N: np.ndarray, count: int, words_WD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest word int (G,) of each of `count` groups, and its lead float (G,); a group without
    images has no lead."""
    present = [g for g in range(count) if (groups_N == g).any()]
    means_GD = np.stack(
        [l2_normalized(as_float32(x_ND[groups_N == g])).mean(axis=0) for g in present]
    )
    sizes = np.array([(groups_N == g).sum() for g in present])
    means_GD = l2_normalized(means_GD - sizes @ means_GD / sizes.sum())
    words_WD = l2_normalized(words_WD)
    cosine_GW = means_GD @ l2_normalized(words_WD - words_WD.mean(axis=0)).T
    second_G, first_G = np.sort(cosine_GW, axis=1)[:, -2:].T
    nearest, lead = np.zeros(count, int), np.zeros(count)
    nearest[present], lead[present] = cosine_GW.argmax(axis=1), first_G - second_G
    return nearest, lead


def with_words(
    groups: Groups, nearest: np.ndarray, lead: np.ndarray, words: list[str]
) -> dict[str, str]:
    """The names of clusters, by number; those without one have the word that leads by `MARGIN`."""
    found = {
        str(k): words[nearest[g]]
        for g, k in enumerate(groups.numbers)
        if k is not None
        and str(k) not in groups.given.names
        and groups.classes[g] < 0
        and lead[g] >= MARGIN
    }
    return groups.given.names | found


def words_table(groups: Groups, nearest: np.ndarray, lead: np.ndarray, words: list[str]) -> str:
    """The nearest word of each group as aligned text, and whether it becomes the name."""
    rows = [["group", "nearest word", "lead", ""]]
    names = with_words(groups, nearest, lead, words)
    for g, (name, k) in enumerate(zip(groups.names, groups.numbers, strict=True)):
        is_new = str(k) in names and str(k) not in groups.given.names
        note = "<- its name now" if is_new else "too close to the next" if lead[g] < MARGIN else ""
        rows.append([printable(name), printable(words[nearest[g]]), f"{lead[g]:.2f}", note])
    return aligned(rows, left=2)
