"""Packing: examples into fixed [R, T] rows, block-diagonal by segment, positions per segment.

First-fit-decreasing over the examples of ONE micro-batch: the longest first, each into the first
row with room. Which examples form a micro-batch is decided elsewhere and never changed here.

Examples that begin with the same P tokens can share them: these then stand once, in front of a row,
in the segment that every token sees, and each example goes on with its own tokens from position P.
The others lie in rows without them, since there they would see them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from train.encoding import Example

EVERYONE = -1  # jaxpeft.models.attention's segment of a key that every token sees; JAX stays out
WIDTHS = 48  # row widths that are compared when a packed run chooses its shape
DEPTHS = 3  # prefix lengths that are compared when examples share one
LEAST = 8  # tokens of a prefix: fewer are not worth rows of two kinds
NOTHING = np.zeros(0, np.int32)  # the prefix of examples that share none


class Shape(NamedTuple):
    """The fixed shape of a micro-batch: R rows of T tokens, N labels, P shared tokens."""

    rows: int
    width: int
    labels: int
    shared: int = 0


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


def place(
    lengths: np.ndarray, shared: np.ndarray, width: int, p: int
) -> tuple[np.ndarray, np.ndarray]:
    """`first_fit`, with P tokens in front of the rows of those examples that share them.

    Args:
      lengths: [M, B] int, as for `first_fit`: whole lengths, shared tokens included.
      shared: [M, B] int, `common` of each example: those with at least P share.
      width: T, at least the longest example.
      p: P, 0 for none.

    Returns:
      (row, start): [M, B] int64, where the example's own tokens go: the last `length - P` of those
      that share, all of the others. Rows of those that share come first.
    """
    if not p:
        return first_fit(lengths, width)
    sharing = shared >= p
    row, start = first_fit(np.where(sharing, lengths - p, 0), width - p)
    rows = np.where(sharing.any(axis=1), row.max(axis=1) + 1, 0)
    other_row, other_start = first_fit(np.where(sharing, 0, lengths), width)
    other_row = np.where(lengths > 0, rows[:, None] + other_row, 0)
    return np.where(sharing, row, other_row), np.where(sharing, p + start, other_start)


def one_each(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unpacked: example k of a micro-batch in row k, from column 0."""
    row = np.broadcast_to(np.arange(lengths.shape[1]), lengths.shape)
    return row, np.zeros(lengths.shape, np.int64)


def rows_needed(lengths: np.ndarray, shared: np.ndarray, width: int, p: int) -> int:
    """The most rows that any of the micro-batches `lengths` [M, B] needs: see `place`."""
    return int(place(lengths, shared, width, p)[0].max()) + 1


def widths(longest: int, widest: int) -> list[int]:
    """Candidate widths, multiples of 8 from the longest example to `widest`, at most WIDTHS."""
    low, high = round_up(longest, 8), max(round_up(longest, 8), widest // 8 * 8)
    return sorted({round_up(int(w), 8) for w in np.linspace(low, high, WIDTHS)})


def common(example: Example, prefix: np.ndarray) -> int:
    """Tokens of `prefix` that an example begins with and can share.

    The loss of its first label is that of the token before, which must be the example's own.

    Example:
      >>> tokens, labelled = np.array([5, 6, 7, 8]), np.array([False, False, False, True])
      >>> [common(Example(tokens, labelled, 0), np.array(p)) for p in ([5, 6, 7], [5, 9], [4])]
      [2, 1, 0]
    """
    most = min(len(prefix), max(int(np.argmax(example.labelled)) - 1, 0))
    differ = np.nonzero(example.tokens[:most] != prefix[:most])[0]
    return int(differ[0]) if len(differ) else most


def depths(shared: np.ndarray) -> list[int]:
    """The DEPTHS prefix lengths that save the most tokens, if each were shared by all who can.

    Args:
      shared: int [n], `common` of each example.

    Returns:
      Lengths of at least LEAST, the best first: the longer the prefix, the fewer examples have it.
    """
    values, counts = np.unique(shared, return_counts=True)
    saved = values * counts[::-1].cumsum()[::-1]
    best = np.argsort(-saved, kind='stable')[:DEPTHS]
    return [int(p) for p in values[best] if p >= LEAST]


def fill(
    examples: Sequence[Example], shape: Shape, packing: bool, prefix: np.ndarray = NOTHING
) -> dict[str, np.ndarray]:
    """The arrays of one micro-batch.

    Args:
      examples: those of the micro-batch.
      shape: of the arrays.
      packing: several examples to a row; off: one to a row.
      prefix: tokens of which the first `shape.shared` stand once a row.

    Returns:
      tokens, positions, segment_ids: int32 [R, T]; segments count from 1 in a row, 0 is padding,
      EVERYONE the shared tokens.
      select: int32 [N], flat index into R * T of the position BEFORE each labelled token.
      labels: int32 [N], the labelled tokens; weights: float32 [N], 1 for a label, 0 for padding.
      shared: int32 [R], the shared tokens in front of each row; where `shape.shared` is 0 there is
      no such entry, and every segment is one run of tokens whose positions count from 0.

    Raises:
      ValueError: the examples do not fit the shape (it was made for other examples).
    """
    p, prefix = shape.shared, prefix[: shape.shared]
    if len(prefix) < p or (p and not packing):
        raise ValueError(f'{shape} is for packed rows that share {p} tokens, got {len(prefix)}')
    flat = {
        name: np.zeros(shape.rows * shape.width, np.int32)
        for name in ('tokens', 'positions', 'segment_ids')
    }
    select, labels = np.zeros((2, shape.labels), np.int32)
    weights = np.zeros(shape.labels, np.float32)
    lengths = np.array([[len(e.tokens) for e in examples]], np.int64).reshape(1, -1)
    shared = np.array([[common(e, prefix) for e in examples]], np.int64).reshape(1, -1)
    row, start = place(lengths, shared, shape.width, p) if packing else one_each(lengths)
    sharing = (shared >= p) & (p > 0)
    if len(examples) and (row.max() >= shape.rows or lengths.max() > shape.width):
        raise ValueError(
            f'{len(examples)} examples do not fit {shape}: {lengths[0].tolist()} tokens'
        )
    segments, n = np.zeros(shape.rows, np.int32), 0
    for example, r, s, shares in zip(examples, row[0], start[0], sharing[0], strict=True):
        first = p if shares else 0  # of the example's own tokens
        at, length = int(r * shape.width + s), len(example.tokens) - first
        segments[r] += 1
        flat['tokens'][at : at + length] = example.tokens[first:]
        flat['positions'][at : at + length] = np.arange(first, first + length)
        flat['segment_ids'][at : at + length] = segments[r]
        (targets,) = np.nonzero(example.labelled)
        if n + len(targets) > shape.labels:
            raise ValueError(
                f'more than {shape.labels} labelled tokens: the shape is for other examples'
            )
        select[n : n + len(targets)] = at - first + targets - 1
        labels[n : n + len(targets)] = example.tokens[targets]
        weights[n : n + len(targets)] = 1
        n += len(targets)
    grid = {name: array.reshape(shape.rows, shape.width) for name, array in flat.items()}
    if p:
        grid['shared'] = _put_in_front(grid, np.unique(row[sharing]), prefix)
    return grid | {'select': select, 'labels': labels, 'weights': weights}


def _put_in_front(grid: dict[str, np.ndarray], rows: np.ndarray, prefix: np.ndarray) -> np.ndarray:
    """Writes the prefix before the own tokens of these rows; the tokens in front of every row."""
    grid['tokens'][rows, : len(prefix)] = prefix
    grid['positions'][rows, : len(prefix)] = np.arange(len(prefix))
    grid['segment_ids'][rows, : len(prefix)] = EVERYONE
    tokens = np.zeros(len(grid['tokens']), np.int32)
    tokens[rows] = len(prefix)
    return tokens
