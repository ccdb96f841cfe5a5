"""Nearest neighbors by cosine similarity, on every core: exact ones, in blocks, up to half a
million rows; above, approximate ones where FAISS is installed.

Shape letters: N rows of the bank, M queries, D features, k neighbors.
"""

from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.runtime.cli import progress

PARTS = 32
"""Of a row of similarities, see `_largest`."""
EXACT_LIMIT = 500_000
"""Rows; the time of exact neighbors grows with the square, here to 12 minutes on one core."""


@torch.no_grad()
def nearest_neighbors(
    bank_ND: np.ndarray,
    queries_MD: np.ndarray,
    k: int,
    leave_one_out: bool = False,
    block: int = 256,
) -> tuple[Tensor, Tensor]:
    """The k rows of the bank most similar to each query, most similar first.

    Memory for `block` x N similarities is all it takes beside the rows, whatever M is.

    Args:
        bank_ND: numbers of any real dtype, as the queries.
        k: cut to the number of rows that may be neighbors.
        leave_one_out: the queries are the bank, and no row is its own neighbor.

    Returns:
        Cosine similarities, float32 (M, k), and rows of the bank, int64 (M, k).
    """
    bank = _unit(bank_ND)
    k = min(k, len(bank) - leave_one_out)
    if len(bank) > EXACT_LIMIT:
        if find_spec("faiss"):
            return _approximate(bank, queries_MD, k, leave_one_out)
        print(f"note: exact neighbors of {len(bank):,} rows; faster with: pip install faiss-cpu")
    width = -(-len(bank) // PARTS) * PARTS
    similarity = torch.full((block, width), -torch.inf)  # what fills up the last part is never near
    similarities, rows = torch.empty(len(queries_MD), k), torch.empty(len(queries_MD), k).long()
    starts = range(0, len(queries_MD), block)
    for start in progress(starts, desc="neighbors", leave=False, delay=2):
        queries = _unit(queries_MD[start : start + block])
        part = similarity[: len(queries)]
        torch.mm(queries, bank.T, out=part[:, : len(bank)])
        if leave_one_out:
            part.diagonal(start).fill_(-torch.inf)
        stop = start + len(queries)
        similarities[start:stop], rows[start:stop] = _largest(part, k)
    return similarities, rows


def _approximate(
    bank: Tensor, queries_MD: np.ndarray, k: int, leave_one_out: bool
) -> tuple[Tensor, Tensor]:
    """The same from an inverted file (Sivic & Zisserman 2003): rows in 4 sqrt(N) cells, of which
    the 64 nearest to a query are searched."""
    import faiss

    rows, cells = bank.numpy(), int(4 * len(bank) ** 0.5)
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(bank.shape[1]), bank.shape[1], cells, faiss.METRIC_INNER_PRODUCT
    )
    index.train(rows[:: max(1, len(rows) // (40 * cells))])  # pyright: ignore[reportCallIssue]
    index.add(rows)  # pyright: ignore[reportCallIssue]
    index.nprobe = 64
    queries = rows if leave_one_out else _unit(queries_MD).numpy()
    similarity, found = index.search(queries, k + leave_one_out)  # pyright: ignore[reportCallIssue]
    if leave_one_out:
        others = found != np.arange(len(found))[:, None]
        others[others.all(axis=1), -1] = False  # the row itself was not found: drop the farthest
        similarity, found = (a[others].reshape(len(a), k) for a in (similarity, found))
    return torch.from_numpy(similarity), torch.from_numpy(found)


def _unit(rows_ND: np.ndarray) -> Tensor:
    return F.normalize(torch.tensor(np.asarray(rows_ND, np.float32)), dim=1)


def _largest(x_MN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`x_MN.topk(k)`, several times faster where N is far above k.

    Columns N / PARTS apart form a group. The k largest numbers lie in the k groups with the largest
    maxima: any other group has k numbers above its own.
    """
    groups_MG = x_MN.view(len(x_MN), PARTS, -1)
    if groups_MG.shape[2] <= 4 * k:
        return x_MN.topk(k)
    best_Mk = groups_MG.amax(dim=1).topk(k).indices
    candidates = groups_MG.gather(2, best_Mk[:, None].expand(-1, PARTS, -1)).flatten(1)
    values, places = candidates.topk(k)
    return values, places // k * groups_MG.shape[2] + best_Mk.gather(1, places % k)
