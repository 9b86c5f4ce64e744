"""HyLoRADA v1: a blend of DoRA and LoRA that share one update, with a gated magnitude.

    W' = (W + s A B) o c
    c  = (1 - beta) (gamma m + (1 - gamma) m0) / |W + s A B| + beta       one number a column
    gamma = sigmoid(gate), beta = sigmoid(residual), m0 = |W|

Source: github SadiaTabassum1216/hylorada (2026), `HyLoRADALinear`. It computes a DoRA path and a
LoRA path and weighs them; both hold the same update, so the layer is LoRA with rescaled columns:
no function class beyond DoRA's, exactly mergeable, but other dynamics of m. Here the norm is
detached and the bias is not rescaled, as in DoRA's paper; there neither holds.
"""

import functools

import jax
import jax.numpy as jnp

from jaxpeft import base, factors
from jaxpeft.methods.dora import ratio
from jaxpeft.near import nearest

TARGETS = ('q_proj', 'k_proj', 'v_proj', 'o_proj')
SEARCH = {
    'rank': ('choice', 4, 8, 16, 32),
    'alpha_ratio': ('float', 0.5, 4.0, 'log'),
    'dropout': ('choice', 0.0, 0.05, 0.1),
    'gate_init': ('float', -1.0, 1.0),
    'residual_init': ('float', -1.0, 1.0),
    'loraplus_ratio': ('choice', 1.0, 4.0, 16.0),
}  # the names that the reference searches; there the rate and the LoRA+ ratio act on nothing
GAINS = {'orthogonal': 1.0, 'orthogonal_matched': 3.0**-0.5}
INITS = (*GAINS, 'kaiming')
LOGITS = ('gate', 'residual')


def hylorada(
    rank: int = 32,
    *,
    alpha: float | None = None,
    rslora: bool = False,
    dropout: float = 0.0,
    detach: bool = True,
    init: str = 'orthogonal',
    gate_init: float = 0.0,
    residual_init: float = 0.1,
    adaptive_gating: bool = True,
) -> base.Method:
    """HyLoRADA: `y = c o (x W + s (dropout(x) A) B)`, c as above.

    Leaves `a [n, r]`, `b [r, m]`, `m [m]`, the logits `gate []` and `residual []`, and the constant
    `norm [m]` (m0, where m starts), float32: `r (n + m) + m + 2` trainable numbers a kernel. `b`
    starts at zero, so the first forward pass is the base's; `a` and the two logits get their first
    gradient once b and m have moved. A bias is added after and never rescaled. At the start m acts
    with `(1 - beta) gamma`, about a quarter of its strength in DoRA.

    Args:
      rank: r, at most min(n, m).
      alpha: the numerator of s; `2 * rank` when None.
      rslora: `s = alpha / sqrt(r)` instead of `alpha / r`.
      dropout: rate on the update's input, in training only.
      detach: no gradient through the norm; without is the reference's way.
      init: of A. 'orthogonal': orthonormal columns, the reference's; its `|A|_F` is sqrt(3) times
        that of 'kaiming' (LoRA's own start), and so is each step's effect. 'orthogonal_matched' has
        kaiming's size: compare with this one to see what orthogonality does.
      gate_init: where `gate` starts: gamma is the share of the trained magnitude (0: a half; the
        reference's search ended at 0.37).
      residual_init: where `residual` starts: beta is LoRA's share (0.1: 52 %; searched: 0.22).
      adaptive_gating: train the two logits; without, they stay in `consts` as they start, which
        shows what training them does. With gate_init 100 and residual_init -100 as well it is DoRA
        with an orthogonal start.

    Returns:
      The method.

    Raises:
      ValueError: for options out of range; at init for a rank that the kernel cannot hold.

    Example:
      >>> import jax, jax.numpy as jnp, jaxpeft as jp
      >>> w = jnp.array([[3.0, 0.0], [4.0, 2.0]])
      >>> state = jp.methods.hylorada(rank=1).init(jax.random.key(0), w)
      >>> state.params['m'].tolist(), jp.count(state)
      ([5.0, 2.0], 8)
    """
    check('hylorada', init, dropout)
    alpha, scale = factors.scaling(rank, alpha, rslora)
    spec = {
        'name': 'hylorada', 'rank': rank, 'alpha': alpha, 'rslora': rslora, 'dropout': dropout,
        'detach': detach, 'init': init, 'gate_init': gate_init, 'residual_init': residual_init,
        'adaptive_gating': adaptive_gating,
    }  # fmt: skip

    def init_one(key, w):
        base.check_options('hylorada', w.shape, rank)
        state = draw(key, w, rank, init, gate_init, residual_init)
        return state if adaptive_gating else _frozen(state)

    def apply(state, w, x, *, key=None, side=None):
        del side
        dropped = base.dropout(key, x, dropout)
        columns = functools.partial(column_scale, state, w, scale, detach)
        y = factors.product(state, scale, x, w, dropped, columns)
        return y.astype(jnp.result_type(x, w))

    def weight(state, w):
        p, q = factors.pair(state, scale)
        return column_scale(state, w, scale, detach)[None, :] * (w.astype(jnp.float32) + p @ q)

    return base.Method(spec, init_one, apply, weight, base.no_penalty)


def check(name: str, init: str, dropout: float) -> None:
    """Refuses an unknown init and a dropout outside [0, 1).

    Raises:
      ValueError: naming the method, the value and the nearest init.
    """
    base.check_rate(name, dropout)
    if init not in INITS:
        raise ValueError(f'{name}: no init is called {init!r}; {nearest(init, INITS)}')


def draw(
    key: base.Array, w: base.Array, rank: int, init: str, gate_init: float, residual_init: float
) -> base.State:
    """A fresh v1 state of the kernel `w [n, m]`; arguments as those of `hylorada`."""
    n, m = w.shape
    if init in GAINS:
        a = jax.nn.initializers.orthogonal(GAINS[init])(key, (n, rank), jnp.float32)
    else:
        a = factors.INITS['kaiming'](key, (n, rank), n)
    norm = jnp.sqrt(jnp.sum(w.astype(jnp.float32) ** 2, axis=0))
    params = {
        'a': a,
        'b': jnp.zeros((rank, m), jnp.float32),
        'm': norm,
        'gate': jnp.full((), gate_init, jnp.float32),
        'residual': jnp.full((), residual_init, jnp.float32),
    }
    return base.State(params, {'norm': norm})


def _frozen(state: base.State) -> base.State:
    """The same with the two logits among the constants."""
    logits = {name: state.params[name] for name in LOGITS}
    trained = {name: leaf for name, leaf in state.params.items() if name not in LOGITS}
    return base.State(trained, {**state.consts, **logits})


def column_scale(
    state: base.State, w: base.Array, scale: float, detach: bool, whole: base.Array | None = None
) -> base.Array:
    """c `[m]`, float32: DoRA's ratio of the blended magnitude, blended with LoRA's 1."""
    gamma, beta = (jax.nn.sigmoid(factors.get(state, name)) for name in LOGITS)
    blended = gamma * state.params['m'] + (1.0 - gamma) * state.consts['norm']
    dora = ratio(state._replace(params={**state.params, 'm': blended}), w, scale, detach, whole)
    return (1.0 - beta) * dora + beta
