"""The attention core: one module with one fixed signature, so that an override can replace it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array
EVERYONE = -1  # the segment of a key that every token sees, whatever its position (a prefix)


class Context(NamedTuple):
    """What every layer of one forward pass shares.

    Attributes:
      q_pos, q_seg: [B, T] int32, position within its segment and segment (0 = padding) of every
        query.
      k_pos, k_seg: [B, S] int32, the same of every key; S = T without a cache.
      cos, sin: [B, T, D / 2] float32 rotation of the queries' positions, None for learned
        positions.
      slot: int32 scalar, where the new keys go in the cache; None without one.
    """

    q_pos: Array
    q_seg: Array
    k_pos: Array
    k_seg: Array
    cos: Array | None = None
    sin: Array | None = None
    slot: Array | None = None


class LayerInputs(NamedTuple):
    """What differs from layer to layer; a leading layer axis under a scan.

    Attributes:
      window: int32 scalar or int, width of local attention; None: global.
      k, v: [B, S, Hkv, D], this layer's cache; None without one.
    """

    window: Array | int | None = None
    k: Array | None = None
    v: Array | None = None


def visible(
    q_pos: Array, k_pos: Array, q_seg: Array, k_seg: Array, window: Array | int | None
) -> Array:
    """[B, T, S] bool: same segment, not padding, not in the future, and inside the window.

    A key of segment `EVERYONE` is seen by every query that is not padding.
    """
    distance = q_pos[:, :, None] - k_pos[:, None, :]
    same = (q_seg[:, :, None] == k_seg[:, None, :]) & (k_seg != 0)[:, None, :]
    mask = same & (distance >= 0)
    mask = mask if window is None else mask & (distance < window)
    return mask | ((k_seg == EVERYONE)[:, None, :] & (q_seg != 0)[:, :, None])


class Attention(nn.Module):
    """softmax(scale * q k^T) v over the visible keys, grouped queries, softmax in float32.

    A query that sees nothing (padding) gives zeros, never NaN. The module has no parameters.

    Attributes:
      scale: multiplies the scores; 1 in GPT-Neo, 1 / sqrt(D) elsewhere.
    """

    scale: float

    def __call__(
        self,
        q: Array,
        k: Array,
        v: Array,
        *,
        q_pos: Array,
        k_pos: Array,
        q_seg: Array,
        k_seg: Array,
        window: Array | int | None = None,
        bias: Array | None = None,
    ) -> Array:
        """q: [B, T, H, D]; k, v: [B, S, Hkv, D], Hkv divides H -> [B, T, H, D] in q's dtype.

        `bias`, float32 [B or 1, H, T, S], is added to the scaled scores; an override's way in.
        """
        B, T, H, D = q.shape
        groups = k.shape[2]
        grouped = q.reshape(B, T, groups, H // groups, D)
        scores = jnp.einsum('btghd,bsgd->bghts', grouped, k, preferred_element_type=jnp.float32)
        mask = visible(q_pos, k_pos, q_seg, k_seg, window)[:, None, None]
        scores = scores * self.scale
        if bias is not None:
            scores = scores + bias.reshape(-1, groups, H // groups, *bias.shape[2:])
        probs = masked_softmax(scores, mask).astype(v.dtype)
        out = jnp.einsum('bghts,bsgd->btghd', probs, v)
        return out.reshape(B, T, H, D).astype(q.dtype)


def masked_softmax(scores: Array, mask: Array) -> Array:
    """Softmax over the last axis where `mask`; a row without one is zeros, as is its gradient."""
    low = jnp.finfo(scores.dtype).min
    masked = jnp.where(mask, scores, low)
    top = jax.lax.stop_gradient(masked.max(axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(masked - top), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)
