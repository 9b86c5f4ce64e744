"""LoRA (Hu et al. 2021, arXiv 2106.09685): a low-rank matrix added to the frozen kernel.

W' = W + s A B        s = alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski, 2312.03732)
"""

import math

import jax.numpy as jnp

from jaxpeft import base, factors

TARGETS = ('q_proj', 'k_proj', 'v_proj', 'o_proj')


def lora(
    rank: int = 32,
    *,
    alpha: float | None = None,
    rslora: bool = False,
    dropout: float = 0.0,
    init_ab: str = 'kaiming,zero',
    train_ab: str = 'yy',
) -> base.Method:
    """LoRA: `y = x W + s (dropout(x) A) B`.

    Leaves `a [n, r]`, `b [r, m]`, float32: `r (n + m)` trainable numbers a kernel. With the default
    init (`A ~ U(-1/sqrt(n), 1/sqrt(n))`, `B = 0`) the first forward pass is the base's.

    Args:
      rank: r, at most min(n, m).
      alpha: the numerator of s; `2 * rank` when None, as the commonsense papers set it.
      rslora: divide by sqrt(r) instead of r.
      dropout: rate on the adapter's input, in training only.
      init_ab: how A and B start, see `jaxpeft.factors`.
      train_ab: which of A and B train.

    Returns:
      The method.

    Raises:
      ValueError: for options out of range; at init for a rank that the kernel cannot hold.

    Example:
      >>> import jax, jax.numpy as jnp, jaxpeft as jp
      >>> w, x = jnp.ones((4, 6)), jnp.ones((2, 4))
      >>> method = jp.methods.lora(rank=2)
      >>> state = method.init(jax.random.key(0), w)
      >>> bool((method.apply(state, w, x) == x @ w).all())
      True
    """
    how = factors.parse('lora', init_ab, train_ab)
    base.check_rate('lora', dropout)
    alpha = 2.0 * rank if alpha is None else float(alpha)
    scale = alpha / (math.sqrt(rank) if rslora else rank) if rank > 0 else 0.0
    spec = {
        'name': 'lora', 'rank': rank, 'alpha': alpha, 'rslora': rslora, 'dropout': dropout,
        'init_ab': init_ab, 'train_ab': train_ab,
    }  # fmt: skip

    def init(key, w):
        base.check_options('lora', w.shape, rank)
        a, b = how.draw(key, *w.shape, rank)
        return how.state(a, b, {}, {})

    def apply(state, w, x, *, key=None, side=None):
        del side
        a, b = factors.get(state, 'a'), factors.get(state, 'b')
        y = jnp.matmul(x, w)
        update = scale * ((base.dropout(key, x, dropout).astype(jnp.float32) @ a) @ b)
        return (y.astype(jnp.float32) + update).astype(y.dtype)

    def weight(state, w):
        a, b = factors.get(state, 'a'), factors.get(state, 'b')
        return w.astype(jnp.float32) + scale * (a @ b)

    return base.Method(spec, init, apply, weight, base.no_penalty)
