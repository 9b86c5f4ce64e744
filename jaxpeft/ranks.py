"""Layer-wise ranks: a rank of its own for every layer of a stack.

Under a layer scan all layers share one shape, so the factors have the largest rank and a layer of
rank q keeps its columns `a[:, q:]` and rows `b[q:, :]` at zero. They stay there by themselves: each
one's gradient is a product with the other. `consts['rank']` holds q; `consts['scale']` the factor
of the update where it depends on q; `count`, the penalty and the export read them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import base
from jaxpeft.near import nearest

RANK_AXIS = {'a': -1, 'b': -2}  # by leaf name
COUNTED = RANK_AXIS | {'gate': -1, 'diag': -1}  # leaves with a number for each rank
UNTOUCHED = ('gate', 'sigma', 'm', 'norm', 'residual', 'w_s')
STRATEGIES = ('uniform', 'importance', 'decreasing')


def of_strategy(name: str, rank: int, layers: int) -> tuple[int, ...]:
    """The rank of each layer, layer 0 first.

        uniform:     r
        importance:  max(2, floor(r (1 - 0.5 min(i, N-1-i) / (N/2)))): the ends keep r
        decreasing:  max(2, floor(r (1 - 0.5 i / (N-1))))

    Source: HyLoRADA's `lora_rank_strategy` (github SadiaTabassum1216/hylorada). A floor of 2 never
    exceeds r.

    Raises:
      ValueError: for an unknown strategy.

    Example:
      >>> of_strategy('decreasing', 8, 5)
      (8, 7, 6, 5, 4)
    """
    if name not in STRATEGIES:
        raise ValueError(f'no rank strategy is called {name!r}; {nearest(name, STRATEGIES)}')
    share = {
        'uniform': lambda i: 0.0,
        'importance': lambda i: min(i, layers - 1 - i) / (layers / 2),
        'decreasing': lambda i: i / max(layers - 1, 1),
    }[name]
    least = min(2, rank)
    return tuple(max(least, int(rank * (1 - 0.5 * share(i)))) for i in range(layers))


def check(spec: dict, ranks: tuple[int, ...], path: str) -> None:
    """Refuses ranks that do not fit the method.

    Raises:
      ValueError: for a method without a rank, or whose rank is not the largest one given.
    """
    if 'rank' not in spec:
        raise ValueError(f'{path}: {spec["name"]} has no rank that could differ between layers')
    if min(ranks) < 1 or max(ranks) != spec['rank']:
        raise ValueError(
            f"{path}: layer-wise ranks are at least 1 and the largest is the method's own, "
            f'{spec["name"]}(rank={spec["rank"]}); got {list(ranks)}'
        )


def masked(state: base.State, spec: dict, ranks: np.ndarray) -> base.State:
    """A site's state cut to its layers' ranks.

    Args:
      state: fresh, of the method's full rank, with the stack's axes in front.
      spec: the method's.
      ranks: int, of the stack's shape: `()` for one layer.

    Returns:
      The state with zeros beyond each rank and the consts `rank` and, for rsLoRA, `scale`. Alpha
      follows the rank, as in HyLoRADA: `alpha_q = alpha q / r`, and `alpha_q / q` is one number.

    Raises:
      ValueError: for a method that keeps a leaf of other rank axes (a removed tail, an initial
        product).
    """
    unknown = {*state.params, *state.consts} - {*RANK_AXIS, *UNTOUCHED}
    if unknown:
        raise ValueError(
            f'{spec["name"]} keeps {", ".join(sorted(unknown))}, which cannot be cut to a '
            "layer's rank; use one rank for all layers"
        )
    if spec.get('init') == 'orthogonal' and spec['name'] in ('lora', 'dora'):
        raise ValueError(
            f"{spec['name']}: init='orthogonal' starts with A B = 0 at the full rank only; use "
            "init='default' with layer-wise ranks"
        )
    number = jnp.asarray(ranks, jnp.int32)
    places = jax.lax.broadcasted_iota(jnp.int32, (*ranks.shape, spec['rank']), ranks.ndim)
    kept = places < number[..., None]  # [*stack, r]

    def cut(name: str, leaf: base.Array) -> base.Array:
        if name not in RANK_AXIS:
            return leaf
        mask = jnp.expand_dims(kept, -2 if RANK_AXIS[name] == -1 else -1)
        return jnp.where(mask, leaf, jnp.zeros_like(leaf))

    params, consts = ({k: cut(k, v) for k, v in part.items()} for part in state)
    consts['rank'] = number
    if spec.get('rslora'):
        consts['scale'] = (spec['alpha'] / spec['rank']) * jnp.sqrt(number.astype(jnp.float32))
    return base.State(params, consts)
