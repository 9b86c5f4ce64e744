"""DAA, direct attention adaptation: a temperature and a distance bias on the attention logits.

    S' = alpha_h S + bias[bucket(q_pos - k_pos), h]        then the mask, then the softmax

S are the scaled scores of head h. Source: github SadiaTabassum1216/hylorada (2026), `daa.py`, where
no attention calls the module, so that it never learns; here it sits inside the attention core.
Further departures: the reference's additive beta_h is left out, a softmax does not see it; its
64 buckets include 32 of future keys that a causal mask hides, here every bucket can be reached. It
is not LoRaDA (Li et al., Findings of EMNLP 2025), which learns low-rank attention maps.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxpeft import base

TARGETS = ('core',)
SEARCH = {'num_buckets': ('choice', 8, 16, 32, 64)}


def daa(
    heads: int,
    *,
    num_buckets: int = 32,
    max_len: int = 2048,
    stack: tuple[int, ...] = (),
) -> base.Override:
    """DAA: an override of the attention core.

    Leaves `alpha [H]` ones and `bias [num_buckets, H]` zeros, float32: `H (1 + num_buckets)`
    numbers a layer, the identity at init. With `half = num_buckets // 2` a distance below `half`
    has a bucket of its own; the others are spaced evenly in its logarithm up to `max_len`, and the
    last one takes all beyond. Positions are those of the model, counted within each segment:
    padding, packing and a key/value cache change nothing.

    Args:
      heads: H, the query heads.
      num_buckets: rows of the table, at least 2.
      max_len: where the last bucket begins to saturate; above `num_buckets // 2`. Take the longest
        text: with 32768 (the reference's) a text of 1000 tokens meets 24 of 32 buckets.
      stack: the layer stack of a scanned model, `(num_layers,)`.

    Returns:
      The override.

    Raises:
      ValueError: for sizes out of range.

    Example:
      >>> import jax, jaxpeft as jp
      >>> method = jp.methods.daa(heads=4)
      >>> jp.count(method.init(jax.random.key(0)))
      132
    """
    _check(heads, num_buckets, max_len)
    edges = lower_edges(num_buckets, max_len)
    spec = {
        'name': 'daa', 'heads': heads, 'num_buckets': num_buckets, 'max_len': max_len,
        'stack': list(stack),
    }  # fmt: skip

    def init(key):
        del key
        bias = jnp.zeros((num_buckets, heads), jnp.float32)
        return base.State({'alpha': jnp.ones(heads, jnp.float32), 'bias': bias}, {})

    def call(state, core, q, k, v, *, q_pos, k_pos, key=None, side=None, **kwargs):
        del key, side
        # The product of a bfloat16 base's scores in float32: alpha = 1.003 rounds away in q.
        scaled = q.astype(jnp.float32) * state.params['alpha'][None, None, :, None]
        bias = _bias(state.params['bias'], q_pos, k_pos, edges)
        out = core(scaled, k.astype(jnp.float32), v, q_pos=q_pos, k_pos=k_pos, bias=bias, **kwargs)
        return out.astype(q.dtype)

    return base.Override(spec, init, call, base.no_penalty)


def dimensions(config: Any, target: str) -> dict[str, Any]:
    """The factory's dimensions on a model: `{'heads': H}`, the same for every target."""
    del target
    return {'heads': config.num_heads}


def lower_edges(num_buckets: int, max_len: int) -> tuple[int, ...]:
    """The smallest distance of each bucket but the first; not every one is reached if they tie.

    Example:
      >>> lower_edges(8, 64)
      (1, 2, 3, 4, 8, 16, 32)
    """
    half = num_buckets // 2
    far = num_buckets - half
    # The small slack keeps exact powers, such as 8 above, from being rounded up to 9.
    steps = [half * (max_len / half) ** (i / far) - 1e-9 * max_len for i in range(far)]
    return (*range(1, half), *(math.ceil(step) for step in steps))


def bucket(distance: base.Array, edges: tuple[int, ...]) -> base.Array:
    """Distances to bucket numbers, int32; a negative one (a future key, masked) has bucket 0."""
    inner = jnp.asarray(edges, distance.dtype)
    return jnp.searchsorted(inner, distance, side='right', method='compare_all').astype(jnp.int32)


@partial(
    jax.checkpoint, static_argnums=3
)  # keeps [B, T] positions for the backward pass, not the [B, T, S] buckets
def _bias(table, q_pos, k_pos, edges):
    """[n, H] -> [B, H, T, S], by the distance of query and key."""
    distance = q_pos[:, :, None] - k_pos[:, None, :]
    return jnp.moveaxis(table.T[:, bucket(distance, edges)], 0, 1)


def _check(heads: int, num_buckets: int, max_len: int) -> None:
    if heads < 1:
        raise ValueError(f'daa: heads must be at least 1, got {heads}')
    if num_buckets < 2:
        raise ValueError(f'daa: num_buckets must be at least 2, got {num_buckets}')
    if max_len <= num_buckets // 2:
        raise ValueError(
            f'daa: max_len must be above num_buckets // 2 = {num_buckets // 2}, got {max_len}; '
            f'the nearest valid choice is {num_buckets // 2 + 1}'
        )
