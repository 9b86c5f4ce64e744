"""Micro-batches in which what examples begin with stands once: prefix forests and their arrays.

The tokens of a micro-batch form G trees, one for each part of the devices that its rows are split
over: in the order of their texts, each example goes on from what it has in common with the one
before. Attention sees whole examples, first-fit into rows of T (see `jaxpeft.models.spread`). A
token behind the last but one label predicts nothing, and is left out.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from train.encoding import Example
from train.packing import first_fit


class Shape(NamedTuple):
    """The fixed shape of a micro-batch: G trees of P tokens, R rows of T for each, N labels."""

    trees: int
    tokens: int
    rows: int
    width: int
    labels: int


class Texts:
    """The examples of a data set in the order of their tokens, and what any two have in common.

    Args:
      examples: the data set's.

    Attributes:
      lengths: int64 [n + 1], tokens of each that are needed; the last is that of no example.
    """

    def __init__(self, examples: Sequence[Example]):
        self.lengths = np.array([*map(needed, examples), 0], np.int64)
        given = [e.tokens[:n] for e, n in zip(examples, self.lengths[:-1], strict=True)]
        keys = [tokens.astype('>u4').tobytes() for tokens in given]  # bytes in the numbers' order
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self._rank = np.empty(len(keys) + 1, np.int64)
        self._rank[[*order, len(keys)]] = np.arange(len(keys) + 1)
        alike = [_alike(given[a], given[b]) for a, b in itertools.pairwise(order)]
        self._least = _minima(np.array([0, *alike, 0], np.int32))

    def sorted(self, chosen: np.ndarray) -> np.ndarray:
        """[M, B] numbers of examples, -1 for none: how each micro-batch is to be reordered."""
        return np.argsort(self._rank[chosen], axis=1, kind='stable')

    def common(self, chosen: np.ndarray) -> np.ndarray:
        """[M, B] in order -> [M, B], tokens that each has in common with the one before it.

        That of two examples is the least of all that lie between them in the order.
        """
        rank = self._rank[chosen]
        low, high = rank[:, :-1] + 1, rank[:, 1:] + 1
        level = np.frexp(np.maximum(high - low, 1))[1] - 1  # the greatest power of two inside
        low = np.minimum(low, self._least.shape[1] - 1)  # two of one example have no range
        left, right = self._least[level, low], self._least[level, high - (1 << level)]
        twice = rank[:, 1:] == rank[:, :-1]
        found = np.where(twice, self.lengths[chosen[:, 1:]], np.minimum(left, right))
        return np.pad(found.astype(np.int64), ((0, 0), (1, 0)))


def needed(example: Example) -> int:
    """Tokens up to the one that predicts the last label; at least one."""
    (labels,) = np.nonzero(example.labelled)
    return max(int(labels[-1]) if len(labels) else 0, 1)


def _alike(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differ = np.nonzero(a[:n] != b[:n])[0]
    return int(differ[0]) if len(differ) else n


def _minima(values: np.ndarray) -> np.ndarray:
    """[levels, n]: at level k the least of the 2^k values from each place on (a sparse table)."""
    levels = [values]
    for k in range(len(values).bit_length() - 1):
        before, width = levels[-1], 1 << k
        longer = before.copy()
        longer[:-width] = np.minimum(before[:-width], before[width:])
        levels.append(longer)
    return np.stack(levels)


class Places(NamedTuple):
    """Where the examples of M micro-batches go.

    Attributes:
      order: [M, B], how each micro-batch is reordered; the others are in that order.
      kept: tokens that an example goes on from, of the one before it in its tree.
      tree, row, start: where it stands: its tree, the tree's row, and the row's column.
      tokens: [M], P: tokens of the largest tree.
      rows: [M], R: rows of the tree that needs most.
    """

    order: np.ndarray
    kept: np.ndarray
    tree: np.ndarray
    row: np.ndarray
    start: np.ndarray
    tokens: np.ndarray
    rows: np.ndarray


def place(texts: Texts, chosen: np.ndarray, trees: int, width: int) -> Places:
    """Lays out micro-batches.

    Args:
      texts: of the data set.
      chosen: int [M, B], numbers of examples, -1 for none.
      trees: G.
      width: T, at least the longest example.
    """
    order = texts.sorted(chosen)
    chosen = np.take_along_axis(chosen, order, axis=1)
    lengths, common = texts.lengths[chosen], texts.common(chosen)
    tree, tokens = _cut(lengths, common, trees)
    first = np.pad(tree[:, 1:] != tree[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    row, start = np.zeros_like(tree), np.zeros_like(tree)
    for g in range(trees):
        mine = tree == g
        r, s = first_fit(np.where(mine, lengths, 0), width)
        row, start = np.where(mine, r, row), np.where(mine, s, start)
    rows = np.where(lengths > 0, row, 0).max(axis=1) + 1
    return Places(order, np.where(first, 0, common), tree, row, start, tokens, rows)


def _cut(lengths: np.ndarray, common: np.ndarray, trees: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts each micro-batch, in its order, into trees: the largest as small as it can be.

    Returns:
      [M, B], the tree of each example; [M], tokens of the largest tree.
    """
    own = lengths - common

    def filled(most: np.ndarray) -> np.ndarray:
        """The trees where none may have more tokens than this, the next begun where one would."""
        tree, held, number = np.zeros_like(lengths), np.zeros_like(most), np.zeros_like(most)
        for k in range(lengths.shape[1]):
            new = (held + own[:, k] > most) & (lengths[:, k] > 0)
            held = np.where(new, lengths[:, k], held + own[:, k])
            number = number + new
            tree[:, k] = number
        return tree

    low, high = lengths.max(axis=1), own.sum(axis=1)
    if trees > 1:
        while (low < high).any():
            middle = (low + high) // 2
            fits = filled(middle)[:, -1] < trees
            low, high = np.where(fits, low, middle + 1), np.where(fits, middle, high)
    return filled(high), high


def fill(
    examples: Sequence[Example], places: Places, shape: Shape, m: int = 0
) -> dict[str, np.ndarray]:
    """The arrays of one micro-batch.

    Args:
      examples: those of the micro-batch, in their own order.
      places: of `place`.
      shape: of the arrays.
      m: which of the micro-batches in `places`.

    Returns:
      tokens, positions: int32 [G, P]; take, segment_ids: int32 [G, R, T]; back: int32 [G, P], see
      `jaxpeft.models.spread`; segments count from 1 in a row, 0 is padding.
      select: int32 [N], flat index into G * P of the position BEFORE each labelled token.
      labels: int32 [N], the labelled tokens; weights: float32 [N], 1 for a label, 0 for padding.

    Raises:
      ValueError: the examples do not fit the shape (it was made for others).
    """
    g, p, r, t, n = shape
    labelled = sum(int(e.labelled.sum()) for e in examples)
    longest = max((needed(e) for e in examples), default=0)
    if places.tokens[m] > p or places.rows[m] > r or longest > t or labelled > n:
        raise ValueError(
            f'{len(examples)} examples do not fit {shape}: they need {places.tokens[m]} tokens and '
            f'{places.rows[m]} rows a tree, {labelled} labels, and the longest has {longest} tokens'
        )
    trees: dict[str, Any] = {k: np.zeros((g, p), np.int32) for k in ('tokens', 'positions', 'back')}
    rows = {name: np.zeros((g, r, t), np.int32) for name in ('take', 'segment_ids')}
    select, labels = np.zeros((2, n), np.int32)
    weights = np.zeros(n, np.float32)
    size, segments, done = np.zeros(g, int), np.zeros((g, r), np.int32), 0
    path = np.zeros(0, np.int64)
    for k, i in enumerate(places.order[m]):
        if i >= len(examples):
            continue
        example, kept = examples[i], int(places.kept[m, k])
        tree, row, start = places.tree[m, k], places.row[m, k], int(places.start[m, k])
        length = needed(example)
        mine = slice(size[tree], size[tree] + length - kept)  # of the tree's tokens
        path = np.concatenate([path[:kept], np.arange(mine.start, mine.stop)])
        trees['tokens'][tree, mine] = example.tokens[kept:length]
        trees['positions'][tree, mine] = np.arange(kept, length)
        trees['back'][tree, mine] = row * t + start + np.arange(kept, length)
        size[tree] = mine.stop
        segments[tree, row] += 1
        rows['take'][tree, row, start : start + length] = path
        rows['segment_ids'][tree, row, start : start + length] = segments[tree, row]
        (targets,) = np.nonzero(example.labelled)
        here = slice(done, done + len(targets))
        select[here] = tree * p + path[targets - 1]
        labels[here], weights[here] = example.tokens[targets], 1
        done = here.stop
    return trees | rows | {'select': select, 'labels': labels, 'weights': weights}
