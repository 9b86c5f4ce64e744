"""The pair of low-rank factors that most methods have: how they start and which of them train.

--init_ab 'kaiming,zero'   a ~ U(-1/sqrt(n), 1/sqrt(n)), b = 0: the step-0 model is the base
--train_ab 'yn'            train a, keep b as it started (it lies in `consts` then)
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpeft import base, linalg, lowrank
from jaxpeft.near import nearest


def _kaiming(key: base.Array, shape: tuple[int, int], fan_in: int) -> base.Array:
    """Kaiming-uniform with a = sqrt(5), as torch and PEFT start LoRA's A: U(+-1/sqrt(fan_in))."""
    bound = 1.0 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def _gaussian(key: base.Array, shape: tuple[int, int], fan_in: int) -> base.Array:
    """N(0, 1/r^2), PEFT's `init_lora_weights='gaussian'`; r is the smaller side of a factor."""
    del fan_in
    return jax.random.normal(key, shape, jnp.float32) / min(shape)


def _zero(key: base.Array, shape: tuple[int, int], fan_in: int) -> base.Array:
    del key, fan_in
    return jnp.zeros(shape, jnp.float32)


INITS: dict[str, Callable[..., base.Array]] = {
    'kaiming': _kaiming,
    'gaussian': _gaussian,
    'zero': _zero,
}


class Factors(NamedTuple):
    """How a method's `a [n, r]` and `b [r, m]` start and train; made by `parse`."""

    init_a: str
    init_b: str
    train_a: bool
    train_b: bool

    def draw(self, key: base.Array, n: int, m: int, rank: int) -> tuple[base.Array, base.Array]:
        """Fresh factors `a [n, rank]`, `b [rank, m]`, float32."""
        key_a, key_b = jax.random.split(key)
        a = INITS[self.init_a](key_a, (n, rank), n)
        return a, INITS[self.init_b](key_b, (rank, m), rank)

    def state(self, a: base.Array, b: base.Array, params: dict, consts: dict) -> base.State:
        """A state in which the factors lie where they train, or do not."""
        for name, leaf, trained in (('a', a, self.train_a), ('b', b, self.train_b)):
            (params if trained else consts)[name] = leaf
        return base.State(params, consts)


def parse(name: str, init_ab: str, train_ab: str) -> Factors:
    """Reads the two options.

    Args:
      name: the method's, for the errors.
      init_ab: two of `kaiming`, `gaussian`, `zero`, comma-separated: of a and of b.
      train_ab: `yy`, `yn` or `ny`: which of a and b train.

    Raises:
      ValueError: for other words; for two zeros, since neither would ever get a gradient.
    """
    parts = [part.strip() for part in init_ab.split(',')]
    if len(parts) != 2:
        raise ValueError(f"{name}: init_ab is two words such as 'kaiming,zero', got {init_ab!r}")
    for part in parts:
        if part not in INITS:
            raise ValueError(f'{name}: no init is called {part!r}; {nearest(part, list(INITS))}')
    if parts == ['zero', 'zero']:
        raise ValueError(
            f'{name}: with init_ab {init_ab!r} neither factor would ever get a gradient'
        )
    if train_ab not in ('yy', 'yn', 'ny'):
        raise ValueError(f"{name}: train_ab is 'yy', 'yn' or 'ny', got {train_ab!r}")
    frozen_zero = dict(zip(parts, train_ab, strict=True)).get('zero') == 'n'
    if frozen_zero:
        raise ValueError(
            f'{name}: init_ab {init_ab!r} with train_ab {train_ab!r} freezes the zero '
            'factor, so the update would stay zero'
        )
    return Factors(parts[0], parts[1], train_ab[0] == 'y', train_ab[1] == 'y')


def get(state: base.State, name: str) -> base.Array:
    """A leaf from where it lies: `params` when it trains, `consts` when it does not."""
    return state.params[name] if name in state.params else state.consts[name]


def scaling(rank: int, alpha: float | None, rslora: bool) -> tuple[float, float]:
    """`alpha` (2 r when None, as the commonsense papers set it) and `s = alpha / r`.

    With `rslora` (Kalajdzievski 2023, arXiv 2312.03732) `s = alpha / sqrt(r)`, which keeps the
    gradient's size as r grows.
    """
    alpha = 2.0 * rank if alpha is None else alpha
    if base.known(alpha):
        alpha = float(alpha)
    # A rank below 1 is refused at init, with the kernel's shape.
    divisor = max(rank, 1)
    return alpha, alpha / (math.sqrt(divisor) if rslora else divisor)


def scale_of(state: base.State, default: float) -> base.Array | float:
    """The factor of the update: `consts['scale']` where a layer has its own, else the method's."""
    return state.consts.get('scale', default)


def product(
    state: base.State, scale: float, x: base.Array, w: base.Array, dropped: base.Array,
    columns: Callable[[base.Array | None], base.Array] | None = None,
) -> base.Array:  # fmt: skip
    """`n o (x W + s (dropped A) B - (dropped U) Vt)` in float32, the cheaper way; see `lowrank`.

    Args:
      state: as for `update`.
      scale: s.
      x: `[..., n]`.
      w: `[n, m]`.
      dropped: x after dropout; x itself where there is none.
      columns: gives n, `[m]` float32, for the sum `W + s A B - U Vt` where it is formed, else for
        None; without it nothing is rescaled.

    Returns:
      `[..., m]`.
    """
    if not lowrank.merges(x, w, dropped):
        y = jnp.matmul(x, w, preferred_element_type=jnp.float32)
        y = base.summed(y + update(state, scale, dropped))
        return y if columns is None else per_column(columns(None), y)
    x, w = x.astype(jnp.float32), w.astype(jnp.float32)
    return lowrank.matmul(x, w, *_parts(state, scale), columns)


def column_norm(
    state: base.State, scale: float, w: base.Array, whole: base.Array | None = None
) -> base.Array:
    """The norms of the columns of `W + s A B - U Vt`, `[m]` float32, at least 1e-6 of W's.

    Args:
      state: as for `update`, with the constant `norm [m]`, W's own.
      scale: s.
      w: `[n, m]`.
      whole: the sum itself, where it was formed; None: in factored form, `linalg.column_norm`.
    """
    norm = state.consts['norm']
    if whole is None:
        return linalg.column_norm(w, *pair(state, scale), norm)
    return linalg.root(jnp.sum(whole**2, axis=0), norm)


# Keeps n for the backward pass, and not n repeated for every token.
per_column = jax.checkpoint(lowrank.rescaled)


def _parts(state: base.State, scale: float) -> tuple[base.Array, base.Array, lowrank.Tail, float]:
    """a, b, the part that is taken out and a number s, as `lowrank` has them."""
    a, b, s = get(state, 'a'), get(state, 'b'), scale_of(state, scale)
    tail = (state.consts['u'], state.consts['vt']) if 'u' in state.consts else None
    # A layer's own, or a sweep's, is an array.
    return (a, b, tail, s) if isinstance(s, float | int) else (a, s * b, tail, 1.0)


def update(state: base.State, scale: float, x: base.Array) -> base.Array:
    """What the factors add to `x @ w`: `s (x A) B - (x U) Vt`, float32.

    Args:
      state: with `a [n, r]`, `b [r, m]`; perhaps the consts `u [n, r]`, `vt [r, m]`, a part of the
        base that is taken out, and `scale`, which replaces the argument.
      scale: s.
      x: `[..., n]`, any float dtype.

    Returns:
      `[..., m]`.
    """
    x = x.astype(jnp.float32)
    # On the r side of the product: the backward pass then keeps b itself and no scaled copy.
    y = (scale_of(state, scale) * (x @ get(state, 'a'))) @ get(state, 'b')
    if 'u' in state.consts:
        y = y - (x @ state.consts['u']) @ state.consts['vt']
    return y


def pair(state: base.State, scale: float) -> tuple[base.Array, base.Array]:
    """The update as one product: `p [n, q]`, `q [q, m]` with `p @ q = s A B - U Vt`, float32.

    The inner side is r, or 2r where a part of the base is taken out.
    """
    a, b = get(state, 'a'), scale_of(state, scale) * get(state, 'b')
    if 'u' not in state.consts:
        return a, b
    u, vt = state.consts['u'], state.consts['vt']
    return jnp.concatenate([a, u], axis=1), jnp.concatenate([b, -vt], axis=0)
