"""KnowHiRA: HiRA whose rank-one terms are gated by the kernel's own singular values.

    W' = W + W o (alpha A G B)          G = diag(sigma o sigmoid(g))
    sigma_i = s_i(W) / s_1(W),  i <= k = min(r, floor(ratio min(n, m))),  sigma_i = sigma_k beyond

Source: Cui, Pan and Yang, github ctree4113/NLP-25Spring-FDU (2025). Where its program departs from
its own formula this file follows the formula: the SVD is of the loaded kernel (theirs is of a
random one), the update is not transposed (theirs runs on square layers only), gates are saved,
ranks beyond k are padded with the last value (theirs with 1, above every gated rank) and stay
trainable, and the scale of the initial spectrum is not capped at 0.1.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxpeft import base, factors, linalg, ops

TARGETS = ('q_proj', 'k_proj', 'v_proj', 'o_proj')
LEARNING_RATE = 1e-3  # HiRA's authors' README; ten times LoRA's
SEARCH = {
    'rank': ('choice', 4, 8, 16, 32),
    'knowledge_alpha': ('float', 0.1, 2.0, 'log'),
    'ortho_lambda': ('float', 1e-6, 1e-2, 'log'),
    'spectrum_init_scale': ('float', 0.03, 1.0, 'log'),
    'gate_init': ('float', -2.0, 2.0),
}
NORMS = ('max', 'sum', 'none')
MODES = ('reference', 'paper')


def knowhira(
    rank: int = 32,
    *,
    knowledge_alpha: float = 0.6,
    ortho_lambda: float = 1e-4,
    svd_rank_ratio: float = 0.85,
    spectrum_init_scale: float = 0.1,
    adaptive_gating: bool = True,
    gate_init: float = 0.0,
    dropout: float = 0.0,
    sigma_norm: str = 'max',
    ortho_mode: str = 'reference',
    svd: str = 'auto',
    init_ab: str = 'kaiming,zero',
    train_ab: str = 'yy',
) -> base.Method:
    """KnowHiRA: `y = x W + dropout(x) (W o (alpha A diag(sigma o sigmoid(gate)) B))`.

    Leaves `a [n, r]`, `b [r, m]`, `gate [r]` and the constant `sigma [r]`, all float32:
    `r (n + m) + r` trainable numbers a kernel. The penalty, with Grams of r x r, is

        'reference': lambda (0.5 |A^T A - I|_F^2 + 0.1 |B B^T - I|_F^2) / r^2, without the
                     reference's clamp at 1, which has no gradient
        'paper':     lambda (|A^T A - I|_F^2 + |B B^T - I|_F^2), about r^2 stronger

    Args:
      rank: r, at most min(n, m).
      knowledge_alpha: factor of the whole update: larger means a stronger one, 0 the base model.
      ortho_lambda: lambda, weight of the penalty.
      svd_rank_ratio: share of the spectrum that may gate ranks; acts only below r / min(n, m).
      spectrum_init_scale: c of the initial A: column i ~ U(+-1/sqrt(n)) c (0.1 + 0.9 sigma_i);
        0 switches the factor off (A starts as HiRA's).
      adaptive_gating: train the gates; without, G = diag(sigma).
      gate_init: where the gates start; 0 is sigmoid 0.5, the paper speaks of slightly negative.
      dropout: rate on the update's input, in training only.
      sigma_norm: 'max' divides by the largest singular value, 'sum' by the sum of the used ones,
        'none' by nothing.
      ortho_mode: the penalty's form.
      svd: 'exact', 'randomized' or 'auto', see `jaxpeft.linalg`.
      init_ab: how A and B start, see `jaxpeft.factors`.
      train_ab: which of A and B train.

    Returns:
      The method.

    Raises:
      ValueError: for options out of range; at init for a rank that the kernel cannot hold.

    Example:
      >>> import jax, jax.numpy as jnp, jaxpeft as jp
      >>> w = jnp.diag(jnp.array([4.0, 2.0, 1.0]))
      >>> state = jp.methods.knowhira(rank=2).init(jax.random.key(0), w)
      >>> state.consts['sigma'].tolist()
      [1.0, 0.5]
    """
    how = factors.parse('knowhira', init_ab, train_ab)
    base.check_rate('knowhira', dropout)
    base.check_not_negative('knowhira', ortho_lambda=ortho_lambda)
    base.check_not_negative('knowhira', spectrum_init_scale=spectrum_init_scale)
    if not 0.0 < svd_rank_ratio <= 1.0:
        raise ValueError(f'knowhira: svd_rank_ratio must be in (0, 1], got {svd_rank_ratio}')
    _check_word('sigma_norm', sigma_norm, NORMS)
    _check_word('ortho_mode', ortho_mode, MODES)
    _check_word('svd', svd, linalg.METHODS)
    spec = {
        'name': 'knowhira', 'rank': rank, 'knowledge_alpha': knowledge_alpha,
        'ortho_lambda': ortho_lambda, 'svd_rank_ratio': svd_rank_ratio,
        'spectrum_init_scale': spectrum_init_scale, 'adaptive_gating': adaptive_gating,
        'gate_init': gate_init, 'dropout': dropout, 'sigma_norm': sigma_norm,
        'ortho_mode': ortho_mode, 'svd': svd, 'init_ab': init_ab, 'train_ab': train_ab,
    }  # fmt: skip

    def init(key, w):
        base.check_options('knowhira', w.shape, rank)
        key_ab, key_svd = jax.random.split(key)
        sigma = _spectrum(key_svd, w, rank, svd_rank_ratio, sigma_norm, svd)
        a, b = how.draw(key_ab, *w.shape, rank)
        if spectrum_init_scale:
            a = a * (spectrum_init_scale * (0.1 + 0.9 * sigma / _positive(sigma[0])))[None, :]
        gate = {'gate': jnp.full(rank, gate_init, jnp.float32)} if adaptive_gating else {}
        return how.state(a, b, gate, {'sigma': sigma})

    def gamma(state):
        sigma = state.consts['sigma']
        return sigma * jax.nn.sigmoid(state.params['gate']) if adaptive_gating else sigma

    def apply(state, w, x, *, key=None, side=None):
        del side
        a, b = factors.get(state, 'a'), factors.get(state, 'b')
        dropped = base.dropout(key, x, dropout) if key is not None and dropout else None
        return ops.hadamard_apply(x, w, a, b, gamma(state), knowledge_alpha, dropped)

    def weight(state, w):
        a, b = factors.get(state, 'a'), factors.get(state, 'b')
        w = w.astype(jnp.float32)
        return w + w * ops.delta(a, b, gamma(state), knowledge_alpha)

    def penalty(state, w):
        del w
        a, b = factors.get(state, 'a'), factors.get(state, 'b')
        # A layer with fewer ranks than columns: each zero column counts 1 in a gap, and is none.
        used = state.consts.get('rank', jnp.int32(rank)).astype(jnp.float32)
        gap_a, gap_b = linalg.gram_gap(a, 0) - (rank - used), linalg.gram_gap(b, 1) - (rank - used)
        if ortho_mode == 'paper':
            return ortho_lambda * (gap_a + gap_b)
        return ortho_lambda * (0.5 * gap_a + 0.1 * gap_b) / used**2

    def hoist(state):
        params, by = dict(state.params), 'a' if how.train_a else 'b'
        if adaptive_gating:
            params[by] = _gated(params[by], params['gate'], -2 if by == 'a' else -1)
            params['gate'] = jax.lax.stop_gradient(params['gate'])
        return base.State(params, state.consts)

    return base.Method(spec, init, apply, weight, penalty, hoist=hoist)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gated(factor, gate, axis: int):
    """`factor` itself; in its gradient lies the gate's, since the loss knows their product only.

        L(a_i sigmoid(g_i))   =>   dL/dg_i = (1 - sigmoid(g_i)) sum(a_i o dL/da_i)

    So no layer makes or keeps a gradient of its gates. It is exact, without a division: a shut gate
    or a sigma of 0 is no special case.

    Args:
      factor: a `[..., n, r]` or b `[..., r, m]`.
      gate: `[..., r]`.
      axis: the factor's other axis, from the right.
    """
    del gate, axis
    return factor


def _gated_forward(factor, gate, axis):
    del axis
    return factor, (factor, gate)


def _gated_backward(axis, saved, change):
    factor, gate = saved
    return change, jax.nn.sigmoid(-gate) * jnp.sum(factor * change, axis)


_gated.defvjp(_gated_forward, _gated_backward)


def _spectrum(key, w, rank: int, ratio: float, norm: str, svd: str):
    """sigma [rank]: the kernel's top singular values, normalised; the last repeated if too few."""
    k = min(rank, max(1, int(ratio * min(w.shape))))
    top = linalg.top_singular_values(w, k, method=svd, key=key)
    size = {'max': top[0], 'sum': top.sum(), 'none': jnp.float32(1.0)}[norm]
    top = top / _positive(size)
    return jnp.concatenate([top, jnp.full(rank - k, top[-1])])


def _positive(size):
    """A divisor: a kernel of zeros has no spectrum, and 0 / 0 would make its adapter NaN."""
    return jnp.maximum(size, linalg.TINY)


def _check_word(option: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise ValueError(f'knowhira: {option} must be one of {", ".join(known)}, got {word!r}')
