"""How many numbers a trial would train, told before anything is trained."""

from typing import Any

import jax

import jaxpeft as jp
from jaxpeft import paths
from train import model as models
from train.config import Config
from train.model import Built
from train.tune import space as spaces
from train.tune.space import Space


def count(config: Config, built: Built) -> int:
    """The trainable numbers that act, from shapes alone; per-layer ranks are computed.

    Raises:
      ValueError: for a rank that a kernel cannot hold, or targets that match nothing.
    """
    plan = models.make_plan(config, built.model, built.params)
    start = lambda key, params: jp.init(plan, key, params)
    key = jax.random.key(config.optim.seed)
    shapes = jax.eval_shape(start, key, built.params)
    if any(path.endswith('/rank') for path, _ in paths.flatten(shapes.consts)):
        # XLA leaves out whatever the ranks do not need: no SVD, no draws.
        ranks = jax.jit(lambda key, params: _ranks(start(key, params).consts))
        return jp.count(jp.State(shapes.params, ranks(key, built.params)))
    return jp.count(shapes)


def _ranks(consts: Any) -> Any:
    """The tree with its `rank` leaves only."""
    kept = {k: _ranks(v) if isinstance(v, dict) else v for k, v in consts.items()}
    return {k: v for k, v in kept.items() if k == 'rank' or (isinstance(v, dict) and v)}


def check(config: Config, space: Space, built: Built) -> dict[str, int]:
    """Builds the ends of every range and every choice once, as shapes.

    Returns:
      'name=value' -> trainable numbers, the others as configured.

    Raises:
      ValueError: for a value that this model or method refuses, naming it.
    """
    found = {}
    for name, range_ in space.items():
        for value in range_.values:
            try:
                found[f'{name}={value}'] = count(spaces.apply(config, {name: value}), built)
            except ValueError as error:
                raise ValueError(
                    f'the search would try {name}={value}: {error}. '
                    f'Narrow it: --space FILE.yaml with {name}: {range_.plain()} less that value'
                ) from error
    return found
