"""Prompts to fixed-shape batches: one shared prefix, rows sorted by length, few widths.

Three savings, none of which changes a number:

- the tokens that ALL prompts begin with (the template's preamble) are a prefix that runs once, for
  one row, if there are rows enough; its keys and values serve every row of every batch;
- rows are sorted by length, so that a batch pads little;
- the batches' widths are rounded up to at most `MAX_WIDTHS` values, those that make padding and
  compilation together cheapest.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

MAX_WIDTHS = 6
_ROUND = 8


class Batch(NamedTuple):
    """Rows of one shape. The last batch repeats its last row up to the size; `numbers` does not.

    numbers: int [n], where the first n rows stand in the caller's order.
    tokens: int32 [B, T], LEFT-padded with zeros, without the shared prefix.
    lengths: int32 [B], real tokens of each row, at least 1.
    """

    numbers: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """int [B]: the caller's row of every row of the batch, repeats included."""
        spare = len(self.tokens) - len(self.numbers)
        return np.concatenate([self.numbers, np.repeat(self.numbers[-1:], spare)])


def shared_prefix(prompts: Sequence[np.ndarray]) -> int:
    """How many leading tokens all prompts share, leaving every prompt at least one of its own.

    Example:
      >>> shared_prefix([np.array([1, 2, 3]), np.array([1, 2])])
      1
    """
    width = min(map(len, prompts)) - 1
    heads = np.stack([np.asarray(p[:width]) for p in prompts])  # [n, width]
    differ = (heads != heads[:1]).any(axis=0)
    return int(differ.argmax()) if differ.any() else max(width, 0)


def worth_sharing(tokens: int, rows: int, price: float) -> bool:
    """Whether a prefix saves more than the one program costs that it takes."""
    return tokens * (rows - 1) > price


def compile_price(params: Any) -> float:
    """How many padded tokens cost as much as one more compilation: about 5 s at 4e10 flop/s.

    A forward pass takes about 2 flops a parameter and token. For a tiny model one width is best,
    for a large one the padding is what counts.
    """
    size = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return 5 * 4e10 / (2 * float(size))


def widths(longest: Sequence[int], rows: int = 1, price: float = 0.0) -> list[int]:
    """The at most `MAX_WIDTHS` widths that cost least: exact, by dynamic programming.

    Args:
      longest: the longest row of each batch.
      rows: rows a batch.
      price: padded tokens that one more width must save.

    Returns:
      Ascending widths, multiples of 8; the last one holds the longest row.

    Example:
      >>> widths([10, 11, 60])
      [16, 64]
    """
    values, counts = np.unique(-(-np.asarray(longest) // _ROUND) * _ROUND, return_counts=True)
    n = len(values)
    total = np.concatenate([[0], np.cumsum(counts)]) * rows
    # cost[i, j]: values[:j] in i widths, each the largest value of its group
    cost = np.full((MAX_WIDTHS + 1, n + 1), np.inf)
    cost[0, 0] = 0
    cut = np.zeros((MAX_WIDTHS + 1, n + 1), int)
    for i in range(1, MAX_WIDTHS + 1):
        for j in range(1, n + 1):
            options = cost[i - 1, :j] + values[j - 1] * (total[j] - total[:j]) + price
            cut[i, j] = int(options.argmin())
            cost[i, j] = options[cut[i, j]]
    chosen, j = [], n
    for i in range(int(cost[:, n].argmin()), 0, -1):
        chosen.append(int(values[j - 1]))
        j = cut[i, j]
    return chosen[::-1]


def make(
    prompts: Sequence[np.ndarray],
    batch: int,
    *,
    share: bool = True,
    multiple: int = 1,
    longest: int | None = None,
    price: float = 0.0,
) -> tuple[np.ndarray, list[Batch]]:
    """Sorts, cuts and pads.

    Args:
      prompts: token arrays, none empty, in the caller's order.
      batch: rows a batch at most; fewer where that makes all batches even.
      share: look for a shared prefix (False: every row carries its whole prompt).
      multiple: the rows of a batch are a multiple of this, as `batch` is.
      longest: prefix and width together stay within this (where a model's cache ends); every
        prompt must.
      price: see `compile_price`.

    Returns:
      (prefix int32 [P], list of Batch, longest first so that memory runs out at once or never).

    Raises:
      ValueError: no prompts, an empty prompt, one beyond `longest`, or batch < 1.
    """
    if not prompts or min(map(len, prompts)) == 0 or batch < 1:
        raise ValueError(
            f'need prompts of at least one token and a batch of at least 1, got {len(prompts)} '
            f'prompts, the shortest {min(map(len, prompts), default=0)} tokens, batch={batch}'
        )
    cut = shared_prefix(prompts) if share else 0
    cut = cut if worth_sharing(cut, len(prompts), price) else 0
    order = np.argsort([-len(p) for p in prompts], kind='stable')
    rows = _even(len(prompts), batch, multiple)
    groups = [order[i : i + rows] for i in range(0, len(order), rows)]
    sizes = widths([len(prompts[g[0]]) - cut for g in groups], rows, price)
    if longest is not None:
        sizes = [min(size, longest - cut) for size in sizes]
    made = [_pad([prompts[i][cut:] for i in g], g, rows, sizes) for g in groups]
    return np.asarray(prompts[0][:cut], np.int32), made


def _even(total: int, batch: int, multiple: int) -> int:
    """Rows a batch: as many batches as `batch` needs, with as few repeated rows as can be."""
    rows = -(-total // -(-total // batch))
    return -(-rows // multiple) * multiple


def least(sizes: Sequence[int], length: int) -> int:
    """The first of ascending sizes that holds a row.

    Raises:
      ValueError: none does.
    """
    for size in sizes:
        if size >= length:
            return size
    raise ValueError(
        f'a row of {length} tokens (besides what all rows begin with) is too long: the model has '
        f'positions for {sizes[-1]}. Shorten it, or take another model'
    )


def _pad(rows: list[np.ndarray], numbers: np.ndarray, size: int, sizes: list[int]) -> Batch:
    width = least(sizes, len(rows[0]))
    rows = rows + [rows[-1]] * (size - len(rows))
    tokens = np.zeros((size, width), np.int32)
    for out, row in zip(tokens, rows, strict=True):
        out[width - len(row) :] = row
    return Batch(numbers, tokens, np.array([len(r) for r in rows], np.int32))
