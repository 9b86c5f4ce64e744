"""What is counted and not timed: FLOPs of our step, its floor, the bytes of its temporaries."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

import jaxpeft as jp
from eval.bench import adapters, floors, flops
from eval.bench.context import Context, config_of
from eval.bench.sides import ours
from train import optimizer
from train.step import TrainState, make_update


def prepare(context: Context, spec: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """A figure that does not change from call to call.

    Args:
      context: the shape.
      spec: method, targets, labels as of a step, and count: 'flops' (GFLOP), 'floor' (GFLOP),
        'temp' (MB of temporaries of the compiled step) or 'growth' (of them, MB a layer).
    """
    counted = {'flops': _flops, 'floor': _floor, 'temp': _temp, 'growth': _growth}[spec['count']]
    value = counted(context, {name: x for name, x in spec.items() if name != 'count'})
    return lambda: {'value': value}


def _flops(context: Context, spec: dict[str, Any]) -> float:
    return flops.count(*_step(context, spec, config_of(context))) / 1e9


def _floor(context: Context, spec: dict[str, Any]) -> float:
    labelled = len(ours.batch_of(context, spec['labels'])['select'])
    shape = context.rank, context.batch, context.length, labelled
    return floors.step(config_of(context), spec['method'], spec['targets'], *shape) / 1e9


def _temp(context: Context, spec: dict[str, Any]) -> float:
    return _temporaries(context, config_of(context).num_layers, **spec) / 1e6


def _growth(context: Context, spec: dict[str, Any]) -> float:
    """The difference between the whole depth and half of it, a layer."""
    whole = config_of(context).num_layers
    depths = whole, whole // 2
    sizes = [_temporaries(context, depth, **spec) for depth in depths]
    return (sizes[0] - sizes[1]) / (depths[0] - depths[1]) / 1e6


@functools.cache  # the whole depth is compiled once for both figures
def _temporaries(context: Context, depth: int, **spec: str) -> int:
    config = config_of(context)
    config = dataclasses.replace(config, num_layers=depth, windows=config.windows[:depth])
    update, *shapes = _step(context, spec, config)
    compiled = jax.jit(update, donate_argnums=0).lower(*shapes).compile()
    analysis: Any = compiled.memory_analysis()
    return analysis.temp_size_in_bytes


def _step(context: Context, spec: dict[str, Any], config: Any) -> tuple:
    """Our update and the shapes of its arguments: nothing is loaded."""
    model = jp.models.build(config)
    base = jp.models.param_shapes(model)
    plan = adapters.plan_of(context, spec['method'], spec['targets'], base)
    state = jax.eval_shape(functools.partial(jp.init, plan), jax.random.key(0), base)
    rate = optimizer.schedule(ours.OPTIM, total=1)
    tx = optimizer.make(ours.OPTIM, rate)
    update = make_update(plan, jp.bind(plan, model.apply), tx, rate, drops=False)

    def start(params: Any) -> TrainState:
        rng = jax.random.key_data(jax.random.key(0))
        return TrainState(params, tx.init(params), jax.numpy.int32(0), rng)

    batch = {name: x[None] for name, x in ours.batch_of(context, spec['labels']).items()}
    return update, jax.eval_shape(start, state.params), state.consts, base, batch
