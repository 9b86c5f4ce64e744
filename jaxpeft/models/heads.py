"""What the forms of attention share: who sees whom, and products with the heads in front."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
# The segment of a key that every token sees, whatever its position: a learned prefix.
EVERYONE = -1


def visible(
    q_pos: Array,
    k_pos: Array,
    q_seg: Array,
    k_seg: Array,
    window: Array | int | None,
    turned: bool = False,
) -> Array:
    """[B, T, S] bool: same segment, not padding, not in the future, and inside the window.

    A key of segment `EVERYONE` is seen by every query that is not padding. `turned` gives
    [B, S, T], made so and not transposed, which XLA would read across in each operation it is in.
    Positions are compared and not subtracted: XLA would lift the int32 distances out of the loop
    over layers, and keep them.
    """
    of_q, of_k = (2, 1) if not turned else (1, 2)
    q_pos, q_seg = (jnp.expand_dims(x, of_q) for x in (q_pos, q_seg))
    k_pos, k_seg = (jnp.expand_dims(x, of_k) for x in (k_pos, k_seg))
    mask = (q_seg == k_seg) & (k_seg != 0) & (q_pos >= k_pos)
    mask = mask if window is None else mask & (q_pos - window < k_pos)
    return mask | ((k_seg == EVERYONE) & (q_seg != 0))


def swapped(x: Array) -> Array:
    """`[B, S, G, D] -> [B, G, S, D]`, and the other way."""
    return jnp.swapaxes(x, 1, 2)


def dot(x: Array, y: Array, over_x: int, over_y: int, dtype: Any = jnp.float32) -> Array:
    """Matrix products over these axes of `[B, G, ..]` arrays, heads in front as they lie.

    An einsum from and to `[B, T, G, R, D]` lets XLA put the values on the left and write D before
    T: on CPU each of four such products took 30 to 45 ms of a batch in place of 7 to 10.
    """
    dims = (((over_x,), (over_y,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(x, y, dims, preferred_element_type=dtype)
