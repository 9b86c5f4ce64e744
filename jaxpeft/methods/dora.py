"""DoRA (Liu et al., ICML 2024, arXiv 2402.09353): magnitude and direction of each column apart.

    W' = n o (W + s A B)        n = m / |W + s A B|, one number an output column

The norm is a constant of the backward pass (the paper's section 4.3, the authors' and PEFT's
default), float32 and computed once a call: of the sum `W + s A B` where the product forms it (many
tokens; see `jaxpeft.lowrank`), else in factored form. PEFT forms the dense A B for it, by sending
an identity matrix through the layers.
"""

import functools

import jax
import jax.numpy as jnp

from jaxpeft import base, factors
from jaxpeft.methods.lora import draw, parse

TARGETS = ('q_proj', 'k_proj', 'v_proj', 'o_proj')
SEARCH = {
    'rank': ('choice', 4, 8, 16, 32),
    'alpha_ratio': ('float', 0.5, 4.0, 'log'),
}


def dora(
    rank: int = 32,
    *,
    alpha: float | None = None,
    rslora: bool = False,
    dropout: float = 0.0,
    detach: bool = True,
    init: str = 'default',
    init_ab: str = 'kaiming,zero',
    train_ab: str = 'yy',
) -> base.Method:
    """DoRA: `y = n o (x W + s (x A) B)`, with `n = m / |W + s A B|` a column.

    Leaves `a [n, r]`, `b [r, m]`, `m [m]` and the constant `norm [m]` (the norms of W's columns,
    not their squares; m starts there), float32: `r (n + m) + m` trainable numbers a kernel. The
    first forward pass is the base's. A bias is added after and never rescaled. With dropout, as in
    the authors' program and in PEFT, the base's own product sees all of x:

        y = x W + (n - 1) o (x' W) + n o s (x' A) B        x' = dropout(x)

    A column of zeros has no direction: it stays zero. Its cost beside LoRA's is, for the
    gradient of m, one `[..., m]` float32 activation and, for few tokens, `2 n m r` FLOPs a call for
    the norm.

    Args:
      rank: r, at most min(n, m).
      alpha: the numerator of s; `2 * rank` when None.
      rslora: `s = alpha / sqrt(r)` instead of `alpha / r`.
      dropout: rate on the input of all that is not the base's own product, in training only.
      detach: no gradient through the norm. Without, A and B also get the part of the gradient that
        keeps the columns' norms at m.
      init: see `jaxpeft.methods.lora`; 'pissa' and 'olora' keep the constants `u`, `vt` as well.
      init_ab: how A and B start, see `jaxpeft.factors`.
      train_ab: which of A and B train.

    Returns:
      The method.

    Raises:
      ValueError: for options out of range; for `init` together with `init_ab`; at init for a rank
        that the kernel cannot hold.

    Example:
      >>> import jax, jax.numpy as jnp, jaxpeft as jp
      >>> w = jnp.array([[3.0, 0.0], [4.0, 2.0]])
      >>> jp.methods.dora(rank=1).init(jax.random.key(0), w).params['m'].tolist()
      [5.0, 2.0]
    """
    how = parse('dora', init, init_ab, train_ab, rank)
    base.check_rate('dora', dropout)
    alpha, scale = factors.scaling(rank, alpha, rslora)
    spec = {
        'name': 'dora', 'rank': rank, 'alpha': alpha, 'rslora': rslora, 'dropout': dropout,
        'detach': detach, 'init': init, 'init_ab': init_ab, 'train_ab': train_ab,
    }  # fmt: skip

    def init_one(key, w):
        base.check_options('dora', w.shape, rank)
        a, b, consts = draw(init, how, key, w, rank, scale)
        norm = jnp.sqrt(jnp.sum(w.astype(jnp.float32) ** 2, axis=0))
        return how.state(a, b, {'m': norm}, {'norm': norm, **consts})

    def apply(state, w, x, *, key=None, side=None):
        del side
        dropped = base.dropout(key, x, dropout)
        # The base's own product sees all of x; the part that is rescaled sees what dropout left.
        columns = functools.partial(ratio, state, w, scale, detach)
        y = factors.product(state, scale, dropped, w, dropped, columns)
        if dropped is not x:
            y = y + jnp.matmul(x - dropped, w, preferred_element_type=jnp.float32)
        return y.astype(jnp.result_type(x, w))

    def weight(state, w):
        p, q = factors.pair(state, scale)
        return ratio(state, w, scale, detach)[None, :] * (w.astype(jnp.float32) + p @ q)

    return base.Method(spec, init_one, apply, weight, base.no_penalty)


def ratio(
    state: base.State, w: base.Array, scale: float, detach: bool, whole: base.Array | None = None
) -> base.Array:
    """`n = m / |W + s A B|`, `[m]` float32; no gradient through the norm where `detach`.

    The arguments are those of `factors.column_norm`.
    """
    if detach:
        constant, w = jax.lax.stop_gradient((state, w))
        norm = factors.column_norm(constant, scale, w, whole)
    else:
        # Recomputed in the backward pass: what it would keep is a float32 copy of a bfloat16 base.
        norm = jax.checkpoint(factors.column_norm)(state, scale, w)
    return state.params['m'] / norm
