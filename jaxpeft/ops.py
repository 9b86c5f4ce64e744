"""The product that HiRA and KnowHiRA share, with a backward pass that keeps no [n, m] array.

    D = s * (a * gamma) @ b          [n, m], float32
    y = x @ (w * (c + D))            c = 1: the whole layer; c = 0: the update's branch alone

Autodiff would keep D (or w * (1 + D)) of every layer alive until its backward pass: a second copy
of the base. Here the residuals are the inputs, and D is rebuilt (2 n m r FLOPs, small against the
2 n m of each token). Gradients, with M = x^T dy, G = s * M * w:

    dx = dy @ (w * (c + D))^T        da = (G @ b^T) * gamma      db = gamma * (a^T @ G), by rows
    dgamma_i = a_i^T G b_i^T         dw = M * (c + D)            (dropped by XLA where unused)
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxpeft import base
from jaxpeft.base import Array, known


def delta(a: Array, b: Array, gamma: Array, scale: float) -> Array:
    """`D = scale * (a * gamma) @ b`: `[n, r], [r, m], [r] -> [n, m]` float32."""
    return scale * ((a * gamma[None, :]) @ b)


def _weight(w: Array, a: Array, b: Array, gamma: Array, scale: float, one: bool) -> Array:
    """`w * (1 + D)` or `w * D` in float32, rounded to w's dtype once."""
    w32 = w.astype(jnp.float32)
    change = w32 * delta(a, b, gamma, scale)
    return (w32 + change if one else change).astype(w.dtype)


def hadamard_matmul(
    x: Array, w: Array, a: Array, b: Array, gamma: Array, scale: float, one: bool
) -> Array:
    """`x @ (w * (one + scale * (a * gamma) @ b))`, float32.

    Args:
      x: `[..., n]`, the dtype of `w`. It is saved as it came: q, k and v share one residual.
      w: `[n, m]`.
      a: `[n, r]` float32.
      b: `[r, m]` float32.
      gamma: `[r]` float32, the weight of each rank-one term.
      scale: one number for all of the update.
      one: True for the whole layer, False for the update's branch alone.

    Returns:
      `[..., m]`, accumulated and returned in float32.
    """
    return _matmul(x, w, a, b, gamma, scale, one, base.precision())


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _matmul(
    x: Array, w: Array, a: Array, b: Array, gamma: Array, scale: float, one: bool,
    precision: str | None,
) -> Array:  # fmt: skip
    del precision  # of the call; the backward pass is traced when it is no longer the current one
    weight = _weight(w, a, b, gamma, scale, one)
    return jnp.matmul(x, weight, preferred_element_type=jnp.float32)


def _forward(x: Any, w: Any, a: Any, b: Any, gamma: Any, *how: Any) -> Any:
    return _matmul(x, w, a, b, gamma, *how), (x, w, a, b, gamma)


def _backward(scale: float, one: bool, precision: str | None, saved: Any, dy: Array) -> Any:
    with jax.default_matmul_precision(precision):
        return _gradients(scale, one, saved, dy)


def _gradients(scale: float, one: bool, saved: Any, dy: Array) -> Any:
    x, w, a, b, gamma = saved
    shape = x.shape
    # The cotangent takes the base's dtype: one kind of matmul for the whole layer.
    x, dy = x.reshape(-1, x.shape[-1]), dy.astype(x.dtype).reshape(-1, dy.shape[-1])
    weight = _weight(w, a, b, base.after(gamma, dy), scale, one)  # one kernel's at a time
    dx = jnp.matmul(dy, weight.T)
    outer = jnp.matmul(x.T, dy, preferred_element_type=jnp.float32)  # M [n, m]
    g = scale * outer * w.astype(jnp.float32)
    ag = a.T @ g  # [r, m]
    da = (g @ b.T) * gamma[None, :]
    db = gamma[:, None] * ag
    dgamma = jnp.einsum('rm,rm->r', b, ag)
    dw = outer * (delta(a, b, gamma, scale) + (1.0 if one else 0.0))
    return dx.reshape(shape), dw.astype(w.dtype), da, db, dgamma


_matmul.defvjp(_forward, _backward)


def hadamard_apply(
    x: Array, w: Array, a: Array, b: Array, gamma: Array, scale: float, dropped: Array | None
) -> Array:
    """The layer `x @ w + dropped @ (w * D)` in the cheapest form that loses nothing.

    With a float32 base and no dropout that is one product with `w * (1 + D)`. With a bfloat16 base
    the update travels as a branch of its own: `1 + D` rounded to bfloat16 is 1 for `D < 0.004`,
    while `w * D` keeps D's leading 8 bits; the branches meet in float32.

    Args:
      x: `[..., n]`.
      w: `[n, m]`.
      a: `[n, r]`.
      b: `[r, m]`.
      gamma: `[r]`.
      scale: one number; a traced one (of a sweep) acts through gamma.
      dropped: `x` after dropout, or None where there is none.

    Returns:
      `[..., m]` in the dtype of `x @ w`.
    """
    if not known(scale):
        gamma, scale = scale * gamma, 1.0
    dtype = jnp.result_type(x, w)
    x, w = x.astype(dtype), w.astype(dtype)
    if dropped is None and dtype == jnp.float32:
        y = hadamard_matmul(x, w, a, b, gamma, scale, True)
    else:
        branch = x if dropped is None else dropped.astype(dtype)
        y = jnp.matmul(x, w, preferred_element_type=jnp.float32)
        y = base.summed(y + hadamard_matmul(branch, w, a, b, gamma, scale, False))
    return y.astype(dtype)
