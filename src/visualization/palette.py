"""Colors that people with any common color blindness can tell apart."""

from collections.abc import Sequence

import numpy as np

BASE = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00",
    "#882255", "#ddcc77", "#4848f2", "#661100",
)  # fmt: skip
"""Six colors of Okabe & Ito 2008, "Color Universal Design", and four chosen to stay as far from
them and each other in CIELAB as they are, to the normal eye and in simulated red and green
blindness (Machado et al. 2009)."""

UNKNOWN = "#b4b8be"
"""For images without a class."""

_SHADES = (0.0, 0.5, -0.4, 0.25, -0.2)
"""Every further ten colors: towards white where positive, towards black where negative."""


def colors(count: int) -> list[str]:
    """`count` colors as #rrggbb: the ten of `BASE`, then their tints and shades.

    Beyond ten no set of colors can be told apart at a glance: write the number beside them too.
    """
    return [
        _shade(BASE[i % len(BASE)], _SHADES[i // len(BASE) % len(_SHADES)]) for i in range(count)
    ]


def cluster_colors(class_of_cluster: Sequence[int] | np.ndarray, classes: int) -> list[str]:
    """The color of each cluster: of the class that it is matched to, as `colors(classes)` has
    it, so that clusters and classes compare; of no class where that is -1."""
    palette = colors(classes + len(class_of_cluster))
    spare = iter(palette[classes:])
    return [palette[c] if c >= 0 else next(spare) for c in class_of_cluster]


def _shade(color: str, amount: float) -> str:
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    mixed = rgb + abs(amount) * ((255 if amount > 0 else 0) - rgb)
    return "#" + "".join(f"{round(value):02x}" for value in mixed)
