"""Builds everything that a run trains with: base, plan, adapter, and where each lies."""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import jaxpeft as jp
from jaxpeft import paths, structure
from train import config as configs
from train import mesh as meshes
from train import options
from train.config import Config

Rules = dict[str, jp.Method | jp.Override]  # path regex -> what adapts there


class Built(NamedTuple):
    """A base with its adapter.

    Attributes:
      model: the Linen module.
      params: the base's parameters, sharded; read only.
      tokenizer: of the base, or None.
      plan: path regex -> method.
      state: the adapter; shapes with shardings where `fresh` was False.
      forward: `jp.bind(plan, model.apply)`, as it trains.
      evaluated: the same as it is validated and evaluated.
      mesh: the devices.
    """

    model: Any
    params: Any
    tokenizer: Any
    plan: Rules
    state: jp.State
    forward: Callable
    evaluated: Callable
    mesh: Mesh


class Run(NamedTuple):
    """A finished (or running) run read back: what evaluation needs."""

    model: Any
    params: Any
    tokenizer: Any
    plan: Rules
    state: jp.State
    forward: Callable
    config: Config


def setup(config: Config, fresh: bool = True) -> Built:
    """Loads the base onto the mesh and draws the adapter beside it.

    Args:
      config: the resolved configuration.
      fresh: False leaves the adapter as shapes, to be read from a checkpoint: no SVD is taken.

    Raises:
      ValueError: for a target that matches nothing, a mesh that does not fit, an `init_from` of
        another method, a method that trains nothing by itself (s2).
      FileNotFoundError: for a model that is not there.
    """
    mesh = meshes.make(config.model.mesh)
    model, params, tokenizer = jp.models.load(
        config.model.model_name,
        dtype=jnp.dtype(config.model.dtype),
        scan=config.model.scan,
        remat=None if config.model.remat == 'none' else config.model.remat,
        shardings=functools.partial(jp.models.base_shardings, mesh=mesh),
        attention=_evaluated_attention(config),
    )
    return _fit(config, model, params, tokenizer, mesh, fresh)


def refit(config: Config, built: Built) -> Built:
    """A fresh adapter of another configuration on the same base.

    Args:
      config: with the same base (`config.model`) as `built` has.
      built: from `setup`.

    Raises:
      ValueError: as `setup`, of the adapter.
    """
    return _fit(config, built.model, built.params, built.tokenizer, built.mesh, True)


def _fit(config: Config, model: Any, params: Any, tokenizer: Any, mesh: Mesh, fresh: bool) -> Built:
    plan = make_plan(config, model, params)
    state = adapter(config, plan, params, fresh)
    evaluated = bound(plan, model, tokenizer)
    differs = any(map(_training_only, plan.values()))
    differs = differs or model.attention != config.model.attention
    trained = as_trained(model, config)
    forward = bound(plan, trained, tokenizer, training=True) if differs else evaluated
    return Built(model, params, tokenizer, plan, state, forward, evaluated, mesh)


def as_trained(model: Any, config: Config) -> Any:
    """The base with the attention that its updates are made with, see `--attention`."""
    return model.clone(attention=config.model.attention)


def make_plan(config: Config, model: Any, params: Any) -> Rules:
    """The rules of a command line: these methods on these layers.

    Raises:
      ValueError: for a layer name that matches nothing, with the nearest names.
    """
    asked = config.adapter
    return jp.compose(
        model,
        params,
        asked.method,
        options=config.options,
        targets=configs.listed(asked.target_modules),
        exclude=configs.listed(asked.exclude_modules),
        layers=options.numbers('layers', asked.layers),
        rank_pattern=options.pairs('rank_pattern', asked.rank_pattern, int),
        alpha_pattern=options.pairs('alpha_pattern', asked.alpha_pattern, float),
        rank_strategy=asked.rank_strategy,
        bias=asked.bias,
    )


def count(plan: Rules, params: Any, seed: int = 0) -> int:
    """The trainable numbers of a plan that act, from shapes: nothing is drawn, no SVD is taken.

    Args:
      plan: the rules.
      params: the base, or its shapes.
      seed: of the run.

    Raises:
      ValueError: for a rank that a kernel cannot hold, or targets that match nothing.
    """
    return jp.count(outline(plan, params, seed))


def outline(plan: Rules, params: Any, seed: int = 0) -> jp.State:
    """A plan's adapter for `jp.count` and `jp.summary`: shapes, and the ranks where layers differ.

    Args, Raises: as `count`.
    """
    start = lambda key, params: jp.init(plan, key, params)
    key = jax.random.key(seed)
    shapes = jax.eval_shape(start, key, params)
    if not any(path.endswith('/rank') for path, _ in paths.flatten(shapes.consts)):
        return shapes
    # Layer-wise ranks are numbers, not shapes. XLA leaves out whatever they do not need.
    zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
    ranks = jax.jit(lambda key: _ranks(start(key, zeros()).consts))(key)
    return jp.State(shapes.params, ranks)


def summary(built: Built) -> str:
    """`jp.summary` of a run, of which a state of shapes (where it continues) holds no ranks."""
    return jp.summary(built.plan, outline(built.plan, built.params), built.params)


def _ranks(consts: Any) -> Any:
    """The tree with its `rank` leaves only."""
    kept = {k: _ranks(v) if isinstance(v, dict) else v for k, v in consts.items()}
    return {k: v for k, v in kept.items() if k == 'rank' or (isinstance(v, dict) and v)}


def bound(plan: Rules, model: Any, tokenizer: Any, training: bool = False) -> Callable:
    """`jp.bind`; a plan that knows of the text's structure reads it off the tokens.

    Args:
      training: with the methods that are for training only (shifted sparse attention).

    Raises:
      ValueError: for a plan with a structure and a model without a tokenizer.
    """
    if not training:
        plan = {pattern: rule for pattern, rule in plan.items() if not _training_only(rule)}
    forward = jp.bind(plan, model.apply)
    return structure.if_planned(plan, forward, tokenizer, model.config.vocab_size)


def _evaluated_attention(config: Config) -> str:
    """A kernel by name is for the update alone: evaluation has passes that none can do."""
    return 'plain' if config.model.attention == 'plain' else 'auto'


def _training_only(rule: Any) -> bool:
    name = getattr(rule, 'method', rule).spec['name']
    return name in jp.methods.names() and hasattr(jp.methods.module(name), 'TRAINING_ONLY')


def adapter(config: Config, plan: Rules, params: Any, fresh: bool) -> jp.State:
    """The adapter, born in its shardings; or those shapes and shardings alone.

    Raises:
      ValueError: for a method that trains nothing by itself (s2), an `init_from` of another.
      FileNotFoundError: for an `init_from` that is no adapter.
    """
    key = jax.random.key(config.optim.seed)
    dtype = jnp.dtype(config.adapter.adapter_dtype)
    start = lambda key, params: jp.cast(jp.init(plan, key, params), dtype)
    shapes = jax.eval_shape(start, key, params)
    if not jax.tree.leaves(shapes.params):
        method = config.adapter.method
        raise ValueError(
            f'--method {method} has no numbers to train; add it to a method that has: lora+{method}'
        )
    layout = jp.shardings(plan, shapes, jax.tree.map(lambda x: x.sharding, params))
    if not fresh:
        return meshes.placed(shapes, layout)
    if config.adapter.init_from:
        return _from_adapter(config, shapes, layout, params)
    return jax.jit(start, out_shardings=layout)(key, params)


def _from_adapter(config: Config, shapes: jp.State, layout: jp.State, params: Any) -> jp.State:
    """The numbers of an adapter folder, which must be of the same method, rank and layers."""
    folder = config.adapter.init_from
    if not (pathlib.Path(folder) / 'adapter.json').is_file():
        raise FileNotFoundError(
            f'--init_from takes an adapter folder; {folder} has no adapter.json'
        )
    plan, state = jp.load_adapter(folder, params)
    found = sorted({getattr(rule, 'method', rule).spec['name'] for rule in plan.values()})
    asked = {
        *jp.plans.split(config.adapter.method),
        *(['full'] if config.adapter.bias != 'none' else []),
    }
    if found != sorted(asked):
        raise ValueError(
            f'--init_from {folder} holds {", ".join(found)}, --method is {config.adapter.method}'
        )
    want, have = jax.tree.map(jnp.shape, shapes), jax.tree.map(jnp.shape, state)
    if want != have:
        raise ValueError(
            f'--init_from {folder} has other layers or another rank than the flags ask for: '
            f'it has {_first_leaves(state)}, they ask for {_first_leaves(shapes)}'
        )
    return jax.device_put(state, layout)


def _first_leaves(state: jp.State, shown: int = 4) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    names = ['/'.join(part.key for part in path) + f' {tuple(x.shape)}' for path, x in leaves]
    return ', '.join(names[:shown]) + (f' and {len(names) - shown} more' if names[shown:] else '')


def load_run(folder: str | pathlib.Path, base: str = '') -> Run:
    """Reads a run's base, adapter and configuration, onto the default device.

    Args:
      folder: a run directory; it must hold config.json and adapter/.
      base: where the base model lies now; empty means where the run found it.

    Raises:
      FileNotFoundError: for a folder without them.

    Example:
      run = load_run('runs/NAME')
      logits = run.forward(run.state, {'params': run.params}, tokens)
    """
    folder = pathlib.Path(folder)
    for needed in ('config.json', 'adapter/adapter.json'):
        if not (folder / needed).is_file():
            raise FileNotFoundError(
                f'{folder} is no run directory with an adapter: it has no {needed}; '
                'python -m train.run makes one'
            )
    config = configs.from_dict(json.loads((folder / 'config.json').read_text()))
    model, params, tokenizer = jp.models.load(
        base or config.model.model_name, dtype=jnp.dtype(config.model.dtype), scan=config.model.scan
    )
    plan, state = jp.load_adapter(folder / 'adapter', params)
    return Run(model, params, tokenizer, plan, state, bound(plan, model, tokenizer), config)
