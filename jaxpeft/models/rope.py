"""Rotary positions (https://arxiv.org/abs/2104.09864), halves layout as in Llama and Qwen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft.models.config import ModelConfig

Array = jax.Array


def frequencies(config: ModelConfig) -> np.ndarray:
    """[D / 2] float32: theta^(-2i / D), after the scaling that the config asks for.

    `linear` divides all by `factor`. `llama3` (Llama 3.1) divides the slow ones, keeps the fast
    ones, and goes over linearly in between, by how many turns a frequency makes within the original
    context.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    freq = (1.0 / (config.rope_theta**exponents)).astype(np.float32)
    rope = dict(config.rope)
    if not rope:
        return freq
    if rope['rope_type'] == 'linear':
        return (freq / rope['factor']).astype(np.float32)
    low, high = rope['low_freq_factor'], rope['high_freq_factor']
    turns = rope['original_max_position_embeddings'] * freq / (2 * np.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (keep * freq + (1 - keep) * freq / rope['factor']).astype(np.float32)


def angles(config: ModelConfig, positions: Array) -> tuple[Array, Array]:
    """positions [B, T] -> cos, sin: [B, T, D / 2] float32."""
    turns = positions.astype(jnp.float32)[:, :, None] * jnp.asarray(frequencies(config))[None, None]
    return jnp.cos(turns), jnp.sin(turns)


def rotate(x: Array, cos: Array | None, sin: Array | None) -> Array:
    """Rotates the pairs (x[i], x[i + D / 2]) of every head of x: [B, T, H, D], in float32."""
    assert cos is not None
    assert sin is not None
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
