"""The first pass over a batch of prompts, which greedy, sampled, beam and scoring all share.

The tokens that all prompts of an evaluation begin with run once, for one row (`ready`); every batch
starts from copies of their keys and values (`prefill`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval import batches, placement
from jaxpeft import models

Cache = dict[str, jax.Array]
_ROW_AXIS = {'k': 1, 'v': 1, 'pos': 0, 'seg': 0}  # of a cache's leaves
_SLOT_AXIS = {'k': 3, 'v': 3, 'pos': 1, 'seg': 1}
_CARRIED = 'structure'  # a tree of one state a row, where an adapter follows the text's structure


@functools.partial(jax.jit, static_argnames=('forward', 'model'))
def _prefix(forward, model, state, params, tokens):
    P = tokens.shape[0]
    cache = model.init_cache(1, P)
    _, cache = forward(
        state,
        {'params': params},
        tokens[None, :],
        positions=jnp.arange(P, dtype=jnp.int32)[None, :],
        segment_ids=jnp.ones((1, P), jnp.int32),
        cache=cache,
        select=jnp.zeros(1, jnp.int32),  # no logits are needed: one position is the least
    )
    return cache


def ready(
    parts: tuple[Callable, Any, Any, Any],
    prompts: Sequence[np.ndarray],
    batch: int,
    *,
    spare: int,
    share: bool = True,
) -> tuple[Callable[..., tuple], Cache | None, list[batches.Batch]]:
    """Prompts in batches, and what they all begin with.

    Args:
      parts: forward, state, params and model.
      prompts: token arrays; each leaves `spare` of the model's positions.
      batch: rows a batch at most.
      spare: tokens that follow a prompt in the cache.
      share: look for what all prompts begin with.

    Returns:
      (place, which puts a batch's arrays where its rows live; the cache of one row that has read
      the shared tokens, None without; the batches).

    Raises:
      ValueError: see `batches.make`.
    """
    forward, state, params, model = parts
    place, size, multiple = placement.rows(params, batch)
    start, made = batches.make(
        prompts, size, share=share, multiple=multiple,
        longest=model.config.max_positions - spare, price=batches.compile_price(params),
    )  # fmt: skip
    prefix = _prefix(forward, model, state, params, start) if len(start) else None
    return place, prefix, made


def prefill(run: Callable, model: Any, prefix: Cache | None, tokens, lengths, spare: int):
    """Runs the prompts and leaves room in the cache for `spare` more tokens a row.

    Positions go on from the prefix. The rows' padding lies between the prefix and their own tokens,
    which is harmless: attention goes by segment and position, not by slot.

    Args:
      run: `forward` with its state and variables bound; called as the models are.
      model: has `init_cache(batch, length)`.
      prefix: the cache that `ready` gave, of P tokens.
      tokens: int32 [B, T], left-padded, without the prefix.
      lengths: int32 [B], real tokens in each row of `tokens`.
      spare: cache slots for what follows.

    Returns:
      (logits float32 [B, V] of what follows each prompt, cache, int32 [B] the next position).
    """
    (B, T), P = tokens.shape, used(prefix)
    cache = model.init_cache(B, P + T + spare)
    if prefix is not None:
        cache = {name: _insert(name, leaf, prefix[name]) for name, leaf in cache.items()}
        cache |= carried(prefix, lambda leaf: jnp.repeat(leaf, B, axis=0))
    pads = (T - lengths)[:, None]
    slots = jnp.arange(T, dtype=jnp.int32)[None, :]
    logits, cache = run(
        tokens,
        positions=jnp.where(slots >= pads, P + slots - pads, 0),
        segment_ids=(slots >= pads).astype(jnp.int32),
        cache=cache,
        select=jnp.arange(B, dtype=jnp.int32) * T + T - 1,
    )
    return logits, cache, P + lengths


def used(cache: Cache | None) -> int:
    """Slots of a cache."""
    return 0 if cache is None else cache['pos'].shape[1]


def _insert(name: str, leaf: jax.Array, prefix: jax.Array) -> jax.Array:
    """A leaf whose first slots are the prefix's, in every row."""
    if name not in _ROW_AXIS:
        return prefix
    axis = _ROW_AXIS[name]
    rows = jnp.repeat(prefix, leaf.shape[axis], axis=axis)
    return jax.lax.dynamic_update_slice_in_dim(leaf, rows, 0, axis=_SLOT_AXIS[name])


def spread(cache: Cache, times: int) -> Cache:
    """Repeats every row of a cache `times` times, a row's copies side by side."""
    rows = {
        name: jnp.repeat(leaf, times, axis=_ROW_AXIS[name]) if name in _ROW_AXIS else leaf
        for name, leaf in cache.items()
    }
    return rows | carried(cache, lambda leaf: jnp.repeat(leaf, times, axis=0))


def carried(cache: Cache, change: Callable[[jax.Array], jax.Array]) -> Cache:
    """The states that a cache carries besides its keys, each changed; {} where it has none."""
    return {_CARRIED: jax.tree.map(change, cache[_CARRIED])} if _CARRIED in cache else {}


def step(forward: Callable, state: Any, loop: Any, cache: Cache, token, position):
    """One token a row, in the body of a loop.

    Args:
      forward: see `ready`.
      state: adapter.
      loop: `jp.models.apart` of the base.
      cache: the same of what `prefill` gave (`caches.apart`).
      token: int32 [B].
      position: int32 [B].

    Returns:
      (logits float32 [B, V], cache).
    """
    return forward(
        state,
        {'params': models.joined(loop)},
        token[:, None],
        positions=position[:, None],
        segment_ids=jnp.ones((token.shape[0], 1), jnp.int32),
        cache=cache,
        select=jnp.arange(token.shape[0], dtype=jnp.int32),
    )
