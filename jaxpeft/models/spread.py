"""Tokens that the examples of a batch have in common, once.

Examples that begin alike have the same hidden states as far as they do. So a batch can hold a
forest of its examples' prefixes, each token once: embeddings, linear layers and norms run over the
P tokens of each of G trees. Attention alone needs to know whose they are: its queries, keys and
values are copied out into rows of whole examples, packed as ever, and its result is taken back
from one copy of each token. All copies have the same, and the gradient of a token is the sum over
its copies.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Spread(NamedTuple):
    """Where the tokens of attention's rows come from, and where its results are found.

    Attributes:
      take: int32 `[G, R, T]`, for each place of R rows its token's number in tree g, below P;
        anything in padding.
      back: int32 `[G, P]`, for each token the flat place (below R * T) of one of its copies.

    Example:
      >>> spread = Spread(jnp.array([[[0, 1, 2, 0, 1, 3]]]), jnp.array([[0, 1, 2, 5]]))
      >>> rows = out(spread, jnp.array([[7, 8, 5, 6]]))  # 7 8 5 and 7 8 6, side by side in a row
      >>> rows.tolist(), home(spread, rows).tolist()
      ([[7, 8, 5, 7, 8, 6]], [[7, 8, 5, 6]])
    """

    take: Array
    back: Array


def out(spread: Spread | None, x: Array) -> Array:
    """`[G, P, ...]` -> `[G * R, T, ...]`; `x` itself without a Spread."""
    if spread is None:
        return x
    g, r, t = spread.take.shape
    return _pick(x, spread.take.reshape(g, r * t)).reshape(g * r, t, *x.shape[2:])


def home(spread: Spread | None, y: Array) -> Array:
    """`[G * R, T, ...]` -> `[G, P, ...]`; `y` itself without a Spread."""
    if spread is None:
        return y
    g, r, t = spread.take.shape
    return _pick(y.reshape(g, r * t, *y.shape[2:]), spread.back)


def _pick(x: Array, places: Array) -> Array:
    """x: `[G, N, ...]`, places: `[G, M]` -> `[G, M, ...]`; each g by itself, on its own device."""
    places = places.reshape(*places.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, places, axis=1, mode='clip')
