"""Exact nearest neighbors, by cosine similarity or by distance.

Shape letters: N rows of the bank, M queries, D features, k neighbors.
"""

import numpy as np
import torch
from torch import Tensor

from src.runtime.cli import progress

BLOCK = 256
"""Queries at a time: memory for BLOCK x N inner products."""
ROWS = 128
"""Rows in float64 at a time: few, which stay in the processor's cache."""


@torch.no_grad()
def nearest(
    bank_ND: Tensor, queries_MD: Tensor, k: int, own_M: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k rows of the bank with the largest inner products with each query, largest first.

    These are the most similar rows by cosine if all rows are `unit` (a `CosineBank` is more exact),
    and the nearest ones by Euclidean distance if all are `lifted`.

    Args:
        k: cut to the number of rows that may be neighbors.
        own_M: the row of the bank that is the query itself, which is not its own neighbor; -1 if
            the query is not in the bank.

    Returns:
        Inner products (M, k), and rows of the bank, int64 (M, k).
    """
    k = min(k, len(bank_ND) - (own_M is not None))
    values, rows = queries_MD.new_empty(len(queries_MD), k), torch.empty(len(queries_MD), k).long()
    for start in progress(range(0, len(values), BLOCK), desc="neighbors", leave=False, delay=2):
        part = slice(start, start + BLOCK)
        product = queries_MD[part] @ bank_ND.T
        if own_M is not None:
            is_in_bank = own_M[part] >= 0
            product[is_in_bank, own_M[part][is_in_bank]] = -torch.inf
        values[part], rows[part] = product.topk(k)
    return values, rows


def l2_normalized(rows_ND: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float64, in which the squares of all float32 numbers are exact
    enough; rows of zeros stay zero."""
    rows = np.asarray(rows_ND, np.float64)
    return rows / lengths(rows)


def lengths(rows_ND: np.ndarray) -> np.ndarray:
    """Of float64 rows, (N, 1); a tiny number for rows of zeros."""
    found = torch.linalg.vector_norm(torch.tensor(rows_ND), dim=1, keepdim=True)
    return found.clamp_min(torch.finfo(found.dtype).tiny).numpy()


def unit(rows_ND: np.ndarray) -> Tensor:
    """Rows of length 1, float32."""
    return torch.tensor(l2_normalized(rows_ND)).float()


class CosineBank:
    """Rows to find neighbors among by cosine similarity, also where all are nearly parallel, as
    with one large and constant dimension.

    The cosine of unit rows u and v is 1 - |u - v|²/2, which does not depend on the origin. With the
    origin among them, float32 resolves what differs between them, not what they share.

    Args:
        rows_ND: numbers of any real dtype, memory-mapped or not.
    """

    def __init__(self, rows_ND: np.ndarray):
        some = rows_ND[np.linspace(0, len(rows_ND) - 1, min(ROWS, len(rows_ND))).astype(int)]
        self._origin_D = torch.tensor(l2_normalized(some).mean(axis=0))
        self._rows_NE = self._moved(rows_ND)
        self._rows_NE[:, -1].neg_()

    def nearest(
        self, queries_MD: np.ndarray, k: int, own_M: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cosines, float32 (M, k), and rows of the bank, int64 (M, k), as `nearest`."""
        queries_ME = self._moved(queries_MD)
        half_M = queries_ME[:, -1].clone()
        queries_ME[:, -1] = 1  # the product is q·b - |b|²/2
        values, rows = nearest(self._rows_NE, queries_ME, k, own_M)
        return (1 - half_M[:, None] + values).clamp(-1, 1), rows

    def _moved(self, rows_ND: np.ndarray) -> Tensor:
        """Unit rows from the origin, and half their squared length, float32 (N, D + 1)."""
        out = torch.empty(len(rows_ND), rows_ND.shape[1] + 1)
        for start in range(0, len(rows_ND), ROWS):
            part = slice(start, start + ROWS)
            moved = torch.from_numpy(l2_normalized(rows_ND[part])) - self._origin_D
            out[part, :-1], out[part, -1] = moved, moved.square().sum(1) / 2
        return out


def lifted(bank_ND: np.ndarray, queries_MD: np.ndarray) -> tuple[Tensor, Tensor]:
    """Bank and queries, float64, with one more dimension: their inner products are q·b - |b|²/2,
    which is largest where |q - b| is smallest."""
    bank, queries = torch.tensor(bank_ND).double(), torch.tensor(queries_MD).double()
    half = bank.square().sum(1, keepdim=True) / 2
    return torch.cat([bank, -half], 1), torch.cat([queries, torch.ones(len(queries), 1)], 1)
