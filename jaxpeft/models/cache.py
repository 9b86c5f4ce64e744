"""Key/value cache and the positions of a forward pass.

A cache is a plain dict, so that it is a pytree and can be donated:
`{'k', 'v': [L, B, Hkv, S, D], 'pos', 'seg': [B, S] int32, 'index': int32 scalar}`, a head's
keys side by side, so that a decoding step multiplies by them as they lie. Slots that were
never written have segment 0 and are invisible. Rows share the index, so batches of prompts are
LEFT-padded with segment 0. Tokens beyond the last slot are an error, or NaN where the index is
traced.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxpeft.models.attention import Apart, Context, LayerInputs
from jaxpeft.models.config import ModelConfig
from jaxpeft.models.spread import Spread, out

Array = jax.Array
Cache = dict[str, Any]


def init_cache(config: ModelConfig, batch: int, length: int, dtype: Any) -> Cache:
    """An empty cache for `batch` rows of at most `length` tokens, padding included.

    Raises:
      ValueError: `length` exceeds the learned positions of a GPT-Neo.
    """
    if config.family == 'gpt_neo' and length > config.max_positions:
        raise ValueError(
            f'cache length must be at most max_positions={config.max_positions} of '
            f'{config.name or "this model"}, got {length}: shorten the prompt or generate less'
        )
    shape = (config.num_layers, batch, config.num_kv_heads, length, config.head_dim)
    return {
        'k': jnp.zeros(shape, dtype),
        'v': jnp.zeros(shape, dtype),
        'pos': jnp.zeros((batch, length), jnp.int32),
        'seg': jnp.zeros((batch, length), jnp.int32),
        'index': jnp.zeros((), jnp.int32),
    }


def context(
    tokens: Array,
    positions: Array | None,
    segment_ids: Array | None,
    cache: Cache | None,
    spread: Spread | None = None,
) -> Context:
    """Positions and segments of queries and keys; fills in the defaults.

    Segments default to 1 everywhere. Positions count from 0 within each run of one segment; with a
    cache the run goes on from the tokens of that segment that the cache already holds.

    With a `spread`, tokens and positions are `[G, P]`, each token once, and segments are those of
    attention's rows `[G, R, T]`.

    Raises:
      ValueError: shapes disagree, or more tokens come than the cache has slots left (see `fitting`
        where that is not known yet).
    """
    if spread is not None:
        return _spread_context(tokens, positions, segment_ids, cache, spread)
    for name, value in (('positions', positions), ('segment_ids', segment_ids)):
        if value is not None and value.shape != tokens.shape:
            raise ValueError(
                f'{name} must have the shape of tokens {tokens.shape}, got {value.shape}'
            )
    seg = jnp.ones(tokens.shape, jnp.int32) if segment_ids is None else segment_ids
    if cache is None:
        pos = run_positions(seg) if positions is None else positions
        return Context(q_pos=pos, q_seg=seg, k_pos=pos, k_seg=seg)
    held = 0 if isinstance(cache['index'], jax.core.Tracer) else int(cache['index'])
    room = (cache['pos'].shape[0], cache['pos'].shape[1] - held)
    if room[0] != tokens.shape[0] or tokens.shape[1] > room[1]:
        raise ValueError(f'the cache has room for tokens of shape {room}, got {tokens.shape}')
    pos = _continue(seg, cache) if positions is None else positions
    start = (0, cache['index'])
    return Context(
        q_pos=pos,
        q_seg=seg,
        k_pos=jax.lax.dynamic_update_slice(cache['pos'], pos, start),
        k_seg=jax.lax.dynamic_update_slice(cache['seg'], seg, start),
        slot=cache['index'],
        apart=Apart() if isinstance(cache['k'], tuple) else None,
    )


def _spread_context(
    tokens: Array,
    positions: Array | None,
    segment_ids: Array | None,
    cache: Cache | None,
    spread: Spread,
) -> Context:
    if positions is None or segment_ids is None or cache is not None:
        raise ValueError('spread needs positions and segment_ids, and knows no cache')
    shapes = (positions.shape, spread.back.shape, segment_ids.shape)
    if shapes != (tokens.shape, tokens.shape, spread.take.shape):
        raise ValueError(
            f'with spread, tokens {tokens.shape}, positions and spread.back are [G, P], and '
            f'segment_ids as spread.take {spread.take.shape} [G, R, T]; got {shapes}'
        )
    seg = segment_ids.reshape(-1, segment_ids.shape[-1])
    pos = out(spread, positions)
    return Context(q_pos=pos, q_seg=seg, k_pos=pos, k_seg=seg, spread=spread, places=positions)


def run_positions(seg: Array) -> Array:
    """[B, T] segments -> [B, T] int32: distance from the start of each run of equal segments."""
    where = jnp.broadcast_to(jnp.arange(seg.shape[1], dtype=jnp.int32)[None, :], seg.shape)
    first = jnp.ones_like(seg[:, :1], dtype=bool)
    starts = jnp.concatenate([first, seg[:, 1:] != seg[:, :-1]], axis=1)
    return where - jax.lax.cummax(jnp.where(starts, where, 0), axis=1)


def _continue(seg: Array, cache: Cache) -> Array:
    held = (seg[:, :, None] == cache['seg'][:, None, :]) & (cache['seg'] != 0)[:, None, :]
    return run_positions(seg) + held.sum(axis=-1, dtype=jnp.int32)


def fitting(hidden: Array, cache: Cache | None) -> Array:
    """Hidden states [B, T, D], NaN where the T tokens went beyond the cache's last slot.

    Their keys were then written over older ones, which no caller would notice.
    """
    if cache is None:
        return hidden
    full = cache['index'] + hidden.shape[1] > cache['pos'].shape[1]
    return jnp.where(full, jnp.nan, hidden)


def held(ctx: Context, layer: LayerInputs, k: Array, v: Array) -> tuple[Array, Array, Any]:
    """One layer's keys and values, those of the cache among them.

    Args:
      ctx: of the forward pass.
      layer: its k and v are the layer's part of the cache, or None without one.
      k: new ones, `[B, T, Hkv, D]`.
      v: new ones, `[B, T, Hkv, D]`.

    Returns:
      (k, v, new): all keys and values `[B, S, Hkv, D]`, and what `append` needs of the layer: the
      new ones; all of them where the cache is `apart`, which has no second copy to update; None
      without a cache.
    """
    if ctx.slot is None:
        return k, v, None
    whole = _extend(ctx.slot, layer.k, k), _extend(ctx.slot, layer.v, v)
    as_rows = lambda x: x.reshape(len(k), k.shape[2], *x.shape[-2:]).swapaxes(1, 2)
    return as_rows(whole[0]), as_rows(whole[1]), whole if ctx.apart is not None else (k, v)


def _extend(slot: Array, old: Array | None, new: Array) -> Array:
    """`old`, `[B, Hkv, S, D]` or one row's `[Hkv, S, D]`, with `new` `[B, T, Hkv, D]` in place."""
    assert old is not None
    new = new.swapaxes(1, 2).astype(old.dtype).reshape(*old.shape[:-2], *new.shape[1::2])
    start = [0] * (old.ndim - 2)
    return jax.lax.dynamic_update_slice(old, new, (*start, slot, 0))


def append(cache: Cache, ctx: Context, k: Array, v: Array) -> Cache:
    """The cache after a forward pass whose layers gave k, v (see `held`), stacked.

    One update of the whole stack, outside the layer scan, is in place when the cache is donated; a
    scan that returned the updated layers would copy the cache for every token.
    """

    def put(old: Any, new: Array) -> Any:
        if ctx.apart is not None:
            return tuple(new)
        start = (0, 0, 0, cache['index'], 0)
        return jax.lax.dynamic_update_slice(old, new.swapaxes(2, 3).astype(old.dtype), start)

    return {
        'k': put(cache['k'], k),
        'v': put(cache['v'], v),
        'pos': ctx.k_pos,
        'seg': ctx.k_seg,
        'index': cache['index'] + ctx.q_pos.shape[1],
    }


def apart(cache: Cache) -> Cache:
    """The cache with an array a layer, for a decoding loop of one token at a time.

    On CPU, where a layer's keys are otherwise copied out of the stack for every token; elsewhere
    the cache as it is. The models take either, and expect the weights of `loop.apart` with it.

    A single row's arrays are `[Hkv, S, D]`: XLA leaves an axis of one out of its products, and
    would copy the keys from the one shape to the other, four times a token.
    """
    if jax.default_backend() != 'cpu':
        return cache
    one_row = cache['pos'].shape[0] == 1

    def split(leaf: Array) -> tuple[Array, ...]:
        return tuple(leaf[:, 0] if one_row else leaf)

    return {**cache, 'k': split(cache['k']), 'v': split(cache['v'])}


def stacked(leaf: Any) -> Array:
    """Keys or values `[L, B, Hkv, S, D]` of a cache that may be apart."""
    return jnp.stack(leaf) if isinstance(leaf, tuple) else leaf
