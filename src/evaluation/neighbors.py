"""Exact nearest neighbors, by cosine similarity or by distance.

Shape letters: N rows of the bank, M queries, D features, k neighbors.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.runtime.cli import progress

BLOCK = 256
"""Queries at a time: memory for BLOCK x N inner products."""


@torch.no_grad()
def nearest(
    bank_ND: Tensor, queries_MD: Tensor, k: int, own_M: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k rows of the bank with the largest inner products with each query, largest first.

    These are the most similar rows by cosine if all rows are `unit`, and the nearest ones by
    Euclidean distance if all are `lifted`.

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


def unit(rows_ND: np.ndarray) -> Tensor:
    """Rows of length 1, float32."""
    return F.normalize(torch.tensor(np.asarray(rows_ND, np.float32)), dim=1)


def lifted(bank_ND: np.ndarray, queries_MD: np.ndarray) -> tuple[Tensor, Tensor]:
    """Bank and queries, float64, with one more dimension: their inner products are q·b - |b|²/2,
    which is largest where |q - b| is smallest."""
    bank, queries = torch.tensor(bank_ND).double(), torch.tensor(queries_MD).double()
    half = bank.square().sum(1, keepdim=True) / 2
    return torch.cat([bank, -half], 1), torch.cat([queries, torch.ones(len(queries), 1)], 1)
