"""The programs of a sweep: `train.step`'s own functions, mapped over members and not over the base.

    start    (keys [K], numbers [K], base) -> TrainState [K], consts [K]
    update   (TrainState [K], consts [K], numbers [K], base, batch [K] or one) -> ..., metrics [K]
    validate (params [K], consts [K], numbers [K], base, batch [K] or one) -> sums [K], [K]

`numbers` are what differs between the members. The plan, the optimizer and the schedule are built
inside the mapped function, with the member's traced numbers in the places of their floats: the
formulas are those of a run alone. A product with a frozen kernel has no member axis on the kernel's
side, so `vmap` makes it one product over all members' rows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

import jaxpeft as jp
from train import mesh as meshes
from train import model as models
from train import optimizer, step
from train.config import Config
from train.model import Built
from train.step import TrainState
from train.sweep import streams

Tree = Any


class Programs(NamedTuple):
    """The programs, see above.

    Attributes:
      start, update, validate: jitted; the last two perhaps over threads (train.sweep.streams).
      shapes: `(keys, numbers)` -> what `start` returns, as shapes with shardings.
      jitted: the update itself.
    """

    start: Callable
    update: Callable
    validate: Callable
    shapes: Callable
    jitted: Any


def keys_of(configs: Sequence[Config]) -> jax.Array:
    """Each member's key data [K, 2] uint32: what a run alone draws its adapter and dropout from."""
    return jnp.stack([jax.random.key_data(jax.random.key(c.optim.seed)) for c in configs])


def compile_programs(
    built: Built,
    config: Config,
    steps: int,
    own_batches: bool,
    with_numbers: Callable[[Mapping[str, Any]], Config],
    width: int = 0,
    threads: int = 1,
) -> Programs:
    """Jits the programs; each compiles when it is first called with another number of members.

    Args:
      built: the base and where it lies; its plan and adapter are not used.
      config: a member's, for the shapes, which are those of all.
      steps: updates of the run, for the schedule.
      own_batches: each member has a batch of its own (seeds differ); else one serves all.
      with_numbers: the configuration with one member's (traced) numbers in it.
      width: members that are mapped at once, the others after them; 0 for all.
      threads: host threads that take a part of the members each.
    """
    mesh, model, tokenizer = built.mesh, built.model, built.tokenizer
    trained = models.as_trained(model, config)

    def parts(numbers: Mapping[str, Any], base: Tree) -> tuple[Config, Any]:
        config = with_numbers(numbers)
        return config, models.make_plan(config, model, base)

    def start_one(key: jax.Array, numbers: Mapping[str, Any], base: Tree) -> tuple:
        config, plan = parts(numbers, base)
        state = jp.init(plan, jax.random.wrap_key_data(key), base)
        state = jp.cast(state, jnp.dtype(config.adapter.adapter_dtype))
        tx = optimizer.make(config.optim, optimizer.schedule(config.optim, steps))
        opt_state = tx.init(step.as_float32(state.params))
        return TrainState(state.params, opt_state, jnp.zeros((), jnp.int32), key), state.consts

    def update_one(
        train: TrainState, consts: Tree, numbers: Mapping[str, Any], base: Tree, batch: Any
    ) -> tuple:
        config, plan = parts(numbers, base)
        rate = optimizer.schedule(config.optim, steps)
        forward = models.bound(plan, trained, tokenizer, training=True)
        tx = optimizer.make(config.optim, rate)
        one = step.make_update(plan, forward, tx, rate, step.has_dropout(plan))
        return one(train, consts, base, batch)

    def validate_one(
        params: Tree, consts: Tree, numbers: Mapping[str, Any], base: Tree, batch: Any
    ) -> tuple:
        _, plan = parts(numbers, base)
        forward = models.bound(plan, model, tokenizer)
        return step.make_validate(forward)(params, consts, base, batch)

    axes = (0, 0, 0, None, 0 if own_batches else None)
    start = meshes.within(mesh, jax.vmap(start_one, in_axes=(0, 0, None)))
    layouts, whole = _layouts(built, config, steps), meshes.replicated(mesh)
    update = jax.jit(
        meshes.within(mesh, _mapped(update_one, axes, width)),
        donate_argnums=0,
        out_shardings=(layouts[0], whole),
    )
    validate = jax.jit(meshes.within(mesh, _mapped(validate_one, axes, width)), out_shardings=whole)
    return Programs(
        start=jax.jit(start, out_shardings=layouts),
        update=streams.spread(update, axes, threads, mesh),
        validate=streams.spread(validate, axes, threads, mesh),
        jitted=update,
        shapes=lambda keys, numbers: meshes.placed(
            jax.eval_shape(start, keys, numbers, built.params), layouts
        ),
    )


def _mapped(one: Callable, axes: Sequence[int | None], width: int) -> Callable:
    """`jax.vmap(one, axes)`, `width` members at a time; 0 for all at once."""
    if not width:
        return jax.vmap(one, in_axes=axes)

    def many(*args: Any) -> Any:
        own = [arg for arg, axis in zip(args, axes, strict=True) if axis is not None]

        def single(mine: list[Any]) -> Any:
            rest = iter(mine)
            return one(
                *(a if axis is None else next(rest) for a, axis in zip(args, axes, strict=True))
            )

        return jax.lax.map(single, own, batch_size=width if width > 1 else None)

    return many


def _layouts(built: Built, config: Config, steps: int) -> tuple[TrainState, Tree]:
    """Where the members' leaves lie: side by side, each as that of a run alone."""
    plan = models.make_plan(config, built.model, built.params)
    state = models.adapter(config, plan, built.params, fresh=False)
    tx = optimizer.make(config.optim, optimizer.schedule(config.optim, steps))
    key = keys_of([config])[0]
    start = lambda p: TrainState(p, tx.init(step.as_float32(p)), jnp.zeros((), jnp.int32), key)
    alone = step.layouts_of(tx, jax.eval_shape(start, state.params), state.params, built.mesh)
    beside = lambda s: NamedSharding(s.mesh, PartitionSpec(None, *s.spec))
    return jax.tree.map(beside, (alone, jax.tree.map(lambda x: x.sharding, state.consts)))
