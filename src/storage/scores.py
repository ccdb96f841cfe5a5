"""The content of metrics.json: written by the clustering stage, read through
`Manifest.metrics`.

Shape letters: C classes, K clusters, P principal components.
"""

from typing import Literal

from typing_extensions import NotRequired, TypedDict

VERSION = 2
"""Of everything below; a file of another version is refused."""

ClusteringName = Literal["kmeans", "smoothed"]
"""K-means of the principal components, and of rows averaged with their neighbors."""

Verdict = Literal["clear", "partial", "no better than pixels", "no structure"]


class ClassScores(TypedDict):
    precision: float
    recall: float
    f1: float


class InternalScores(TypedDict):
    """None where undefined, see `internal_metrics`."""

    silhouette: float | None
    silhouette_error: NotRequired[float]
    """Standard error; only where the silhouette is that of a sample, see `internal_metrics`."""
    davies_bouldin: float | None


class LabelScores(TypedDict, total=False):
    """Absent without labels; None where undefined. See `external_metrics` and `knn_accuracy`."""

    hungarian_accuracy: float
    transferred_accuracy: float
    nmi: float | None
    ari: float | None
    confusion: list[list[int]]
    """Class, class of the cluster (-1 for none) and number of images, of every pair that occurs: a
    full matrix of thousands of classes would be large and nearly empty."""
    per_class: dict[str, ClassScores]
    knn_accuracy: float | None
    knn_error: float
    """Standard error; only where the queries are a sample."""


class SplitScores(InternalScores, LabelScores):
    """Of one clustering on one split."""

    images: int
    cluster_sizes: list[int]
    """K numbers of images."""


class ClusteringScores(TypedDict):
    splits: dict[str, SplitScores]


class FeatureScores(TypedDict):
    """Of the clusterings of one kind of features."""

    kmeans: ClusteringScores
    smoothed: NotRequired[ClusteringScores]
    """Absent with --no-smooth; otherwise later stages use these clusters."""


class FitScores(TypedDict):
    clusters: int
    fit_on: str
    """The split of PCA and K-means."""
    named_on: str | None
    """The split whose labels name the clusters; None without labels."""
    inertia: float
    """Of K-means of the principal components."""
    sample: NotRequired[int]
    """Images that K-means, smoothing and the head were fitted to, where these are not all of the
    split; see `src/evaluation/sampling.py`."""
    head_agreement: NotRequired[float]
    """Share of the fitted images that the head assigns as K-means of the smoothed rows did."""


class PcaScores(TypedDict):
    components: int
    explained_variance: float
    cumulative: list[float]
    """P shares of the variance."""
    effective_rank: float


class ScanScores(TypedDict):
    """Of every number of clusters that was tried; see `scan`."""

    picked: int
    runners_up: list[int]
    clusters: list[int]
    silhouette: list[float | None]
    davies_bouldin: list[float | None]
    stability: list[float]


class Spread(TypedDict):
    mean: float
    std: float


class SeedScores(TypedDict):
    """By split and score; None where a score is undefined."""

    count: int
    kmeans: dict[str, dict[str, Spread | None]]
    smoothed: NotRequired[dict[str, dict[str, Spread | None]]]


class ProbeFit(TypedDict):
    accuracy: float
    C: float
    """The inverse strength of the penalty."""
    folds: int


class ProbeScores(ProbeFit):
    fit_on: str
    scored_on: str


class Agreement(TypedDict):
    """See `src/clusters/trust.py`."""

    halves: float
    spread: float
    """Standard deviation of `halves` over the splits."""
    views: float | None


class TrustScores(Agreement):
    verdict: Verdict
    pixels: Agreement | None


class Scores(FeatureScores):
    version: int
    fit: FitScores
    pca: PcaScores
    unusual: dict[str, int]
    """Number of unusual images of each split."""
    scan: NotRequired[ScanScores]
    seeds: NotRequired[SeedScores]
    linear_probe: NotRequired[ProbeScores]
    baselines: NotRequired[dict[str, FeatureScores]]
    trust: NotRequired[TrustScores]
    """Absent for one cluster and for too few images."""


def used_splits(scores: FeatureScores) -> dict[str, SplitScores]:
    """The scores of the clusters that later stages use, by split."""
    return scores.get("smoothed", scores["kmeans"])["splits"]
