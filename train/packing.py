"""Packing: examples into fixed [R, T] rows, block-diagonal by segment, positions per segment.

First-fit-decreasing over the examples of ONE micro-batch: the longest first, each into the first
row with room. Which examples form a micro-batch is decided elsewhere and never changed here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from train.encoding import Example

WIDTHS = 48  # row widths that are compared when a packed run chooses its shape


class Shape(NamedTuple):
    """The fixed shape of a micro-batch: R rows of T tokens, N labels."""

    rows: int
    width: int
    labels: int


def round_up(n: int, multiple: int) -> int:
    """The least multiple of `multiple` that is at least max(n, 1)."""
    return -(-max(n, 1) // multiple) * multiple


def first_fit(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """First-fit-decreasing of many micro-batches at once.

    Args:
      lengths: [M, B] int, M micro-batches of B examples; 0 for no example.
      width: T, at least the longest example.

    Returns:
      (row, start): [M, B] int64, where each example goes: its row and its first column.
    """
    m, b = lengths.shape
    order = np.argsort(-lengths, axis=1, kind='stable')
    used = np.zeros((m, b), np.int64)
    row, start = np.zeros((m, b), np.int64), np.zeros((m, b), np.int64)
    every = np.arange(m)
    for k in range(b):
        item = order[:, k]
        length = lengths[every, item]
        where = np.argmax(used + length[:, None] <= width, axis=1)  # B rows hold B examples
        row[every, item] = where
        start[every, item] = used[every, where]
        used[every, where] += length
    return row, start


def one_each(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unpacked: example k of a micro-batch in row k, from column 0."""
    row = np.broadcast_to(np.arange(lengths.shape[1]), lengths.shape)
    return row, np.zeros(lengths.shape, np.int64)


def rows_needed(lengths: np.ndarray, width: int) -> int:
    """The most rows of T that any of the micro-batches `lengths` [M, B] needs."""
    return int(first_fit(lengths, width)[0].max()) + 1


def widths(longest: int, widest: int) -> list[int]:
    """Candidate widths, multiples of 8 from the longest example to `widest`, at most WIDTHS."""
    low, high = round_up(longest, 8), max(round_up(longest, 8), widest // 8 * 8)
    return sorted({round_up(int(w), 8) for w in np.linspace(low, high, WIDTHS)})


def fill(examples: Sequence[Example], shape: Shape, packing: bool) -> dict[str, np.ndarray]:
    """The arrays of one micro-batch.

    Args:
      examples: those of the micro-batch.
      shape: of the arrays.
      packing: several examples to a row; off: one to a row.

    Returns:
      tokens, positions, segment_ids: int32 [R, T]; segments count from 1 in a row, 0 is padding.
      select: int32 [N], flat index into R * T of the position BEFORE each labelled token.
      labels: int32 [N], the labelled tokens; weights: float32 [N], 1 for a label, 0 for padding.

    Raises:
      ValueError: the examples do not fit the shape (it was made for other examples).
    """
    flat = {
        name: np.zeros(shape.rows * shape.width, np.int32)
        for name in ('tokens', 'positions', 'segment_ids')
    }
    select, labels = np.zeros((2, shape.labels), np.int32)
    weights = np.zeros(shape.labels, np.float32)
    lengths = np.array([[len(e.tokens) for e in examples]], np.int64).reshape(1, -1)
    row, start = first_fit(lengths, shape.width) if packing else one_each(lengths)
    if len(examples) and (row.max() >= shape.rows or lengths.max() > shape.width):
        raise ValueError(
            f'{len(examples)} examples do not fit {shape}: {lengths[0].tolist()} tokens'
        )
    segments, n = np.zeros(shape.rows, np.int32), 0
    for example, r, s in zip(examples, row[0], start[0], strict=True):
        at, length = int(r * shape.width + s), len(example.tokens)
        segments[r] += 1
        flat['tokens'][at : at + length] = example.tokens
        flat['positions'][at : at + length] = np.arange(length)
        flat['segment_ids'][at : at + length] = segments[r]
        (targets,) = np.nonzero(example.labelled)
        if n + len(targets) > shape.labels:
            raise ValueError(
                f'more than {shape.labels} labelled tokens: the shape is for other examples'
            )
        select[n : n + len(targets)] = at + targets - 1
        labels[n : n + len(targets)] = example.tokens[targets]
        weights[n : n + len(targets)] = 1
        n += len(targets)
    grid = {name: array.reshape(shape.rows, shape.width) for name, array in flat.items()}
    return grid | {'select': select, 'labels': labels, 'weights': weights}
