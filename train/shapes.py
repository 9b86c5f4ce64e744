"""The shapes of a run's micro-batches: few, since a program is compiled for each."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from train import forest
from train import packing as packing_lib
from train.packing import Shape, round_up

FINALISTS = 6  # shapes that the whole run is laid out in, of those that suit its fullest batches
FULLEST = 512  # micro-batches by which the finalists are chosen
WIDER = 1.5  # times max_length: rows wider than this have not paid in any data tried
PROGRAMS = 6  # shapes of a run's forests; an epoch of commonsense_170k has work for all
WORTH = 10  # updates that a further shape has to save: its program is compiled for longer than one


class Block(NamedTuple):
    """Some micro-batches as numbers.

    Attributes:
      lengths: int [M, B], tokens of each example; 0 for no example.
      labels: int [M, B], how many of them are labelled.
    """

    lengths: np.ndarray
    labels: np.ndarray

    def rows(self, width: int, packing: bool) -> int:
        """The most rows that one of the micro-batches needs."""
        return packing_lib.rows_needed(self.lengths, width) if packing else self.lengths.shape[1]

    def fullest(self, n: int) -> 'Block':
        """The `n` micro-batches with the most tokens."""
        most = np.argsort(-self.lengths.sum(axis=1), kind='stable')[:n]
        return Block(*(x[most] for x in self))


def choose_shape(
    blocks: Iterable[Block],
    longest: int,
    *,
    packing: bool,
    max_length: int,
    row_multiple: int,
    even: int | None = None,
) -> Shape:
    """The cheapest [R, T], and the smallest N, that fit every micro-batch of a run.

    Packed, a wider row wastes less and attends over more. The cost of a shape is

        R T (1 + T / even)        R T without `even`

    the narrower of two equals. With `even`, rows up to WIDER * max_length are weighed, as long as
    attention's R T^2 stays below that of one row of max_length for each example; without it rows
    up to max_length.

    Args:
      blocks: the run's micro-batches; gone through twice.
      longest: tokens of the longest example in them.
      packing, max_length, row_multiple, even: as for Batcher.
    """
    limit = max(round_up(longest, 8), max_length // 8 * 8)

    def rank(width: int, rows: int, batch: int) -> tuple[float, ...]:
        r = round_up(rows, row_multiple)
        too_wide = width > limit and r * width**2 > round_up(batch, row_multiple) * limit**2
        return too_wide, r * width * (1 + width / even if even else 1), width

    widths = [round_up(longest, 8)]
    if packing:
        widest = max(max_length, int(WIDER * max_length) if even else 0)
        widths = packing_lib.widths(longest, widest)
    if len(widths) > FINALISTS:
        most = [block.fullest(FULLEST) for block in blocks]
        few = Block(*map(np.concatenate, zip(*most, strict=True))).fullest(FULLEST)
        batch = few.lengths.shape[1]
        ranks = {width: rank(width, few.rows(width, packing), batch) for width in widths}
        widths = sorted(widths, key=ranks.__getitem__)[:FINALISTS]
    rows, labels, batch = dict.fromkeys(widths, 1), 1, 1
    for block in blocks:
        batch, labels = block.lengths.shape[1], max(labels, int(block.labels.sum(axis=1).max()))
        for width in widths:
            rows[width] = max(rows[width], block.rows(width, packing))
    best = min(widths, key=lambda width: rank(width, rows[width], batch))
    n = round_up(labels, math.lcm(8, row_multiple))
    return Shape(round_up(rows[best], row_multiple), best, n)


class Needs(NamedTuple):
    """What the updates of a run need in forests.

    Attributes:
      tokens, rows: int [U], of the largest tree of each (see `train.forest.Places`).
      labels: of the fullest micro-batch.
      width: of attention's rows, for which they were laid out.
    """

    tokens: np.ndarray
    rows: np.ndarray
    labels: int
    width: int


def forest_shapes(
    needs: Needs, *, row_multiple: int, even: int, programs: int
) -> tuple[forest.Shape, ...]:
    """Shapes of forests, the smallest first; an update takes the first that it fits.

    They differ in the tokens P of a tree, and each has the rows R that trees of up to P tokens
    need. A further shape is there where the run saves WORTH updates by it, an update costing
    P + R T^2 / even with the most rows of all.

    Args:
      needs: of the run.
      row_multiple: trees: the devices that share the rows.
      even: the row width at which attention takes as long as the rest of the model.
      programs: as many shapes at most.
    """
    width, labels = needs.width, round_up(needs.labels, math.lcm(8, row_multiple))
    sizes = _sizes(-(-needs.tokens // 8) * 8, int(needs.rows.max()) * width**2 / even, programs)
    rows = (int(needs.rows[needs.tokens <= size].max()) for size in sizes)
    return tuple(
        forest.Shape(row_multiple, size, r, width, labels)
        for size, r in zip(sizes, rows, strict=True)
    )


def _sizes(tokens: np.ndarray, fixed: float, programs: int) -> list[int]:
    """At most so many sizes that hold all updates, and leave the least of them unused.

    Example:
      >>> _sizes(np.array([8] * 40 + [16] * 3), 0.0, 3), _sizes(np.array([8] * 9 + [16]), 0.0, 3)
      ([8, 16], [16])
    """
    values, counts = np.unique(tokens, return_counts=True)
    first = np.concatenate([[0], counts.cumsum()])
    # least[k][j]: the fewest tokens of all updates up to values[j], in k sizes of which it is one
    least, came = [first[1:] * values], [np.zeros(len(values), int)]
    for _ in range(1, min(programs, len(values))):
        each = least[-1][:, None] + (first[1:] - first[1:, None]) * values
        each = np.where(np.tri(len(values), k=-1).T > 0, each, np.inf)
        came.append(each.argmin(axis=0))
        least.append(each.min(axis=0))
    mean = least[0][-1] / first[-1] + fixed
    k = 0
    while k + 1 < len(least) and least[k][-1] - least[k + 1][-1] > WORTH * mean:
        k += 1
    at, found = len(values) - 1, []
    for level in range(k, -1, -1):
        found.append(int(values[at]))
        at = came[level][at]
    return found[::-1]


def cost(shape: Shape | forest.Shape, even: int) -> float:
    """Of an update, in tokens of the linear layers."""
    if isinstance(shape, forest.Shape):
        return shape.trees * (shape.tokens + shape.rows * shape.width**2 / even)
    return shape.rows * shape.width * (1 + shape.width / even)
