"""The pictures of the data set that are most similar to new ones."""

import numpy as np

from dataset.load_dataset import Dataset, image_paths
from src.evaluation.neighbors import CosineBank
from src.storage.artifacts import FEATURES, Manifest


class SimilarPictures:
    """Exact neighbors by the cosine of the features, among all splits together.

    Args:
        dataset: for the names of the pictures; without any, they are called `train[12]`.
    """

    def __init__(self, manifest: Manifest, dataset: Dataset | None):
        splits = manifest.extraction["dataset"]["splits"]
        self.bank = CosineBank(np.concatenate([manifest.load(FEATURES, s) for s in splits]))
        self.names = image_paths(splits, dataset)

    def find(self, features_BD: np.ndarray, k: int) -> list[list[tuple[str, float]]]:
        """For each of B new pictures the name and the similarity, from -1 to 1, of its k most
        similar pictures, most similar first, or of all if there are fewer."""
        similarity, rows = self.bank.nearest(features_BD, k)
        return [
            [(self.names[row], value) for value, row in zip(*picture, strict=True)]
            for picture in zip(similarity.tolist(), rows.tolist(), strict=True)
        ]
