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
from train.shapes import Block, choose_shape

BLOCK = 16_384  # micro-batches whose lengths are simulated at once: bounds the memory of long runs


class Batcher:
    """Batches of a training run, `at(step)`, and of a validation set, `eval_batches()`.

    Args:
      examples: what `train.data.encode` gave, or one side of `train.data.split`.
      batch: examples in a micro-batch, over all devices.
      seed: draws the order of every epoch.
      packing: several examples to a row; off: one example to a row.
      max_length: tokens of the longest examples; rows are as wide at most (a longer example widens
        them), or WIDER times so with `even`.
      grad_acc: G, micro-batches in an update.
      row_multiple: R is a multiple of it (the number of devices that share the rows: data * fsdp).
      epochs: how far the run goes; the fixed shape is chosen for exactly its updates.
      steps: the same in updates; wins over `epochs`.
      prefix: int32 tokens that many examples begin with; as many as pay stand once a packed row
        (`train.sharing`).
      even: the row width at which attention takes as long as the rest of the model, for the choice
        of the shape.

    Attributes:
      steps: updates in the run.
      steps_per_epoch: updates in an epoch, rounded up.
      shape: Shape(rows, width, labels, shared) of a micro-batch.

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
        prefix: np.ndarray = packing_lib.NOTHING,
        even: int | None = None,
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
        self.prefix, self.even = prefix, even
        self.steps_per_epoch = -(-len(examples) // self.update)
        self.steps = self.steps_for(epochs) if steps is None else steps
        if self.steps < 1:
            raise ValueError(f'a run must have at least 1 step, got {epochs=}, {steps=}')
        self._lengths = np.array([len(e.tokens) for e in examples], np.int64)
        self._labels = np.array([int(e.labelled.sum()) for e in examples], np.int64)
        self._shared = np.array([packing_lib.common(e, prefix) for e in examples], np.int64)
        self._order = functools.lru_cache(maxsize=2)(
            self._draw
        )  # at() asks for the same epoch again
        used = self._stream(np.arange(min(self.steps * self.update, len(examples))))
        self.shape = self._choose(_Blocks([self]), int(self._lengths[used].max()))

    @property
    def update(self) -> int:
        """U, examples in an update."""
        return self.batch * self.grad_acc

    @property
    def occupancy(self) -> float:
        """The part of the [R, T] positions that hold tokens, averaged over an epoch.

        What examples share counts once a row; then it is the average over the first BLOCK batches.
        """
        slots = self.shape.rows * self.shape.width
        if not self.shape.shared:
            return float(self._lengths.mean()) * self.batch / slots
        lengths, _, shared = next(self._blocks())
        row, _ = packing_lib.place(lengths, shared, self.shape.width, self.shape.shared)
        sharing = shared >= self.shape.shared
        rows = np.where(sharing, row + 1, 0).max(axis=1)  # those that share lie in the first ones
        saved = (sharing.sum(axis=1) - rows) * self.shape.shared
        return float((lengths.sum(axis=1) - saved).mean()) / slots

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

    def _choose(self, blocks: Iterable[Block], longest: int) -> Shape:
        return choose_shape(
            blocks,
            longest,
            packing=self.packing,
            max_length=self.max_length,
            row_multiple=self.row_multiple,
            depths=packing_lib.depths(self._shared),
            even=self.even,
        )

    def _blocks(self) -> Iterator[Block]:
        """All micro-batches of the run, BLOCK of them at a time."""
        total = self.steps * self.grad_acc
        for first in range(0, total, BLOCK):
            numbers = np.arange(first, min(first + BLOCK, total))
            places = numbers[:, None] * self.batch + np.arange(self.batch)
            chosen = self._stream(places.ravel()).reshape(places.shape)
            yield Block(self._lengths[chosen], self._labels[chosen], self._shared[chosen])

    def indices(self, step: int) -> np.ndarray:
        """[G, batch] int64: which examples form update `step`, the same packed or not.

        Raises:
          ValueError: `step` lies outside the run that the shapes were chosen for.
        """
        if not 0 <= step < self.steps:
            raise ValueError(f'step {step} is outside the run of {self.steps} steps')
        places = np.arange(step * self.update, (step + 1) * self.update)
        return self._stream(places).reshape(self.grad_acc, self.batch)

    def tokens(self, step: int) -> int:
        """Tokens of the examples of update `step`, each counted whole, whatever they share."""
        return int(self._lengths[self.indices(step)].sum())

    def at(self, step: int) -> dict[str, np.ndarray]:
        """Update `step` (from 0): every array has a leading axis G = grad_acc.

        Returns:
          tokens, positions, segment_ids: int32 [G, R, T]; select, labels: int32 [G, N];
          weights: float32 [G, N]; shared: int32 [G, R] where `shape.shared` (see
          train.packing.fill);
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
        arrays = packing_lib.fill(chosen, shape, self.packing, self.prefix)
        return arrays | {'rows': rows}

    def eval_batches(self, shape: Shape | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Every example once, in order: arrays as those of `at` without the axis G, of one shape.

        The last batch may hold fewer examples; the missing `rows` are -1 and have no weights.

        Args:
          shape: of several batchers in common, from `shared_shapes`; None takes the smallest.
        """
        shape = shape or self._choose([self._eval_block()], int(self._lengths.max()))
        for first in range(0, len(self.examples), self.batch):
            yield self._batch(self.examples[first : first + self.batch], shape)

    def _eval_block(self) -> Block:
        """The batches of `eval_batches`."""
        count = len(self.examples)
        slots = np.arange(round_up(count, self.batch)).reshape(-1, self.batch)
        numbers = (self._lengths, self._labels, self._shared)
        return Block(*(np.append(a, 0)[np.minimum(slots, count)] for a in numbers))


class _Blocks:
    """The micro-batches of the runs of some batchers, drawn anew each time they are read."""

    def __init__(self, batchers: Sequence[Batcher]):
        self.batchers = batchers

    def __iter__(self) -> Iterator[Block]:
        return itertools.chain.from_iterable(b._blocks() for b in self.batchers)


def shared_shapes(batchers: Sequence[Batcher]) -> tuple[Shape, Shape]:
    """The smallest shapes that hold every batch of several runs: of `at`, of `eval_batches`.

    Runs of one program (train.sweep) need arrays of one shape; which examples form an update does
    not depend on it. The batchers differ in seed and examples, not in their settings or prefix.
    """
    first = batchers[0]
    longest = max(int(b._lengths.max()) for b in batchers)
    held = [b._eval_block() for b in batchers]
    return first._choose(_Blocks(batchers), longest), first._choose(held, longest)
