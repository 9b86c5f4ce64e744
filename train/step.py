"""One update and one validation batch: pure functions, jitted once with their shardings."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

import jaxpeft as jp
from jaxpeft.base import Tree
from train import mesh as meshes
from train.loss import lm_loss

Batch = Mapping[str, jax.Array]


class TrainState(NamedTuple):
    """What an update changes.

    Attributes:
      params: the adapter's trained leaves.
      opt_state: the optimizer's.
      step: int32, updates made.
      rng: uint32 key data; the key of an update is this one folded with `step`.
    """

    params: Tree
    opt_state: Any
    step: jax.Array
    rng: jax.Array


class Programs(NamedTuple):
    """The compiled programs of a run.

    Attributes:
      start: `(params) -> TrainState`.
      update: `(train, consts, base, batch [G, ...]) -> (train, metrics)`; `train` is donated.
      validate: `(params, consts, base, batch) -> (sum of nll, sum of weights)`.
      shapes: the TrainState as shapes with shardings: what a checkpoint is restored into.
    """

    start: Callable
    update: Callable
    validate: Callable
    shapes: TrainState


def compile_programs(
    plan: Any,
    forward: Callable,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
    mesh: Mesh,
    params: Tree,
    seed: int,
    evaluated: Callable | None = None,
) -> Programs:
    """Jits the update and the validation with the shardings of everything they return.

    Without `out_shardings` the second update would see its own output laid out in another way, and
    compile again.

    Args:
      plan: the plan.
      forward: `jp.bind(plan, model.apply)`.
      tx: the optimizer.
      rate: the schedule, for the record.
      mesh: the mesh.
      params: the adapter's trained leaves, or their shapes with shardings.
      seed: of dropout.
      evaluated: the forward pass of the validation; `forward` when None.
    """
    whole = meshes.replicated(mesh)

    def start(params: Tree) -> TrainState:
        rng = jax.random.key_data(jax.random.key(seed))
        return TrainState(params, tx.init(as_float32(params)), jnp.zeros((), jnp.int32), rng)

    shapes = jax.eval_shape(start, params)
    layouts = layouts_of(tx, shapes, params, mesh)
    update = meshes.within(mesh, make_update(plan, forward, tx, rate, has_dropout(plan)))
    validate = meshes.within(mesh, make_validate(evaluated or forward))
    return Programs(
        start=jax.jit(start, out_shardings=layouts),
        update=jax.jit(update, donate_argnums=0, out_shardings=(layouts, whole)),
        validate=jax.jit(validate, out_shardings=whole),
        shapes=meshes.placed(shapes, layouts),
    )


def layouts_of(
    tx: optax.GradientTransformation, shapes: TrainState, params: Tree, mesh: Mesh
) -> TrainState:
    """Where each leaf of a TrainState lies: moments beside their parameters, counts everywhere.

    Args:
      tx: the optimizer.
      shapes: the TrainState's.
      params: the adapter's trained leaves, or their shapes, with shardings.
      mesh: the mesh.
    """
    whole = meshes.replicated(mesh)
    layout = jax.tree.map(lambda x: x.sharding, params)
    absent = lambda leaf: isinstance(leaf, optax.MaskedNode)  # of another group of LoRA+
    opt_layout = optax.tree.map_params(
        tx,
        lambda leaf, sharding: leaf if absent(leaf) else sharding,
        shapes.opt_state,
        layout,
        transform_non_params=lambda _: whole,
        is_leaf=absent,
    )
    return TrainState._make((layout, opt_layout, whole, whole))


def as_float32(params: Tree) -> Tree:
    """The leaves in float32: gradients and moments have it, whatever the adapter is kept in."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)


def has_dropout(plan: Any) -> bool:
    """Whether a method of the plan has dropout, so that an update needs a key for it."""
    methods = [getattr(rule, 'method', rule) for rule in plan.values()]  # out of their views
    return any(method.spec.get('dropout') for method in methods)


def make_update(
    plan: Any,
    forward: Callable,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
    drops: bool,
) -> Callable:
    """The update as a pure function of (train, consts, base, batch).

    `loss = sum of nll / sum of weights` over all micro-batches, which is the big batch's; the
    penalty is added once. Only the adapter is differentiated.
    """

    def update(
        train: TrainState, consts: Tree, base: Tree, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(train.rng), train.step)

        wide = as_float32(train.params)

        def summed(params: Tree, micro: Batch, number: jax.Array) -> tuple:
            drop = jax.random.fold_in(key, number) if drops else None
            return lm_loss(forward, jp.State(params, consts), base, micro, drop)

        def accumulate(total: tuple, item: tuple) -> tuple[tuple, None]:
            micro, number = item
            (nll, weight), grads = jax.value_and_grad(summed, has_aux=True)(wide, micro, number)
            return jax.tree.map(jnp.add, total, (grads, nll, weight)), None

        zero = jnp.zeros((), jnp.float32)
        start = (jax.tree.map(jnp.zeros_like, wide), zero, zero)
        numbers = jnp.arange(batch['tokens'].shape[0], dtype=jnp.uint32)
        (grads, nll, weight), _ = jax.lax.scan(accumulate, start, (batch, numbers))

        # The parameters, once the backward pass is done: what the penalty makes of them would else
        # lie beside all activations. XLA drops a barrier before it chooses the order on CPU.
        one = 1.0 + 0.0 * optax.tree.sum(jax.tree.map(lambda leaf: leaf.ravel()[0], grads))
        late = jax.tree.map(lambda leaf: one * leaf, wide)
        penalty, pull = jax.value_and_grad(
            lambda params: jp.penalty(plan, jp.State(params, consts), base)
        )(late)
        grads = jax.tree.map(lambda g, p: g / weight + p, grads, pull)
        changes, opt_state = tx.update(grads, train.opt_state, wide)
        metrics = {
            'loss': nll / weight,
            'penalty': penalty,
            'lr': jnp.asarray(rate(train.step), jnp.float32),
            'grad_norm': optax.tree.norm(grads),
        }
        params = optax.apply_updates(train.params, changes)
        metrics['param_norm'] = optax.tree.norm(params)
        return TrainState(params, opt_state, train.step + 1, train.rng), metrics

    return update


def make_validate(forward: Callable) -> Callable:
    """The validation sums of one batch: no dropout, no penalty."""

    def validate(params: Tree, consts: Tree, base: Tree, batch: Batch) -> tuple:
        return lm_loss(forward, jp.State(params, consts), base, batch)

    return validate
