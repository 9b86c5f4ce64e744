"""The shape of a run's micro-batches: one for all, so that one program is compiled."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from train import packing as packing_lib
from train.packing import Shape, round_up

FINALISTS = 6  # shapes that the whole run is laid out in, of those that suit its fullest batches
FULLEST = 512  # micro-batches by which the finalists are chosen
WIDER = 1.5  # times max_length: rows wider than this have not paid in any data tried


class Block(NamedTuple):
    """Some micro-batches as numbers.

    Attributes:
      lengths: int [M, B], tokens of each example; 0 for no example.
      labels: int [M, B], how many of them are labelled.
      shared: int [M, B], tokens of the run's prefix that each can share.
    """

    lengths: np.ndarray
    labels: np.ndarray
    shared: np.ndarray

    def rows(self, width: int, p: int, packing: bool) -> int:
        """The most rows that one of the micro-batches needs."""
        if not packing:
            return self.lengths.shape[1]
        return packing_lib.rows_needed(self.lengths, self.shared, width, p)

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
    depths: Sequence[int] = (),
    even: int | None = None,
) -> Shape:
    """The cheapest [R, T], and the smallest N, that fit every micro-batch of a run.

    Packed, a wider row wastes less and attends over more. The cost of a shape is

        R T (1 + T / even)        R T without `even`

    the narrower of two equals. With `even`, rows up to WIDER * max_length are weighed, as long as
    attention's R T^2 stays below that of one row of max_length for each example; without it rows
    up to max_length. Where examples share a prefix, rows with and without it are weighed.

    Args:
      blocks: the run's micro-batches; gone through twice.
      longest: tokens of the longest example in them.
      packing, max_length, row_multiple, even: as for Batcher.
      depths: lengths of the shared prefix to weigh, beside none.
    """
    limit = max(round_up(longest, 8), max_length // 8 * 8)

    def rank(shape: tuple[int, int], rows: int, batch: int) -> tuple[float, ...]:
        width, p = shape
        r = round_up(rows, row_multiple)
        too_wide = width > limit and r * width**2 > round_up(batch, row_multiple) * limit**2
        return too_wide, r * width * (1 + width / even if even else 1), width, p

    shapes = [(round_up(longest, 8), 0)]
    if packing:
        widest = max(max_length, int(WIDER * max_length) if even else 0)
        shapes = [(w, p) for w in packing_lib.widths(longest, widest) for p in (0, *depths)]
    if len(shapes) > FINALISTS:
        most = [block.fullest(FULLEST) for block in blocks]
        few = Block(*map(np.concatenate, zip(*most, strict=True))).fullest(FULLEST)
        batch = few.lengths.shape[1]
        ranks = {shape: rank(shape, few.rows(*shape, packing), batch) for shape in shapes}
        shapes = sorted(shapes, key=ranks.__getitem__)[:FINALISTS]
    rows, labels, batch = dict.fromkeys(shapes, 1), 1, 1
    for block in blocks:
        batch, labels = block.lengths.shape[1], max(labels, int(block.labels.sum(axis=1).max()))
        for shape in shapes:
            rows[shape] = max(rows[shape], block.rows(*shape, packing))
    width, p = best = min(shapes, key=lambda shape: rank(shape, rows[shape], batch))
    n = round_up(labels, math.lcm(8, row_multiple))
    return Shape(round_up(rows[best], row_multiple), width, n, p)
