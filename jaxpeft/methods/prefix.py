"""Prefix tuning (Li and Liang, ACL 2021, arXiv 2101.00190): learned keys and values in each layer.

out = softmax([q K_P^T, q K^T]) [V_P; V]        P learned rows in front, seen by every query

The direct form, without the paper's MLP over the prefix (PEFT's `prefix_projection=False`).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxpeft import base

TARGETS = ('core',)
SEARCH = {'length': ('choice', 4, 8, 16, 32), 'init_std': ('float', 0.005, 0.5, 'log')}
EVERYONE = -1  # the attention core's segment of a key that every token sees (models/heads.py)


def prefix(
    kv_heads: int,
    head_dim: int,
    *,
    length: int = 16,
    init_std: float = 0.02,
    stack: tuple[int, ...] = (),
) -> base.Override:
    """Prefix tuning: an override of the attention core.

    Leaves `prefix_k [P, Hkv, D]` and `prefix_v [P, Hkv, D]`, float32, drawn from N(0, init_std^2):
    `2 P Hkv D` numbers a layer. NOT the identity at init: P more keys take a part of every
    softmax, whatever their values; the issue's stated exception.

    Every query of every segment sees the prefix, whatever its window; padding does not. It is put
    before the core, behind rotation and cache: it has no position, tokens keep theirs (PEFT moves
    them by P), and a cache holds tokens alone. It takes the keys' dtype where they meet.

    Args:
      kv_heads: Hkv.
      head_dim: D.
      length: P.
      init_std: spread of the start; equal rows would stay equal for ever, so it is not 0.
      stack: the layer stack of a scanned model, `(num_layers,)`.

    Returns:
      The override.

    Raises:
      ValueError: for sizes or a spread that are not positive.

    Example:
      >>> import jax, jaxpeft as jp
      >>> method = jp.methods.prefix(kv_heads=2, head_dim=64, length=8)
      >>> jp.count(method.init(jax.random.key(0)))
      2048
    """
    _check(kv_heads, head_dim, length, init_std)
    shape = (length, kv_heads, head_dim)
    spec = {
        'name': 'prefix', 'kv_heads': kv_heads, 'head_dim': head_dim, 'length': length,
        'init_std': init_std, 'stack': list(stack),
    }  # fmt: skip

    def init(key):
        drawn = init_std * jax.random.normal(key, (2, *shape), jnp.float32)
        return base.State({'prefix_k': drawn[0], 'prefix_v': drawn[1]}, {})

    def call(state, core, q, k, v, *, k_pos, k_seg, key=None, side=None, **kwargs):
        del key, side
        front = (k.shape[0], length)

        def joined(name, x):
            rows = jnp.broadcast_to(state.params[name][None], (*front, *x.shape[2:]))
            return jnp.concatenate([rows.astype(x.dtype), x], axis=1)

        return core(
            q,
            joined('prefix_k', k),
            joined('prefix_v', v),
            k_pos=jnp.concatenate([jnp.zeros(front, k_pos.dtype), k_pos], axis=1),
            k_seg=jnp.concatenate([jnp.full(front, EVERYONE, k_seg.dtype), k_seg], axis=1),
            **kwargs,
        )

    return base.Override(spec, init, call, base.no_penalty)


def dimensions(config: Any, target: str) -> dict[str, Any]:
    """The factory's dimensions on a model: `{'kv_heads': Hkv, 'head_dim': D}`."""
    del target
    return {'kv_heads': config.num_kv_heads, 'head_dim': config.head_dim}


def _check(kv_heads: int, head_dim: int, length: int, init_std: float) -> None:
    for name, size in (('kv_heads', kv_heads), ('head_dim', head_dim), ('length', length)):
        if size < 1:
            raise ValueError(f'prefix: {name} must be at least 1, got {size}')
    if init_std <= 0.0:
        raise ValueError(f'prefix: init_std must be positive, got {init_std}; 0.02 is usual')
