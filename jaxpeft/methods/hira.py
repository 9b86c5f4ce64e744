"""HiRA (Huang et al., ICLR 2025, openreview TwJrTz9cRS): the Hadamard product with the kernel.

    W' = W + W o (A B)        o is elementwise; no alpha and no scale anywhere

The update's rank is up to rank(W) * r. It wants a larger learning rate than LoRA: 1e-3 and more
(the authors' README; PEFT's MetaMathQA run used 4.5e-3).
"""

import jax.numpy as jnp

from jaxpeft import base, factors, ops

TARGETS = ('q_proj', 'k_proj', 'v_proj', 'o_proj')
LEARNING_RATE = 1e-3  # HiRA's authors' README; ten times LoRA's
SEARCH = {'rank': ('choice', 4, 8, 16, 32)}


def hira(
    rank: int = 32,
    *,
    dropout: float = 0.0,
    init_ab: str = 'kaiming,zero',
    train_ab: str = 'yy',
) -> base.Method:
    """HiRA: `y = x W + dropout(x) (W o (A B))`.

    Leaves `a [n, r]`, `b [r, m]`, float32: `r (n + m)` trainable numbers a kernel, as LoRA. A zero
    of W stays zero.

    Args:
      rank: r, at most min(n, m).
      dropout: rate on the update's input, in training only.
      init_ab: how A and B start, see `jaxpeft.factors`.
      train_ab: which of A and B train.

    Returns:
      The method.

    Raises:
      ValueError: for options out of range; at init for a rank that the kernel cannot hold.

    Example:
      >>> import jax, jax.numpy as jnp, jaxpeft as jp
      >>> w = jnp.ones((4, 6))
      >>> method = jp.methods.hira(rank=2)
      >>> method.weight(method.init(jax.random.key(0), w), w).shape
      (4, 6)
    """
    how = factors.parse('hira', init_ab, train_ab)
    base.check_rate('hira', dropout)
    spec = {
        'name': 'hira', 'rank': rank, 'dropout': dropout, 'init_ab': init_ab, 'train_ab': train_ab,
    }  # fmt: skip

    def init(key, w):
        base.check_options('hira', w.shape, rank)
        a, b = how.draw(key, *w.shape, rank)
        return how.state(a, b, {}, {})

    def apply(state, w, x, *, key=None, side=None):
        del side
        a, b = factors.get(state, 'a'), factors.get(state, 'b')
        dropped = base.dropout(key, x, dropout) if key is not None and dropout else None
        return ops.hadamard_apply(x, w, a, b, jnp.ones(rank, jnp.float32), 1.0, dropped)

    def weight(state, w):
        w = w.astype(jnp.float32)
        return w + w * (factors.get(state, 'a') @ factors.get(state, 'b'))

    return base.Method(spec, init, apply, weight, base.no_penalty)
