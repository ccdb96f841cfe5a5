"""Colors that people with any common color blindness can tell apart."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_hex, to_rgb

BASE = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00",
    "#882255", "#ddcc77", "#4848f2", "#661100",
)  # fmt: skip
"""Six colors of Okabe & Ito 2008, "Color Universal Design", and four more. The four keep the
smallest CIELAB distance of the six, in normal vision and in simulated red and green blindness
(Machado et al. 2009)."""

UNKNOWN = "#b4b8be"
"""The color of images without a class."""

_SHADES = (0.0, 0.5, -0.4, 0.25, -0.2)
"""How each further ten colors are mixed: with white if positive, with black if negative."""


def colors(count: int) -> list[str]:
    """`count` colors as #rrggbb: the ten of `BASE`, then their tints and shades.

    More than ten colors cannot be told apart at a glance: also write the number.
    """
    palette = []
    for i in range(count):
        amount = _SHADES[i // len(BASE) % len(_SHADES)]
        r, g, b = (c + abs(amount) * ((amount > 0) - c) for c in to_rgb(BASE[i % len(BASE)]))
        palette.append(to_hex((r, g, b)))
    return palette


def cluster_colors(class_of_cluster: Sequence[int] | np.ndarray, classes: int) -> list[str]:
    """The color of each cluster: the one that `colors(classes)` gives to its class, so that
    clusters and classes compare; for a cluster without a class (-1) a color that no class has."""
    palette = colors(classes + len(class_of_cluster))
    spare = iter(palette[classes:])
    return [palette[c] if c >= 0 else next(spare) for c in class_of_cluster]
