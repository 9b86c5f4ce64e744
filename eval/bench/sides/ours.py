"""Our training step: the update that `train.run` jits, on one device."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

import jaxpeft as jp
from eval.bench import adapters, questions
from eval.bench.context import LR, Context, base_folder, tokens
from eval.bench.rows import STEP
from train import cache, optimizer
from train import mesh as meshes
from train.config import Optim
from train.step import compile_programs

OPTIM = Optim(lr=LR, weight_decay=0.0, max_grad_norm=1.0, schedule='constant', warmup=0)


@functools.lru_cache(maxsize=1)
def base(context: Context) -> tuple[Any, Any, Any]:
    """The mesh, the Linen module and its parameters: one copy a process."""
    mesh = meshes.make('1,1,1')
    placed = functools.partial(jp.models.base_shardings, mesh=mesh)
    model, params, _ = jp.models.load(base_folder(context), shardings=placed)
    return mesh, model, params


def batch_of(context: Context, labels: str) -> dict[str, np.ndarray]:
    """The fixed batch of a training step, labelled everywhere or in one token of 16.

    Args:
      context: the shape.
      labels: 'all' or 'answer'.
    """
    ids = tokens(context)
    rows, length = ids.shape
    before = np.arange(rows * length, dtype=np.int32).reshape(ids.shape)[:, :-1].ravel()
    if labels == 'answer':
        before = before[np.linspace(0, len(before) - 1, context.answers).astype(int)]
    return {
        'tokens': ids,
        'positions': np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape),
        'segment_ids': np.ones(ids.shape, np.int32),
        'select': before,
        'labels': ids.ravel()[before + 1],
        'weights': np.ones(len(before), np.float32),
    }


def prepare(context: Context, spec: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """A training step of a method; each call is one update.

    Args:
      context: the shape.
      spec: method, targets ('attention', 'linear'), labels ('all', 'answer', 'commonsense').
    """
    cache.enable()
    mesh, model, params = base(context)
    plan, state = adapters.get(context, spec['method'], spec['targets'], params)
    where = jp.shardings(plan, state, jax.tree.map(lambda x: x.sharding, params))
    state = jax.device_put(state, where)
    rate = optimizer.schedule(OPTIM, total=1)
    tx: optax.GradientTransformation = optimizer.make(OPTIM, rate)
    forward = jp.bind(plan, model.apply)
    programs = compile_programs(plan, forward, tx, rate, mesh, state.params, seed=0)
    batches = _batches(context, spec['labels'])

    def update(train: Any, step: int) -> tuple[Any, dict[str, float]]:
        batch = meshes.put(mesh, batches.at(step), axis=1)
        train, metrics = programs.update(train, state.consts, params, batch)
        begun = time.monotonic()  # compiled, and handed to the device, which is still at it
        jax.block_until_ready(train)
        return train, {'begun': begun} | {name: float(metrics[name]) for name in STEP}

    for step in batches.fresh:  # compiles the shapes of a run, which is long enough to earn it
        update(programs.start(state.params), step)
    train, done = programs.start(state.params), 0

    def call() -> dict[str, Any]:
        nonlocal train, done
        train, facts = update(train, done)
        done += 1
        return facts

    return call


def _batches(context: Context, labels: str) -> questions.Packed:
    """The batch of each update, a micro-batch in front."""
    if labels == 'commonsense':
        return questions.packed(context)
    batch = {name: x[None] for name, x in batch_of(context, labels).items()}
    return questions.Packed(lambda step: batch, [])
