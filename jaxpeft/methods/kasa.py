"""KaSA (Wang et al., ICLR 2025, arXiv 2412.06071): a gated update for the kernel's noisiest part.

    W' = W - U Vt + s A diag(d) B        U Vt: the r smallest singular triplets of W,  s = alpha / r

The base stays as it is: the removed tail is kept as two thin constants and subtracted, so that the
model without its adapter is the true base again (the authors and PEFT overwrite the kernel). Not
the base at step 0, by definition: the first forward pass is that of W - U Vt.

The authors' program (github juyongjiang/KaSA) keeps `in - r` triplets, not `min(in, out) - r`, and
so removes nothing where out < in; this file follows the paper, as PEFT does.
"""

import jax
import jax.numpy as jnp

from jaxpeft import base, factors, linalg, lowrank

TARGETS = ('q_proj', 'k_proj', 'v_proj', 'o_proj')
SEARCH = {
    'rank': ('choice', 4, 8, 16, 32),
    'alpha_ratio': ('float', 0.5, 4.0, 'log'),
    'beta': ('float', 1e-6, 1e-2, 'log'),
    'gamma': ('float', 1e-6, 1e-2, 'log'),
}


def kasa(
    rank: int = 32,
    *,
    alpha: float | None = None,
    beta: float = 1e-4,
    gamma: float = 1e-3,
    dropout: float = 0.0,
    init_ab: str = 'kaiming,zero',
    train_ab: str = 'yy',
) -> base.Method:
    """KaSA: `y = x W - (x U) Vt + s ((dropout(x) A) o diag) B`.

    Leaves `a [n, r]`, `b [r, m]`, `diag [r]` (drawn from N(0, 1)) and the constants `u [n, r]`,
    `vt [r, m]` with `u @ vt` the tail, all float32: `r (n + m) + r` trainable numbers a kernel. The
    penalty of a kernel, with Grams of r x r and norms that are not squared (the paper's equations
    9 to 12), is

        beta |diag|^2 + gamma (|A^T A - I|_F + |B B^T - I|_F)

    and `jp.penalty` sums it over the kernels, as PEFT does. The authors' program divides that sum
    by the number of layers: divide beta and gamma by it for the same.

    Args:
      rank: r, below min(n, m): something must be left of W.
      alpha: the numerator of s; `2 * rank` when None.
      beta: weight of the penalty on the singular values.
      gamma: weight of the penalty on the factors.
      dropout: rate on the update's input, in training only; the tail sees all of x.
      init_ab: how A and B start, see `jaxpeft.factors`.
      train_ab: which of A and B train.

    Returns:
      The method.

    Raises:
      ValueError: for options out of range; at init for a rank that the kernel cannot hold.

    Example:
      >>> import jax, jax.numpy as jnp, jaxpeft as jp
      >>> w, method = jnp.diag(jnp.array([4.0, 2.0, 1.0])), jp.methods.kasa(rank=1)
      >>> state = method.init(jax.random.key(0), w)
      >>> jnp.diag(method.weight(state, w)).tolist()
      [4.0, 2.0, 0.0]
    """
    how = factors.parse('kasa', init_ab, train_ab)
    base.check_rate('kasa', dropout)
    base.check_not_negative('kasa', beta=beta, gamma=gamma)
    alpha, scale = factors.scaling(rank, alpha, rslora=False)
    spec = {
        'name': 'kasa', 'rank': rank, 'alpha': alpha, 'beta': beta, 'gamma': gamma,
        'dropout': dropout, 'init_ab': init_ab, 'train_ab': train_ab,
    }  # fmt: skip

    def init(key, w):
        base.check_options('kasa', w.shape, rank, kept=1)  # what W keeps of itself
        key_ab, key_diag = jax.random.split(key)
        a, b = how.draw(key_ab, *w.shape, rank)
        diag = jax.random.normal(key_diag, (rank,), jnp.float32)
        u, s, vt = linalg.bottom_singular_triplets(w, rank)
        return how.state(a, b, {'diag': diag}, {'u': u * s[None, :], 'vt': vt})

    def apply(state, w, x, *, key=None, side=None):
        del side
        dropped = base.dropout(key, x, dropout)
        a, b, tail = _gated(state), factors.get(state, 'b'), (state.consts['u'], state.consts['vt'])
        dtype = jnp.result_type(x, w)
        if lowrank.merges(x, w, dropped):
            x, w = x.astype(jnp.float32), w.astype(jnp.float32)
            b, s = (b, scale) if base.known(scale) else (scale * b, 1.0)
            return lowrank.matmul(x, w, a, b, tail, s).astype(dtype)
        y = jnp.matmul(x, w, preferred_element_type=jnp.float32)
        y = y - (x.astype(jnp.float32) @ tail[0]) @ tail[1]
        return base.summed(y + (scale * (dropped.astype(jnp.float32) @ a)) @ b).astype(dtype)

    def weight(state, w):
        world = w.astype(jnp.float32) - state.consts['u'] @ state.consts['vt']
        return world + scale * _gated(state) @ factors.get(state, 'b')

    def penalty(state, w):
        del w
        gaps = (
            linalg.gram_gap(factors.get(state, 'a'), 0),
            linalg.gram_gap(factors.get(state, 'b'), 1),
        )
        return beta * jnp.sum(state.params['diag'] ** 2) + gamma * sum(map(_root, gaps))

    return base.Method(spec, init, apply, weight, penalty)


def _root(x: base.Array) -> base.Array:
    """The square root with gradient 0 at 0, where a factor is orthonormal and the norm smallest."""
    positive = x > 0.0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _gated(state: base.State) -> base.Array:
    """`A diag(d)`: `[n, r]`."""
    return factors.get(state, 'a') * state.params['diag'][None, :]
