"""Floating-point operations of a program, counted from its jaxpr: dots times trip counts.

XLA's own count takes the body of a scan once, and library calls not at all. Elementwise work is
left out: beside the dots of a transformer it is below a percent.
"""

from typing import Any

import jax

from train.preflight import flops


def count(fn: Any, *args: Any) -> float:
    """FLOPs of all matrix products in `fn(*args)` that lead to a result; arguments may be shapes.

    Raises:
      ValueError: as `train.preflight.flops.count`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> body = lambda x, _: (x @ jnp.ones((3, 3)), None)
      >>> count(lambda x: jax.lax.scan(body, x, length=5)[0], jnp.ones((2, 3)))
      180.0
    """
    return float(flops.count(jax.make_jaxpr(fn)(*args)))
