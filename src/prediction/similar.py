"""The pictures of the data set that are most similar to new ones.

Shape letters: B new pictures, N pictures of the data set, D features, k neighbors.
"""

import numpy as np
import torch

from dataset.load_dataset import Dataset
from src.storage.artifacts import FEATURES, Manifest


class SimilarPictures:
    """Exact neighbors by the cosine of the features, among all splits together; the features stay
    on disk, memory-mapped.

    Args:
        dataset: for the names of the pictures; without any, they are called `train[12]`.
    """

    def __init__(self, manifest: Manifest, dataset: Dataset | None):
        splits = manifest.extraction["dataset"]["splits"]
        self.banks = [manifest.load(FEATURES, split) for split in splits]
        self.lengths = [np.sqrt(np.einsum("nd,nd->n", bank, bank)) for bank in self.banks]
        self.names: list[str] = []
        for split, count in splits.items():
            names = dataset.splits[split].names if dataset else None
            self.names += names or [f"{split}[{i}]" for i in range(count)]

    def find(self, features_BD: np.ndarray, k: int) -> list[list[tuple[str, float]]]:
        """For every new picture the name and the similarity, from -1 to 1, of its k most similar
        pictures, most similar first, or of all if there are fewer."""
        lengths_B1 = np.linalg.norm(features_BD, axis=1, keepdims=True)
        products = [
            features_BD @ bank.T / np.maximum(lengths_B1 * lengths, 1e-12)
            for bank, lengths in zip(self.banks, self.lengths, strict=True)
        ]
        similarity_BN = torch.from_numpy(np.concatenate(products, axis=1))
        best = similarity_BN.topk(min(k, len(self.names)))
        return [
            [(self.names[row], value) for value, row in zip(values, rows, strict=True)]
            for values, rows in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
