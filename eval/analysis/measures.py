"""Pure functions of arrays: effective rank, norms, cosine. float64, whatever comes in."""

import math
from collections.abc import Sequence

import numpy as np


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """All singular values of `[n, m]`, descending: float64 [min(n, m)].

    Through the Gram matrix of the smaller side, which costs a fraction of an SVD; values below 1e-8
    of the largest are rounding, far less than a sum over the spectrum can see.

    Example:
      >>> singular_values(np.diag([3.0, 4.0, 0.0])).round(6).tolist()
      [4.0, 3.0, 0.0]
    """
    w = np.asarray(matrix, np.float64)
    w = w if w.shape[0] >= w.shape[1] else w.T
    return np.sqrt(np.maximum(np.linalg.eigvalsh(w.T @ w)[::-1], 0.0))


def effective_rank(values: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli, 2007).

        p_i = s_i / sum(s),   exp(-sum p_i log p_i)

    k equal values give k; one value gives 1.

    Args:
      values: singular values, not negative, in any order.

    Raises:
      ValueError: where all are zero: there is no direction to count.

    Example:
      >>> round(effective_rank(np.array([2.0, 2.0, 0.0])), 6)
      2.0
    """
    s = np.asarray(values, np.float64)
    if not s.size or s.min() < 0 or s.sum() <= 0:
        raise ValueError('effective_rank needs singular values of which one is positive')
    p = s[s > 0] / s.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def top_share(values: np.ndarray) -> float:
    """The largest singular value's share of the squared norm, s_1^2 / sum(s^2): 1 for rank one.

    Example:
      >>> round(top_share(np.array([3.0, 4.0])), 6)
      0.64
    """
    square = np.asarray(values, np.float64) ** 2
    return float(square.max() / square.sum())


def inner(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Inner products `<x_i, x_j>` of K arrays of one shape, summed in float64: [K, K].

    Those of arrays laid end to end are the sum of those of the parts.
    """
    flat = [np.asarray(a, np.float64).ravel() for a in arrays]
    return np.array([[float(x @ y) for y in flat] for x in flat])


def cosine(products: np.ndarray, squares: np.ndarray | None = None) -> np.ndarray:
    """`<x_i, x_j> / (|x_i| |x_j|)` of what `inner` gave; nan where one of the two is zero.

    Args:
      products: [K, K].
      squares: [K, K], `|x_i|^2` over the parts that i and j both have, where not all have all
        parts; None: the diagonal of `products`.

    Example:
      >>> x, y = np.array([3.0, 0.0]), np.array([3.0, 4.0])
      >>> cosine(inner([x, y])).round(6).tolist()
      [[1.0, 0.6], [0.6, 1.0]]
    """
    if squares is None:
        squares = np.broadcast_to(np.diag(products)[:, None], products.shape)
    with np.errstate(invalid='ignore', divide='ignore'):
        found = np.clip(products / np.sqrt(squares * squares.T), -1.0, 1.0)
    own = np.diag(squares) > 0
    np.fill_diagonal(found, np.where(own, 1.0, np.nan))  # without the last digit's rounding
    return found


def correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's correlation; None for fewer than two points or where one side does not vary.

    Example:
      >>> correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))
      1.0
      >>> correlation(np.array([1.0, 2.0]), np.array([5.0, 5.0])) is None
      True
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x @ y) / math.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def sign_test(gained: int, lost: int) -> float:
    """Two-sided exact p-value that changes in both directions are equally likely (McNemar).

    Args:
      gained: rows that became right.
      lost: rows that became wrong.

    Example:
      >>> sign_test(0, 5)
      0.0625
    """
    n, few = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, k) for k in range(few + 1)) / 2**n
    return min(1.0, 2.0 * tail)
