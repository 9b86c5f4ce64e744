"""The product of LoRA and what is built on it: through the sum `W + s A B`, or beside W.

    y = n o x (W + s A B - U Vt)                   one product; for many tokens
    y = n o (x W + s (x A) B - (x U) Vt)           a branch of its own; for few, or in bfloat16

The first costs `4 n m r` FLOPs for the sum (built again in the backward pass, never kept) and the
second `2 T r (n + m)` more for T tokens, and passes over `[T, m]` for its sums, which cost as
much again on CPU. n is one number a column, for methods that rescale them. Gradients of the first,
with V = W + s A B - U Vt, h = x A, g = dy (n o B)^T, and z = x V, kept where there is an n:

    dx = dy (n o V)^T        dA = s x^T g        dB = n o (s h^T dy)        dn = sum_T dy o z
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxpeft import base
from jaxpeft.base import Array

Tail = tuple[Array, Array] | None  # `u [n, k]`, `vt [k, m]`, a part of W that is taken out
Columns = Callable[[Array], Array] | None


def merges(x: Array, w: Array, dropped: Array) -> bool:
    """Whether `x [..., n]` has tokens enough for the sum, and the sum loses nothing.

    The factors must see the same input as W: `dropped`, x after dropout, is x itself.
    Rounded to bfloat16 the sum would lose a small update; see `jaxpeft.ops` for the same rule.
    """
    n, m = w.shape
    tokens = x.size // n
    fits = dropped is x and jnp.result_type(x, w) == jnp.float32
    return fits and tokens * (n + m) >= n * m


def matmul(
    x: Array, w: Array, a: Array, b: Array, tail: Tail, scale: float, columns: Columns = None
) -> Array:
    """`n * (x @ (w + scale * a @ b - u @ vt))`, float32.

    Args:
      x: `[..., n]` float32.
      w: `[n, m]` float32.
      a: `[n, r]` float32.
      b: `[r, m]` float32.
      tail: `(u, vt)`, constants, or None.
      scale: a number.
      columns: gives n, `[m]` float32, for the sum `[n, m]`, through which no gradient goes; None:
        nothing is rescaled.

    Returns:
      `[..., m]`.

    Example:
      >>> import jax.numpy as jnp
      >>> x, w, one = jnp.ones((1, 2)), jnp.eye(2), jnp.ones((2, 1))
      >>> matmul(x, w, one, one.T, None, 0.5).tolist()
      [[2.0, 2.0]]
    """
    whole = jax.lax.stop_gradient(_summed(w, a, b, tail, scale))
    n = None if columns is None else columns(whole)
    return _matmul(x, whole, w, a, b, tail, n, scale, base.precision())


def _summed(w: Array, a: Array, b: Array, tail: Tail, scale: float) -> Array:
    if tail is None:
        return w + scale * (a @ b)
    # One product of both pairs: on CPU each product is one more array of the kernel's size.
    left = jnp.concatenate([scale * a, -tail[0]], axis=1)
    return w + left @ jnp.concatenate([b, tail[1]], axis=0)


def rescaled(n: Array | None, y: Array) -> Array:
    """`n o y`, one number a column: `[m]`, `[..., m]`; y where there is no n."""
    return y if n is None else jnp.broadcast_to(n, y.shape) * y


@partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _matmul(
    x: Array, whole: Array, w: Array, a: Array, b: Array, tail: Tail, n: Array | None,
    scale: float, precision: str | None,
) -> Array:  # fmt: skip
    del w, a, b, tail, scale  # of the gradient
    del precision  # of the call; the backward pass is traced when it is no longer the current one
    return rescaled(n, jnp.matmul(x, whole))


def _forward(
    x: Any, whole: Any, w: Any, a: Any, b: Any, tail: Any, n: Any, scale: float,
    precision: str | None,
) -> Any:  # fmt: skip
    del scale, precision
    frozen = None if _trained(w, tail) else ()  # by structure: a bool would become an array
    x, whole, w, a, b, tail, n = jax.tree.map(lambda p: p.value, (x, whole, w, a, b, tail, n))
    z = jnp.matmul(x, whole)
    return rescaled(n, z), (x, w, a, b, tail, n, None if n is None else z, frozen)


def _trained(w: Any, tail: Any) -> bool:
    return any(p.perturbed for p in jax.tree.leaves((w, tail)))


def _backward(scale: float, precision: str | None, saved: Any, dy: Any) -> Any:
    with jax.default_matmul_precision(precision):
        return _gradients(scale, saved, dy)


def _gradients(scale: float, saved: Any, dy: Any) -> Any:
    x, w, a, b, tail, n, z, frozen = saved
    shape = x.shape
    x, dy = x.reshape(-1, shape[-1]), dy.reshape(-1, dy.shape[-1])
    # n goes to the kernel's side of each product: a pass over [T, m] less.
    dx = jnp.matmul(dy, rescaled(n, _summed(w, a, b, tail, scale)).T)
    h, g = x @ a, dy @ rescaled(n, b).T
    da, db = scale * (x.T @ g), rescaled(n, scale * (h.T @ dy))
    dn = None if z is None else _column_sums(dy, z.reshape(dy.shape))
    if frozen is not None:
        return dx.reshape(shape), None, None, da, db, None, dn
    dw = rescaled(n, x.T @ dy)  # the product that adapters exist to save
    dtail = None if tail is None else (-(dw @ tail[1].T), -(tail[0].T @ dw))
    return dx.reshape(shape), None, dw, da, db, dtail, dn


def _column_sums(dy: Array, z: Array) -> Array:
    """`sum_T dy o z`, `[m]`.

    The barrier keeps what follows out of XLA's fusion. With several readers, as in HyLoRADA, the
    product was not summed where it arises on CPU: a pass more over `[T, m]`, and a GELU's gradient
    computed twice for it.
    """
    return jax.lax.optimization_barrier(jnp.sum(dy * z, axis=0))


_matmul.defvjp(_forward, _backward, symbolic_zeros=True)
