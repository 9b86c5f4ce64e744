"""The methods that are compared, with ranks that give them equal numbers to train.

HyLoRADA v2 sets the budget: its rank is asked for, and it has an encoder and a w_s in each kernel
besides. The others get the ranks, one a target (q, k, v, o), that come nearest to its count.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

import jaxpeft as jp
from jaxpeft import paths
from jaxpeft.structure import NAME, structure_encoder
from train.near import nearest

TARGETS = ('q_proj', 'k_proj', 'v_proj', 'o_proj')
V2 = 'hylorada_v2'
SHUFFLED = 'hylorada_v2_shuffled'


class Arm(NamedTuple):
    """One side of the comparison.

    Attributes:
      name: of the arm.
      method: of `jp.methods`.
      structure: whether it is given features.
      shuffled: whether they are those of other examples.
    """

    name: str
    method: str
    structure: bool = False
    shuffled: bool = False


ARMS = {
    arm.name: arm
    for arm in (
        Arm('lora', 'lora'),
        Arm('hylorada', 'hylorada'),
        Arm(V2, V2, structure=True),
        Arm(SHUFFLED, V2, structure=True, shuffled=True),
    )
}


class Fitted(NamedTuple):
    """An arm on a base.

    Attributes:
      arm: the arm.
      plan: of its method.
      ranks: target -> rank.
      trainable: numbers that train.
    """

    arm: Arm
    plan: dict[str, Any]
    ranks: dict[str, int]
    trainable: int


def get(name: str) -> Arm:
    """The arm of a name.

    Raises:
      ValueError: for an unknown one, with the nearest.

    Example:
      >>> get('hylorada').method
      'hylorada'
    """
    if name not in ARMS:
        raise ValueError(f'no method of this comparison is called {name!r}; {nearest(name, ARMS)}')
    return ARMS[name]


def fit(arm: Arm, model: Any, params: Any, rank: int, encoder: Mapping[str, Any]) -> Fitted:
    """The arm's plan, its ranks such that it trains as many numbers as v2 of rank `rank`.

    Args:
      arm: the arm.
      model, params: the base.
      rank: of v2 on every target.
      encoder: arguments of the structure's encoder, without `dim`.

    Raises:
      ValueError: for a rank below 1 or above what the kernels hold.
    """
    kernels = _kernels(params)
    names = list(dict.fromkeys(path.split('/')[-2] for path, _ in kernels))
    limit = min(min(leaf.shape[-2:]) for _, leaf in kernels)
    if not 1 <= rank <= limit:
        raise ValueError(
            f'--rank must lie between 1 and {limit}, the smallest side of the adapted kernels, '
            f'got {rank}'
        )
    same = dict.fromkeys(names, rank)
    v2 = _fitted(ARMS[V2], model, params, same, encoder)
    if arm.method == V2:
        return v2._replace(arm=arm)
    size = lambda ranks: _fitted(arm, model, params, ranks, encoder).trainable
    return _fitted(arm, model, params, _nearest(names, limit, size, v2.trainable), encoder)


def _nearest(
    names: list[str], limit: int, size: Callable[[dict[str, int]], int], budget: int
) -> dict[str, int]:
    """Ranks, at most one apart, whose size comes nearest to the budget; sizes grow by line."""
    ones = dict.fromkeys(names, 1)
    least = size(ones)
    slopes = [size(ones | {name: 2}) - least for name in names] if limit > 1 else [0] * len(names)
    low = min(max((budget - least) // max(sum(slopes), 1) + 1, 1), limit)
    choices: list[tuple[int, ...]] = [
        *itertools.product((low, min(low + 1, limit)), repeat=len(names))
    ]

    def distance(ranks: tuple[int, ...]) -> tuple[int, int]:
        grown = sum(slope * (rank - 1) for slope, rank in zip(slopes, ranks, strict=True))
        return abs(least + grown - budget), sum(ranks)

    best: tuple[int, ...] = min(choices, key=distance)
    return dict(zip(names, best, strict=True))


def _fitted(
    arm: Arm, model: Any, params: Any, ranks: dict[str, int], encoder: Mapping[str, Any]
) -> Fitted:
    plan = jp.compose(
        model,
        params,
        arm.method,
        options={arm.method: {'rank': min(ranks.values())}},
        targets=TARGETS,
        rank_pattern=ranks,
    )
    shared = f'~shared/{NAME}'
    if shared in plan:
        plan[shared] = structure_encoder(dim=plan[shared].spec['dim'], **encoder)
    shapes = jax.eval_shape(lambda key: jp.init(plan, key, params), jax.random.key(0))
    return Fitted(arm, plan, ranks, jp.count(shapes))


def _kernels(params: Any) -> list[tuple[str, Any]]:
    at = paths.targets(params, TARGETS)
    return [(path, leaf) for path, leaf in paths.flatten(params) if re.fullmatch(at, path)]
