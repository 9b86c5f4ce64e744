"""Batches as a pure function of the step: fixed shapes, the same examples packed or not.

The run's examples are one stream: the permutation of epoch 0, then that of epoch 1, and so on,
each drawn from `np.random.default_rng([seed, epoch])`. Update s takes places s*U to (s+1)*U of the
stream, U = batch * grad_acc. So each row comes once per epoch, every update is full (the last one
of an epoch ends with the first rows of the next), and nothing but the step is needed to resume.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from train import packing as packing_lib
from train.encoding import Example
from train.packing import Shape, round_up

BLOCK = 16_384  # micro-batches whose lengths are simulated at once: bounds the memory of long runs


def choose_shape(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    longest: int,
    *,
    packing: bool,
    max_length: int,
    row_multiple: int,
) -> Shape:
    """The smallest [R, T] and N that fit every micro-batch of a run.

    Packed, a wider row wastes less and attends over more: among a few widths the one with the
    fewest tokens R * T wins, the narrower of two equals.

    Args:
      blocks: (lengths, labels), int [M, B]: tokens and labelled tokens per example; read once.
      longest: tokens of the longest example in them.
      packing, max_length, row_multiple: as for Batcher.
    """
    widths = packing_lib.widths(longest, max_length) if packing else [round_up(longest, 8)]
    rows, labels = dict.fromkeys(widths, 1), 1
    for lengths, labelled in blocks:
        labels = max(labels, int(labelled.sum(axis=1).max()))
        for width in widths:
            here = packing_lib.rows_needed(lengths, width) if packing else lengths.shape[1]
            rows[width] = max(rows[width], here)
    _, width = min((round_up(rows[w], row_multiple) * w, w) for w in widths)
    r = round_up(rows[width], row_multiple)
    return Shape(r, width, round_up(labels, math.lcm(8, row_multiple)))


class Batcher:
    """Batches of a training run, `at(step)`, and of a validation set, `eval_batches()`.

    Args:
      examples: what `train.data.encode` gave, or one side of `train.data.split`.
      batch: examples in a micro-batch, over all devices.
      seed: draws the order of every epoch.
      packing: several examples to a row; off: one example to a row.
      max_length: the widest row that packing may use (a longer example widens it).
      grad_acc: G, micro-batches in an update.
      row_multiple: R is a multiple of it (the number of devices that share the rows: data * fsdp).
      epochs: how far the run goes; the fixed shape is chosen for exactly its updates.
      steps: the same in updates; wins over `epochs`.

    Attributes:
      steps: updates in the run.
      steps_per_epoch: updates in an epoch, rounded up.
      shape: Shape(rows, width, labels) of a micro-batch.

    Raises:
      ValueError: no examples, or a batch, grad_acc, row_multiple or length of run below 1.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch: int,
        seed: int = 0,
        packing: bool = True,
        max_length: int = 256,
        *,
        grad_acc: int = 1,
        row_multiple: int = 1,
        epochs: float = 1.0,
        steps: int | None = None,
    ):
        if not len(examples):
            raise ValueError('no examples to make batches of')
        for name, value in [
            ('batch', batch),
            ('grad_acc', grad_acc),
            ('row_multiple', row_multiple),
        ]:
            if value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}')
        self.examples, self.batch, self.seed, self.packing = examples, batch, seed, packing
        self.max_length, self.grad_acc, self.row_multiple = max_length, grad_acc, row_multiple
        self.steps_per_epoch = -(-len(examples) // self.update)
        self.steps = self.steps_for(epochs) if steps is None else steps
        if self.steps < 1:
            raise ValueError(f'a run must have at least 1 step, got {epochs=}, {steps=}')
        self._lengths = np.array([len(e.tokens) for e in examples], np.int64)
        self._labels = np.array([int(e.labelled.sum()) for e in examples], np.int64)
        self._order = functools.lru_cache(maxsize=2)(
            self._draw
        )  # at() asks for the same epoch again
        used = self._stream(np.arange(min(self.steps * self.update, len(examples))))
        self.shape = self._choose(self._blocks(), int(self._lengths[used].max()))

    @property
    def update(self) -> int:
        """U, examples in an update."""
        return self.batch * self.grad_acc

    @property
    def occupancy(self) -> float:
        """The part of the [R, T] positions that hold tokens, averaged over an epoch."""
        per_batch = float(self._lengths.mean()) * self.batch
        return per_batch / (self.shape.rows * self.shape.width)

    def steps_for(self, epochs: float) -> int:
        """Updates that go through the data `epochs` times; the last one may reach beyond."""
        return math.ceil(round(epochs * len(self.examples) / self.update, 6))

    def _draw(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))

    def _stream(self, places: np.ndarray) -> np.ndarray:
        """The examples (indices) at these ascending places of the stream."""
        epochs, offsets = np.divmod(places, len(self.examples))
        return np.concatenate(
            [self._order(int(e))[offsets[epochs == e]] for e in np.unique(epochs)]
        )

    def _choose(self, blocks: Iterable[tuple[np.ndarray, np.ndarray]], longest: int) -> Shape:
        return choose_shape(
            blocks,
            longest,
            packing=self.packing,
            max_length=self.max_length,
            row_multiple=self.row_multiple,
        )

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Lengths and labels of all micro-batches of the run, BLOCK of them at a time."""
        total = self.steps * self.grad_acc
        for first in range(0, total, BLOCK):
            numbers = np.arange(first, min(first + BLOCK, total))
            places = numbers[:, None] * self.batch + np.arange(self.batch)
            chosen = self._stream(places.ravel()).reshape(places.shape)
            yield self._lengths[chosen], self._labels[chosen]

    def indices(self, step: int) -> np.ndarray:
        """[G, batch] int64: which examples form update `step`, the same packed or not.

        Raises:
          ValueError: `step` lies outside the run that the shapes were chosen for.
        """
        if not 0 <= step < self.steps:
            raise ValueError(f'step {step} is outside the run of {self.steps} steps')
        places = np.arange(step * self.update, (step + 1) * self.update)
        return self._stream(places).reshape(self.grad_acc, self.batch)

    def at(self, step: int) -> dict[str, np.ndarray]:
        """Update `step` (from 0): every array has a leading axis G = grad_acc.

        Returns:
          tokens, positions, segment_ids: int32 [G, R, T]; select, labels: int32 [G, N];
          weights: float32 [G, N] (see train.packing.fill);
          rows: int32 [G, batch], the examples' row numbers.

        Raises:
          ValueError: `step` lies outside the run that the shapes were chosen for.
        """
        micro = [
            self._batch([self.examples[i] for i in part], self.shape) for part in self.indices(step)
        ]
        return {name: np.stack([m[name] for m in micro]) for name in micro[0]}

    def _batch(self, chosen: Sequence[Example], shape: Shape) -> dict[str, np.ndarray]:
        rows = np.full(self.batch, -1, np.int32)
        rows[: len(chosen)] = [example.row for example in chosen]
        return packing_lib.fill(chosen, shape, self.packing) | {'rows': rows}

    def eval_batches(self, shape: Shape | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Every example once, in order: arrays as those of `at` without the axis G, of one shape.

        The last batch may hold fewer examples; the missing `rows` are -1 and have no weights.

        Args:
          shape: of several batchers in common, from `shared_shapes`; None takes the smallest.
        """
        shape = shape or self._choose([self._eval_block()], int(self._lengths.max()))
        for first in range(0, len(self.examples), self.batch):
            yield self._batch(self.examples[first : first + self.batch], shape)

    def _eval_block(self) -> tuple[np.ndarray, np.ndarray]:
        """Lengths and labels of the batches of `eval_batches`."""
        count = len(self.examples)
        slots = np.arange(round_up(count, self.batch)).reshape(-1, self.batch)
        lengths, labels = (
            np.append(a, 0)[np.minimum(slots, count)] for a in (self._lengths, self._labels)
        )
        return lengths, labels


def shared_shapes(batchers: Sequence[Batcher]) -> tuple[Shape, Shape]:
    """The smallest shapes that hold every batch of several runs: of `at`, of `eval_batches`.

    Runs of one program (train.sweep) need arrays of one shape; which examples form an update does
    not depend on it. The batchers differ in seed and examples, not in their settings.
    """
    first = batchers[0]
    longest = max(int(b._lengths.max()) for b in batchers)
    blocks = itertools.chain.from_iterable(b._blocks() for b in batchers)
    held = [b._eval_block() for b in batchers]
    return first._choose(blocks, longest), first._choose(held, longest)
