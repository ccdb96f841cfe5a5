"""Groups of copies of one picture: resized, compressed again, cropped by a few percent, mirrored,
made brighter or darker.

Candidates are the nearest neighbors of every picture and of its mirror image among 8 x 8 gray
values. Where many are copies, others come into sight once these are left out. Candidates are then
aligned: scale and shift are found by Gauss-Newton steps on 32 x 32 gray values (Lucas & Kanade
1981). The correlation of the details decides, since low frequencies alone agree in many pictures of
sky and sea; and the colors must agree. No features are needed: among those of a weak network a
mirrored copy can be far from its picture.

Shape letters: N images of all splits, B pairs, S = 32 pixels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from src.evaluation.neighbors import nearest
from src.evaluation.sampling import scored_rows

SIDE, COARSE = 32, 8
BLOCK = 512
"""Images, or pairs, in memory at a time."""
NEIGHBORS = 5
CANDIDATE = 0.87
"""Lowest cosine of 8 x 8 centered gray values; 1% of altered copies are below 0.89."""
SAME = 0.87
"""Lowest correlation of the details; docs/log.md has what it finds and misses."""
COLORS, COLOR, COLOR_SHARE = 4, 3.5, 0.2
"""Largest mean difference of colors (red and blue minus green, 0 to 255) on 4 x 4 patches, plus a
share of their mean deviation."""
STRICT = 0.98
"""SAME if more than `MANY` of the images, copies left out, correlate by `ALIKE` with `OTHERS` more:
such images, like digits, are so similar that copies do not stand out."""
ALIKE, OTHERS, MANY = 0.7, 2, 0.25
STEPS = 3
LIMIT = 0.12
"""Largest scale and shift, in half widths: two copies, each cropped by 5 %, differ by 0.1."""


@torch.no_grad()
def near_duplicates(images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The number of each image's group of copies, across splits, -1 for an image without copies.

    Pictures of a single color have no details, so they are in no group. Of very many images, copies
    of the `scored_rows` are looked for, among all.

    Args:
        images: for every split uint8 (N, 3, S, S); memory-mapped ones are read in blocks.

    Returns:
        For every split int64 (N,); groups count from 0.
    """
    starts = [(split, i) for split, x in images.items() for i in range(0, len(x), BLOCK)]
    reduced = [_gray_and_color(images[split][i : i + BLOCK]) for split, i in starts]
    gray_NSS, color_N = map(torch.cat, zip(*reduced, strict=True))
    count, (first, second) = len(gray_NSS), _copies(gray_NSS, color_N).numpy()
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    component_N = connected_components(graph, directed=False)[1]
    has_copies = np.bincount(component_N) > 1
    number = np.where(has_copies, has_copies.cumsum() - 1, -1)[component_N].astype(np.int64)
    ends = np.cumsum([len(x) for x in images.values()])[:-1]
    return dict(zip(images, np.split(number, ends), strict=True))


def crossing(groups: dict[str, np.ndarray]) -> int:
    """How many groups have images in more than one split."""
    of_splits = [np.unique(number[number >= 0]) for number in groups.values()]
    return int((np.unique(np.concatenate(of_splits), return_counts=True)[1] > 1).sum())


def _gray_and_color(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """uint8 (B, 3, ., .) to gray values (B, S, S), in float16 to save memory, and to red and blue
    minus green (B, 2, 4, 4)."""
    rgb = F.interpolate(
        torch.tensor(np.ascontiguousarray(images)).float(), size=(SIDE, SIDE), mode="area"
    )
    color = F.avg_pool2d(rgb[:, [0, 2]] - rgb[:, [1]], SIDE // COLORS)
    return rgb.mean(1).half(), color


def _copies(gray_NSS: Tensor, color_N: Tensor) -> Tensor:
    """Pairs of copies, (2, B).

    Copies crowd the nearest neighbors. So of every set of them one image is kept, and those whose
    neighbors are left out look for others, until there is nothing left to leave out.
    """
    kept, asking = torch.arange(len(gray_NSS)), torch.from_numpy(scored_rows(len(gray_NSS)))
    was_asked_N = torch.zeros(len(gray_NSS), dtype=torch.bool)
    was_asked_N[asking] = True
    alike, same, correlation = torch.empty(2, 0).long(), torch.empty(2, 0).long(), torch.empty(0)
    while len(asking):
        pairs, is_mirrored = _candidates(gray_NSS, kept, asking)
        similarity = _similarities(gray_NSS, color_N, pairs, is_mirrored)
        is_same = similarity >= SAME
        same = torch.cat([same, pairs[:, is_same]], 1)
        correlation = torch.cat([correlation, similarity[is_same]])
        left_out_N = _left_out(pairs[:, is_same], len(gray_NSS))
        alike = torch.cat([alike, pairs[:, similarity > ALIKE]], 1).unique(dim=1)
        alike = alike[:, ~left_out_N[alike].any(0)]
        kept = kept[~left_out_N[kept]]
        asking = pairs[:, left_out_N[pairs].any(0)].unique()
        asking = asking[~left_out_N[asking]]
    others_N = torch.bincount(alike.flatten(), minlength=len(gray_NSS))[kept[was_asked_N[kept]]]
    limit = STRICT if (others_N >= OTHERS).float().mean() > MANY else SAME
    return same[:, correlation >= limit]


def _left_out(pairs: Tensor, count: int) -> Tensor:
    """bool (N,), images to leave out so that no pair is left; those with most copies stay."""
    copies_N = torch.bincount(pairs.flatten(), minlength=count)
    first, second = pairs
    stays, goes = torch.where(copies_N[second] > copies_N[first], pairs.flip(0), pairs)
    order = np.lexsort((stays.numpy(), -copies_N[stays].numpy()))
    left_out = [False] * count
    for one, other in zip(stays[order].tolist(), goes[order].tolist(), strict=True):
        left_out[other] |= not left_out[one]
    return torch.tensor(left_out)


def _candidates(gray_NSS: Tensor, kept: Tensor, asking: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of `kept` images, one of them `asking`, int64 (2, B), and whether the second is
    mirrored, bool (B,)."""
    parts = kept.split(BLOCK)  # little memory
    coarse = torch.cat([F.avg_pool2d(gray_NSS[part].float(), SIDE // COARSE) for part in parts])
    coarse -= coarse.mean((1, 2), keepdim=True)
    bank, own = F.normalize(coarse.flatten(1)), torch.searchsorted(kept, asking)
    found = []
    for mirrored in (False, True):
        queries = F.normalize(coarse[own].flip(2).flatten(1)) if mirrored else bank[own]
        cosine, near = nearest(bank, queries, NEIGHBORS, None if mirrored else own)
        row, column = (cosine > CANDIDATE).nonzero().T
        pair = torch.stack([asking[row], kept[near[row, column]]]).sort(dim=0).values
        pair = torch.cat([pair, torch.full((1, len(row)), int(mirrored))])
        found.append(pair[:, pair[0] < pair[1]].unique(dim=1))  # each found the other
    pairs = torch.cat(found, 1)
    return pairs[:2], pairs[2].bool()


def _similarities(gray_NSS: Tensor, color_N: Tensor, pairs: Tensor, is_mirrored: Tensor) -> Tensor:
    """Of pairs (2, B), the correlation (B,) of their details; 0 if their colors differ."""
    similarity = torch.zeros(len(is_mirrored))
    for start in range(0, len(is_mirrored), BLOCK):
        part = slice(start, start + BLOCK)
        one, other = pairs[:, part]
        first, second = gray_NSS[one].float(), gray_NSS[other].float()
        brighter = (first.mean((1, 2)) / second.mean((1, 2)).clamp_min(1)).clamp(0.8, 1.25)
        colors = color_N[other] * brighter[:, None, None, None]
        similarity[part] = torch.where(
            _same_colors(color_N[one], colors, is_mirrored[part]),
            _similarity(first, second, is_mirrored[part]),
            0,
        )
    return similarity


def _similarity(first: Tensor, second: Tensor, is_mirrored: Tensor) -> Tensor:
    """The correlation (B,) of the details of two aligned pictures, each (B, S, S), where they
    overlap."""
    target, moving = first, torch.where(is_mirrored[:, None, None], second.flip(2), second)
    x = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1  # as grid_sample counts
    motion = torch.zeros(len(target), 3)  # scale - 1, shift to the right, shift down
    for _ in range(STEPS):
        warped, overlap = _warp(moving, motion)
        down, right = (slope * SIDE / 2 for slope in torch.gradient(warped, dim=(1, 2)))
        # target = gain * (warped + motion * slopes) + offset, solved by least squares
        columns = (x * right + x[:, None] * down, right, down, warped, torch.ones_like(warped))
        basis = (torch.stack(columns, -1) * overlap[..., None]).flatten(1, 2)
        normal = basis.mT @ basis
        normal += torch.diag_embed(1e-4 * normal.diagonal(dim1=1, dim2=2) + 1e-6)
        goal = basis.mT @ (target * overlap).flatten(1)[..., None]
        solution = torch.linalg.solve(normal, goal)[..., 0]
        motion = (motion + solution[:, :3] / solution[:, 3:4].clamp_min(0.3)).clamp(-LIMIT, LIMIT)
    warped, overlap = _warp(moving, motion)
    return _correlation(_details(target), _details(warped), overlap)


def _same_colors(first: Tensor, second: Tensor, is_mirrored: Tensor) -> Tensor:
    """Whether the colors of pairs, each (B, 2, 4, 4), may be those of copies, bool (B,)."""
    second = torch.where(is_mirrored[:, None, None, None], second.flip(3), second)
    varies = (first - first.mean((2, 3), keepdim=True)).abs().mean((1, 2, 3))
    return (first - second).abs().mean((1, 2, 3)) <= COLOR + COLOR_SHARE * varies


def _warp(pictures: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures scaled and shifted, and where they lie inside, 1 or 0."""
    scale, right, down = motion.T
    zero = torch.zeros_like(scale)
    rows = [torch.stack(row, 1) for row in ((1 + scale, zero, right), (zero, 1 + scale, down))]
    grid = F.affine_grid(torch.stack(rows, 1), [len(pictures), 1, SIDE, SIDE], align_corners=False)
    warped = F.grid_sample(pictures[:, None], grid, padding_mode="border", align_corners=False)
    return warped[:, 0], (grid.abs() <= 1).all(-1).float()


def _details(pictures: Tensor) -> Tensor:
    """The picture minus itself blurred by a Gaussian of 2 pixels."""
    weights = torch.exp(-torch.arange(-6.0, 7).square() / 8)
    weights = (weights / weights.sum())[None, None, None]
    blurred = F.pad(pictures[:, None], (6, 6, 6, 6), mode="reflect")
    return pictures - F.conv2d(F.conv2d(blurred, weights), weights.mT)[:, 0]


def _correlation(first: Tensor, second: Tensor, overlap: Tensor) -> Tensor:
    size = overlap.sum((1, 2), keepdim=True)
    first, second = (
        (x - (x * overlap).sum((1, 2), keepdim=True) / size) * overlap for x in (first, second)
    )
    lengths = first.norm(dim=(1, 2)) * second.norm(dim=(1, 2))
    return (first * second).sum((1, 2)) / lengths.clamp_min(1)
