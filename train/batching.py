"""Batches as a pure function of the step: few shapes, the same examples packed or not.

The run's examples are one stream: the permutation of epoch 0, then that of epoch 1, and so on,
each drawn from `np.random.default_rng([seed, epoch])`. Update s takes places s*U to (s+1)*U of the
stream, U = batch * grad_acc. So each row comes once per epoch, every update is full (the last one
of an epoch ends with the first rows of the next), and nothing but the step is needed to resume.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from train import forest
from train import packing as packing_lib
from train.encoding import Example
from train.packing import round_up
from train.shapes import PROGRAMS, Block, Needs, choose_shape, cost, forest_shapes

Shape = packing_lib.Shape | forest.Shape

BLOCK = 16_384  # micro-batches whose lengths are simulated at once: bounds the memory of long runs
SAVED = 0.97  # of the cost of packed rows: copying tokens to and fro for less would not pay


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
      even: the row width at which attention takes as long as the rest of the model, for the choice
        of the shape.
      share: tokens that examples begin with may stand once (`train.forest`), where that is cheaper;
        needs `even`.

    Attributes:
      steps: updates in the run.

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
        even: int | None = None,
        share: bool = False,
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
        self.even = even
        self.steps = self.steps_for(epochs) if steps is None else steps
        if self.steps < 1:
            raise ValueError(f'a run must have at least 1 step, got {epochs=}, {steps=}')
        self._lengths = np.array([len(e.tokens) for e in examples], np.int64)
        self._labels = np.array([int(e.labelled.sum()) for e in examples], np.int64)
        self._texts = forest.Texts(examples) if share and packing else None
        self._order = functools.lru_cache(maxsize=2)(
            self._draw
        )  # at() asks for the same epoch again

    @functools.cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Of a micro-batch, the smallest first: one train.packing.Shape, or a few
        train.forest.Shape, of which an update takes the first that it fits.
        """
        return _shapes([self], False)

    @property
    def update(self) -> int:
        """U, examples in an update."""
        return self.batch * self.grad_acc

    @property
    def shape(self) -> Shape:
        """The largest of the shapes."""
        return self.shapes[-1]

    @property
    def forests(self) -> tuple[forest.Shape, ...]:
        """The shapes, where they are forests'; else none."""
        return tuple(shape for shape in self.shapes if isinstance(shape, forest.Shape))

    @property
    def occupancy(self) -> float:
        """The part of the places for tokens that hold some, averaged over an epoch.

        In a forest: over the first BLOCK micro-batches, and of the largest tree of each.
        """
        if isinstance(self.shape, packing_lib.Shape):
            return float(self._lengths.mean()) * self.batch / (self.shape.rows * self.shape.width)
        chosen = next(self._blocks())
        tokens = self._updates(self._place(chosen, self.shape.width).tokens)
        sizes = np.array([shape.tokens for shape in self.forests])
        return float(tokens.sum() / sizes[np.searchsorted(sizes, tokens)].sum())

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

    def _blocks(self) -> Iterator[np.ndarray]:
        """[M, batch], the examples of all micro-batches of the run, about BLOCK of them a time."""
        total, whole = self.steps * self.grad_acc, round_up(BLOCK, self.grad_acc)
        for first in range(0, total, whole):
            numbers = np.arange(first, min(first + whole, total))
            places = numbers[:, None] * self.batch + np.arange(self.batch)
            yield self._stream(places.ravel()).reshape(places.shape)

    def _eval_blocks(self) -> Iterator[np.ndarray]:
        """[M, batch], those of `eval_batches`; -1 for none."""
        count = len(self.examples)
        slots = np.arange(round_up(count, self.batch)).reshape(-1, self.batch)
        yield np.where(slots < count, slots, -1)

    def _counts(self, chosen: np.ndarray) -> Block:
        """Tokens and labels of some examples; none of -1."""
        there = chosen >= 0
        return Block(*(np.where(there, a[chosen], 0) for a in (self._lengths, self._labels)))

    def _place(self, chosen: np.ndarray, width: int) -> forest.Places:
        assert self._texts is not None
        return forest.place(self._texts, chosen, self.row_multiple, width)

    def _updates(self, each: np.ndarray) -> np.ndarray:
        """Of each update the largest of its micro-batches' numbers."""
        return each.reshape(-1, self.grad_acc).max(axis=1)

    def _needs(self, evaluated: bool, width: int) -> Needs:
        """What the run's updates (or the batches of `eval_batches`) need in forests."""
        each: list[tuple[np.ndarray, np.ndarray]] = []
        labels = 0
        for chosen in self._eval_blocks() if evaluated else self._blocks():
            places = self._place(chosen, width)
            labels = max(labels, int(self._counts(chosen).labels.sum(axis=1).max()))
            each.append((places.tokens, places.rows))
        tokens, rows = map(np.concatenate, zip(*each, strict=True))
        if not evaluated:
            tokens, rows = self._updates(tokens), self._updates(rows)
        return Needs(tokens, rows, labels, width)

    def fits(self, step: int) -> int:
        """Which of the shapes is the first that update `step` fits."""
        return 0 if len(self.shapes) < 2 else self._first(self._layout(self.indices(step)))

    def _layout(self, chosen: np.ndarray) -> forest.Places | None:
        """Where the examples of an update go in forests; None in rows."""
        return self._place(chosen, self.shape.width) if self.forests else None

    def _first(self, places: forest.Places | None) -> int:
        """The first of the shapes that an update fits which is laid out so."""
        if places is None:
            return 0
        most, rows = places.tokens.max(), places.rows.max()
        fitting = (most <= shape.tokens and rows <= shape.rows for shape in self.forests)
        return list(fitting).index(True)

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

    def at(self, step: int, least: int = 0) -> dict[str, np.ndarray]:
        """Update `step` (from 0): every array has a leading axis G = grad_acc.

        Args:
          step: which.
          least: take shapes[least] or a larger one: other runs share its program.

        Returns:
          The arrays of train.packing.fill, or of train.forest.fill, of each micro-batch; and
          rows: int32 [G, batch], the examples' row numbers.

        Raises:
          ValueError: `step` lies outside the run that the shapes were chosen for.
        """
        chosen = self.indices(step)
        places = self._layout(chosen)
        micro = self._batches(chosen, self.shapes[max(least, self._first(places))], places)
        return {name: np.stack([m[name] for m in micro]) for name in micro[0]}

    def _batches(
        self, chosen: np.ndarray, shape: Shape, places: forest.Places | None
    ) -> list[dict[str, np.ndarray]]:
        """The micro-batches of these examples [M, batch], -1 for none (the last ones)."""
        found = []
        for m, numbers in enumerate(chosen):
            examples = [self.examples[i] for i in numbers if i >= 0]
            rows = np.full(self.batch, -1, np.int32)
            rows[: len(examples)] = [example.row for example in examples]
            if isinstance(shape, forest.Shape):
                assert places is not None
                arrays = forest.fill(examples, places, shape, m)
            else:
                arrays = packing_lib.fill(examples, shape, self.packing)
            found.append(arrays | {'rows': rows})
        return found

    def eval_batches(self, shape: Shape | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Every example once, in order: arrays as those of `at` without the axis G, of one shape.

        The last batch may hold fewer examples; the missing `rows` are -1 and have no weights.

        Args:
          shape: of several batchers in common, from `shared_shapes`; None takes the smallest.
        """
        shape = shape or _shapes([self], True)[-1]
        for chosen in next(self._eval_blocks())[:, None]:
            shares = isinstance(shape, forest.Shape)
            places = self._place(chosen, shape.width) if shares else None
            yield from self._batches(chosen, shape, places)


def shared_shapes(batchers: Sequence[Batcher]) -> tuple[tuple[Shape, ...], Shape]:
    """The shapes that hold every batch of several runs: of `at`, and the one of `eval_batches`.

    Runs of one program (train.sweep) need arrays of one shape; which examples form an update does
    not depend on it. The batchers differ in seed and examples, not in their settings.
    """
    return _shapes(batchers, False), _shapes(batchers, True)[-1]


def _shapes(batchers: Sequence[Batcher], evaluated: bool) -> tuple[Shape, ...]:
    one = batchers[0]
    blocks = _Counts(batchers, evaluated)
    longest = max(int(block.lengths.max()) for block in blocks)
    plain = choose_shape(
        blocks,
        longest,
        packing=one.packing,
        max_length=one.max_length,
        row_multiple=one.row_multiple,
        even=one.even,
    )
    if one._texts is None or one.even is None:
        return (plain,)
    width = round_up(longest - 1, 8)  # the last token of an example predicts nothing
    needs = [batcher._needs(evaluated, width) for batcher in batchers]
    tokens, rows = ([each[i] for each in needs] for i in range(2))
    joint = Needs(_largest(tokens), _largest(rows), max(each.labels for each in needs), width)
    programs = 1 if evaluated else PROGRAMS
    shapes = forest_shapes(joint, row_multiple=one.row_multiple, even=one.even, programs=programs)
    return shapes if cost(shapes[-1], one.even) < SAVED * cost(plain, one.even) else (plain,)


def _largest(each: Sequence[Any]) -> np.ndarray:
    """Update by update; runs of unequal length (of `eval_batches`) are as long as the longest."""
    longest = max(map(len, each))
    return np.max([np.pad(a, (0, longest - len(a))) for a in each], axis=0)


class _Counts:
    """The micro-batches of some batchers as numbers, drawn anew each time they are read."""

    def __init__(self, batchers: Sequence[Batcher], evaluated: bool):
        self._batchers, self._evaluated = batchers, evaluated

    def __iter__(self) -> Iterator[Block]:
        for batcher in self._batchers:
            chosen = batcher._eval_blocks() if self._evaluated else batcher._blocks()
            yield from map(batcher._counts, chosen)
