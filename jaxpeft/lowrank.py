"""The product of LoRA and what is built on it: through the sum `W + s A B`, or beside W.

    y = x (W + s A B - U Vt)                       one product; for many tokens
    y = x W + s (x A) B - (x U) Vt                 a branch of its own; for few, or in bfloat16

The first costs `4 n m r` FLOPs for the sum (built again in the backward pass, never kept) and the
second `2 T r (n + m)` more for T tokens, and passes over `[T, m]` for its sums, which cost as
much again on CPU. Gradients of the first, with h = x A and g = dy B^T:

    dx = dy (W + s A B - U Vt)^T        dA = s x^T g        dB = s h^T dy
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxpeft import base
from jaxpeft.base import Array

Tail = tuple[Array, Array] | None  # `u [n, k]`, `vt [k, m]`, a part of W that is taken out


def merges(x: Array, w: Array) -> bool:
    """Whether `x [..., n]` has tokens enough for the sum, and the sum loses nothing.

    Rounded to bfloat16 the sum would lose a small update; see `jaxpeft.ops` for the same rule.
    """
    n, m = w.shape
    tokens = x.size // n
    return jnp.result_type(x, w) == jnp.float32 and tokens * (n + m) >= n * m


def matmul(x: Array, w: Array, a: Array, b: Array, tail: Tail, scale: float) -> Array:
    """`x @ (w + scale * a @ b - u @ vt)`, float32.

    Args:
      x: `[..., n]` float32.
      w: `[n, m]` float32.
      a: `[n, r]` float32.
      b: `[r, m]` float32.
      tail: `(u, vt)`, constants, or None.
      scale: a number.

    Returns:
      `[..., m]`.

    Example:
      >>> import jax.numpy as jnp
      >>> x, w, one = jnp.ones((1, 2)), jnp.eye(2), jnp.ones((2, 1))
      >>> matmul(x, w, one, one.T, None, 0.5).tolist()
      [[2.0, 2.0]]
    """
    return _matmul(x, w, a, b, tail, scale, base.precision())


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _matmul(
    x: Array, w: Array, a: Array, b: Array, tail: Tail, scale: float, precision: str | None
) -> Array:
    del precision  # of the call; the backward pass is traced when it is no longer the current one
    return jnp.matmul(x, _summed(w, a, b, tail, scale))


def _summed(w: Array, a: Array, b: Array, tail: Tail, scale: float) -> Array:
    whole = w + scale * (a @ b)
    return whole if tail is None else whole - tail[0] @ tail[1]


def _forward(x: Any, w: Any, a: Any, b: Any, tail: Any, scale: float, precision: str | None) -> Any:
    frozen = None if _trained(w, tail) else ()  # by structure: a bool would become an array
    x, w, a, b, tail = jax.tree.map(lambda p: p.value, (x, w, a, b, tail))
    return _matmul(x, w, a, b, tail, scale, precision), (x, w, a, b, tail, frozen)


def _trained(w: Any, tail: Any) -> bool:
    return any(p.perturbed for p in jax.tree.leaves((w, tail)))


def _backward(scale: float, precision: str | None, saved: Any, dy: Any) -> Any:
    with jax.default_matmul_precision(precision):
        return _gradients(scale, saved, dy)


def _gradients(scale: float, saved: Any, dy: Any) -> Any:
    x, w, a, b, tail, frozen = saved
    shape = x.shape
    x, dy = x.reshape(-1, shape[-1]), dy.reshape(-1, dy.shape[-1])
    dx = jnp.matmul(dy, _summed(w, a, b, tail, scale).T)
    h, g = x @ a, dy @ b.T
    da, db = scale * (x.T @ g), scale * (h.T @ dy)
    if frozen is not None:
        return dx.reshape(shape), None, da, db, None
    dw = x.T @ dy  # the product that adapters exist to save
    dtail = None if tail is None else (-(dw @ tail[1].T), -(tail[0].T @ dw))
    return dx.reshape(shape), dw, da, db, dtail


_matmul.defvjp(_forward, _backward, symbolic_zeros=True)
