"""The compiled programs of one arm: the training step of train.step, and what measures.

One program an arm: the learning rate is a number in the optimizer's state (AdamW's step is linear
in it), and all runs share one shape, so that no rate and no seed compiles anew.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxpeft as jp
from eval.structured.arms import Fitted
from eval.structured.task import Part
from jaxpeft.structure import NAME
from train import mesh as meshes
from train import optimizer
from train.batching import Batcher, Shape
from train.config import Optim
from train.step import Programs, compile_programs

HOST = ('rows',)
Batch = Mapping[str, Any]


class Factor(NamedTuple):
    """The state of `by_factor`: what every change is multiplied with."""

    factor: jax.Array


class Trained(NamedTuple):
    """What a run leaves.

    Attributes:
      state: the adapter after the last update.
      losses: of each update, [steps].
      seconds: of each update, [steps], compilation left out.
      tokens: in all updates.
    """

    state: jp.State
    losses: np.ndarray
    seconds: np.ndarray
    tokens: int


def by_factor() -> optax.GradientTransformation:
    """Multiplies by a number in the state, 1 at the start: put last, it is the learning rate."""

    def update(changes: Any, state: Factor, params: Any = None) -> tuple[Any, Factor]:
        del params
        return jax.tree.map(lambda x: state.factor * x, changes), state

    return optax.GradientTransformation(lambda params: Factor(jnp.ones(())), update)


def batcher(one: Part, batch: int, seed: int, steps: int) -> Batcher:
    """The order in which a run meets the examples: one example a row, so that features fit."""
    return Batcher(one.examples, batch, seed, packing=False, steps=steps)


def eval_batcher(one: Part, batch: int) -> Batcher:
    """All examples of a part, in order, one a row."""
    return Batcher(one.examples, batch, packing=False)


def with_features(batch: Mapping[str, np.ndarray], features: Mapping[str, np.ndarray]) -> Batch:
    """The batch as the programs take it, with `side` made of its rows' features.

    Args:
      batch: of a `Batcher`, arrays [.., R, T]; `rows` [.., R] say which examples, -1 none.
      features: [N, any, ..], cut or filled with zeros to T; or {} for an arm that is given none.
    """
    side = {}
    for name, x in features.items():
        rows, width = batch['rows'], min(x.shape[1], batch['tokens'].shape[-1])
        filled = np.zeros((*batch['tokens'].shape, *x.shape[2:]), x.dtype)
        real = rows >= 0
        filled[real, :width] = x[rows[real], :width]
        side[name] = jnp.asarray(filled)
    arrays = {name: jnp.asarray(x) for name, x in batch.items() if name not in HOST}
    return arrays | ({'side': {NAME: side}} if side else {})


def held(one: Part, batch: int, shape: Shape, structure: bool) -> list[Batch]:
    """All examples of a part in batches, on the device; one shape for all parts."""
    features = one.features if structure else {}
    return [with_features(raw, features) for raw in eval_batcher(one, batch).eval_batches(shape)]


class Engine:
    """Trains and measures one arm.

    Args:
      model, params: the base.
      fitted: the arm.
      optim: batch, schedule, warm-up, clipping; its `lr` is not used.
      steps: updates in a run.
      accuracy: whether accuracy is measured beside the loss.
    """

    def __init__(
        self,
        model: Any,
        params: Any,
        fitted: Fitted,
        optim: Optim,
        steps: int,
        accuracy: bool = False,
    ):
        self.params, self.fitted, self.steps, self.optim = params, fitted, steps, optim
        self.forward = jp.bind(fitted.plan, model.apply)
        self._mesh = meshes.make('1,1,1', jax.devices()[:1])
        unit = optimizer.schedule(_unit(optim), steps)
        tx = optax.chain(optimizer.make(_unit(optim), unit), by_factor())
        self._init = jax.jit(
            lambda key, params: jp.init(fitted.plan, key, params),
            out_shardings=meshes.replicated(self._mesh),
        )
        self._programs: Programs = compile_programs(
            fitted.plan, self.forward, tx, unit, self._mesh, self._draw(0).params, optim.seed
        )
        self.measure = Measure(self.forward, params, accuracy)
        self._warm = False

    def _draw(self, seed: int) -> jp.State:
        return self._init(jax.random.key(seed), self.params)

    def train(
        self,
        one: Part,
        shape: Shape,
        lr: float,
        seed: int,
        advance: Callable[[int], None] = lambda steps: None,
    ) -> Trained:
        """One run from a fresh adapter.

        Args:
          one: the examples; their features are used where the arm has a structure.
          shape: of a micro-batch, the same for all runs, from `train.batching.shared_shapes`.
          lr: peak learning rate.
          seed: of the adapter and of the examples' order.
          advance: told after each update.
        """
        feed = self._feed(one, shape, seed)
        if not self._warm:
            self._start_update(lr, seed, next(self._feed(one, shape, seed))[0])
            self._warm = True
        now, consts = self._begin(lr, seed)
        losses, seconds, tokens = [], [], 0
        for batch, count in feed:
            begun = time.perf_counter()
            now, metrics = self._programs.update(now, consts, self.params, batch)
            losses.append(float(metrics['loss']))  # waits for the update
            seconds.append(time.perf_counter() - begun)
            tokens += count
            advance(1)
        return Trained(jp.State(now.params, consts), np.array(losses), np.array(seconds), tokens)

    def _feed(self, one: Part, shape: Shape, seed: int) -> Iterator[tuple[Batch, int]]:
        order = batcher(one, self.optim.batch, seed, self.steps)
        order.shapes = (shape,)
        for step in range(self.steps):
            batch = order.at(step)
            tokens = int((batch['segment_ids'] != 0).sum())
            yield with_features(batch, self.features(one)), tokens

    def features(self, one: Part) -> dict[str, np.ndarray]:
        """What the arm is given of a part's features: all, or nothing."""
        return one.features if self.fitted.arm.structure else {}

    def _begin(self, lr: float, seed: int) -> tuple[Any, Any]:
        params, consts = self._draw(seed)
        now = self._programs.start(params)
        rate = jax.device_put(jnp.float32(lr), meshes.replicated(self._mesh))
        return now._replace(opt_state=(*now.opt_state[:-1], Factor(rate))), consts

    def _start_update(self, lr: float, seed: int, batch: Batch) -> None:
        """Compiles the update, so that no run's seconds hold that."""
        now, consts = self._begin(lr, seed)
        jax.block_until_ready(self._programs.update(now, consts, self.params, batch))


def _unit(optim: Optim) -> Optim:
    return dataclasses.replace(optim, lr=1.0)


class Measure:
    """A forward pass on held-out batches: `measure(state, batches)`.

    Args:
      forward: `jp.bind(plan, model.apply)`.
      params: the base.
      accuracy: count the labels that are the likeliest token as well. It takes the logits of all
        labelled places at once: for small vocabularies.
    """

    def __init__(self, forward: Callable, params: Any, accuracy: bool):
        self._params, self._accuracy = params, accuracy
        self._program = jax.jit(
            functools.partial(_with_right if accuracy else _losses_only, forward)
        )

    def __call__(self, state: jp.State, batches: Sequence[Batch]) -> dict[str, Any]:
        """`{'nll', 'tokens'}`, total loss over total tokens, and 'accuracy' if asked."""
        sums = np.zeros(3)
        for batch in batches:
            weights = np.asarray(batch['weights'], np.float64)
            sums += [*(x @ weights for x in self._each(state, batch)), weights.sum()]
        nll, right, tokens = map(float, sums)
        found: dict[str, Any] = {'nll': nll / tokens, 'tokens': int(tokens)}
        return found | ({'accuracy': right / tokens} if self._accuracy else {})

    def losses(self, state: jp.State, batch: Batch) -> np.ndarray:
        """The loss of each labelled token [N], float64; what padding has is meaningless."""
        return self._each(state, batch)[0]

    def _each(self, state: jp.State, batch: Batch) -> np.ndarray:
        """Loss and rightness [2, N]."""
        return np.asarray(self._program(state, self._params, batch), np.float64)


def _call(forward: Callable, state: jp.State, params: Any, batch: Batch, **more: Any) -> jax.Array:
    keys = ('positions', 'segment_ids', 'select')
    given = {key: batch[key] for key in keys} | {'side': batch.get('side'), **more}
    return forward(state, {'params': params}, batch['tokens'], **given)


def _losses_only(forward: Callable, state: jp.State, params: Any, batch: Batch) -> jax.Array:
    nll = _call(forward, state, params, batch, labels=batch['labels'])
    return jnp.stack([nll, jnp.zeros_like(nll)])


def _with_right(forward: Callable, state: jp.State, params: Any, batch: Batch) -> jax.Array:
    logits = _call(forward, state, params, batch)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch['labels'])
    return jnp.stack([nll, jnp.argmax(logits, axis=-1) == batch['labels']])
