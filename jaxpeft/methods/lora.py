"""LoRA (Hu et al. 2021, arXiv 2106.09685): a low-rank matrix added to the frozen kernel.

W' = W + s A B        s = alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski, 2312.03732)

Other starts, by `init`. PiSSA and OLoRA begin at a part of W itself. PEFT takes that part out of
the base; here the base stays as it is and the part is subtracted from the update: W' = W + s A B -
U Vt with constants U Vt = s A_0 B_0. So step 0 is the base, and so is the model without adapter.

    orthogonal  A = G_1 Q_odd / 10, B = Q_even^T G_2 / 10: A B = 0 without a zero factor
                (datta0.github.io/posts/rethink-lora-init; Q random orthonormal, G Gaussian)
    pissa       s A B = the top r singular triplets of W (Meng et al. 2024, arXiv 2404.02948)
    olora       B^T, A^T = the first r columns, rows of the QR of W^T (Buyukakyuz, 2406.01775)
"""

import jax
import jax.numpy as jnp

from jaxpeft import base, factors, linalg, near

TARGETS = ('q_proj', 'k_proj', 'v_proj', 'o_proj')
SEARCH = {
    'rank': ('choice', 4, 8, 16, 32),
    'alpha_ratio': ('float', 0.5, 4.0, 'log'),
}  # what train.tune searches beside the learning rate; alpha = alpha_ratio * rank
INITS = ('default', 'orthogonal', 'pissa', 'olora')


def lora(
    rank: int = 32,
    *,
    alpha: float | None = None,
    rslora: bool = False,
    dropout: float = 0.0,
    init: str = 'default',
    init_ab: str = 'kaiming,zero',
    train_ab: str = 'yy',
) -> base.Method:
    """LoRA: `y = x W + s (dropout(x) A) B`, for PiSSA and OLoRA `... - (dropout(x) U) Vt`.

    Leaves `a [n, r]`, `b [r, m]`, float32: `r (n + m)` trainable numbers a kernel; with `init`
    'pissa' or 'olora' also the constants `u [n, r]`, `vt [r, m]`. The first forward pass is the
    base's. On an embedding table `W [V, D]`: `W'[ids]` and `x W'^T`, a tied head's logits.

    Args:
      rank: r, at most min(n, m); even for 'orthogonal'.
      alpha: the numerator of s; `2 * rank` when None, as the commonsense papers set it.
      rslora: divide by sqrt(r) instead of r.
      dropout: rate on the update's input, in training only. PEFT's PiSSA drops the input of `A B`
        but not that of the part taken out; here the update is one thing, and zero at step 0.
      init: 'default' follows `init_ab`; 'orthogonal', 'pissa' and 'olora' draw both factors.
      init_ab: how A and B start, see `jaxpeft.factors`. For an embedding table A's rows are tokens
        and kaiming's bound is 1 / sqrt(V); PEFT starts those at zero and B at N(0, 1), near
        which is 'zero,gaussian'.
      train_ab: which of A and B train.

    Returns:
      The method.

    Raises:
      ValueError: for options out of range; for `init` together with `init_ab`; at init for a rank
        that the kernel cannot hold.

    Example:
      >>> import jax, jax.numpy as jnp, jaxpeft as jp
      >>> w, x = jnp.ones((4, 6)), jnp.ones((2, 4))
      >>> method = jp.methods.lora(rank=2)
      >>> state = method.init(jax.random.key(0), w)
      >>> bool((method.apply(state, w, x) == x @ w).all())
      True
    """
    how = parse('lora', init, init_ab, train_ab, rank)
    base.check_rate('lora', dropout)
    alpha, scale = factors.scaling(rank, alpha, rslora)
    spec = {
        'name': 'lora', 'rank': rank, 'alpha': alpha, 'rslora': rslora, 'dropout': dropout,
        'init': init, 'init_ab': init_ab, 'train_ab': train_ab,
    }  # fmt: skip

    def init_one(key, w):
        base.check_options('lora', w.shape, rank)
        a, b, consts = draw(init, how, key, w, rank, scale)
        return how.state(a, b, {}, consts)

    def apply(state, w, x, *, key=None, side=None):
        del side
        # Rounded once, after the sum: a small update of a bfloat16 output would be lost for good.
        y = factors.product(state, scale, x, w, base.dropout(key, x, dropout))
        return y.astype(jnp.result_type(x, w))

    def weight(state, w):
        p, q = factors.pair(state, scale)
        return w.astype(jnp.float32) + p @ q

    def lookup(state, w, ids):
        del w
        p, q = factors.pair(state, scale)
        return p[ids] @ q

    def attend(state, w, x):
        del w
        p, q = factors.pair(state, scale)
        return (x.astype(jnp.float32) @ q.T) @ p.T

    return base.Method(spec, init_one, apply, weight, base.no_penalty, lookup, attend)


def parse(name: str, init: str, init_ab: str, train_ab: str, rank: int) -> factors.Factors:
    """Reads the options of a start; shared by the methods that have LoRA's.

    Raises:
      ValueError: for unknown words, for two starts at once, for an odd rank with 'orthogonal'.
    """
    if init not in INITS:
        raise ValueError(f'{name}: no init is called {init!r}; {near.nearest(init, INITS)}')
    if init == 'default':
        return factors.parse(name, init_ab, train_ab)
    if init_ab != 'kaiming,zero':
        raise ValueError(
            f'{name}: init {init!r} draws both factors, so init_ab {init_ab!r} cannot hold too; '
            'give one of the two'
        )
    if init == 'orthogonal' and rank % 2:
        raise ValueError(
            f"{name}: init 'orthogonal' splits the rank in halves and needs an even one, "
            f'got rank={rank}; the nearest valid choice is {rank + 1}'
        )
    # No factor starts at zero, so any of them may be frozen.
    return factors.parse(name, 'kaiming,kaiming', train_ab)


def draw(
    init: str, how: factors.Factors, key: base.Array, w: base.Array, rank: int, scale: float
) -> tuple[base.Array, base.Array, dict[str, base.Array]]:
    """`a [n, r]`, `b [r, m]` and the constants: none, or `u`, `vt` with `u @ vt = s a @ b`."""
    n, m = w.shape
    if init == 'default':
        return *how.draw(key, n, m, rank), {}
    if init == 'orthogonal':
        return *_orthogonal(key, n, m, rank), {}
    a, b = _pissa(key, w, rank, scale) if init == 'pissa' else _olora(w, rank)
    return a, b, {'u': scale * a, 'vt': b}


def _orthogonal(key: base.Array, n: int, m: int, rank: int) -> tuple[base.Array, base.Array]:
    """PEFT's: odd and even rows of one orthonormal matrix never meet, so `a @ b = 0`."""
    key_q, key_a, key_b = jax.random.split(key, 3)
    q = jnp.linalg.qr(jax.random.normal(key_q, (rank, rank), jnp.float32))[0]
    a = jax.random.normal(key_a, (n, rank // 2), jnp.float32) @ q[0::2] / 10.0
    b = q[1::2].T @ jax.random.normal(key_b, (rank // 2, m), jnp.float32) / 10.0
    return a, b


def _pissa(
    key: base.Array, w: base.Array, rank: int, scale: float
) -> tuple[base.Array, base.Array]:
    """`a = U sqrt(S / s)`, `b = sqrt(S / s) Vt`: s is divided out, as in PEFT."""
    if scale <= 0.0:
        raise ValueError(f"init 'pissa' divides by the update's scale, got alpha / r = {scale}")
    u, s, vt = linalg.top_singular_triplets(w, rank, key=key)
    root = jnp.sqrt(s / scale)
    return u * root[None, :], root[:, None] * vt


def _olora(w: base.Array, rank: int) -> tuple[base.Array, base.Array]:
    """`b = Q_r^T`, `a = R_r^T = W Q_r` with `W^T = Q R`; Q's first r columns need W's first r rows.

    As in PEFT s is not divided out: the part that is taken out is `s W Q_r Q_r^T`.
    """
    w = w.astype(jnp.float32)
    q = jnp.linalg.qr(w[:rank].T)[0]  # [m, r]
    return jnp.matmul(w, q, precision=linalg.HIGHEST), q.T
