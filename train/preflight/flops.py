"""The arithmetic that a traced function asks for: its matrix products times their trip counts.

The jaxpr is of the whole update on all devices together, before any compiler: what is counted here
and not by the compiler was never used; what the compiler has more of, the devices do twice.

A Pallas kernel (TPU's attention) is a call that no compiler's count looks into. Here its body is
counted, times the steps of its grid: exact where one block holds a row (up to 512 tokens), and too
much by the blocks that lie wholly in the future, which it skips, where there are more.
"""

import math
from typing import Any

from jax.extend import core
from jax.interpreters import partial_eval


def count(closed: core.ClosedJaxpr, kernels_only: bool = False) -> int:
    """FLOPs of the matrix products that lead to a result.

    A `cond` counts as its dearest branch, the body of a `shard_map` once for each device.

    Args:
      closed: the traced function.
      kernels_only: those inside Pallas kernels alone.

    Raises:
      ValueError: for a `while` with products in it: nobody knows how often they are made.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def f(w, x):
      ...     return jax.lax.scan(lambda h, _: (h @ w, None), x, length=3)[0]
      >>> count(jax.make_jaxpr(f)(jnp.ones((4, 4)), jnp.ones((2, 4)))) == 3 * 2 * 2 * 4 * 4
      True
    """
    jaxpr = closed.jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(used, not kernels_only)


def _count(jaxpr: Any, here: bool) -> int:
    return sum(_equation(equation, here) for equation in jaxpr.eqns)


def _equation(equation: Any, here: bool) -> int:
    """`here`: products at this level count; inside a kernel they always do."""
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
        if not here:
            return 0
        (contracted, _), _ = params['dimension_numbers']
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    here = here or name == 'pallas_call'
    inner = [_count(sub, here) for sub in core.jaxprs_in_params(params)]
    if name == 'cond':
        return max(inner, default=0)
    if name == 'while' and sum(inner):
        raise ValueError('a while loop holds matrix products, and its number of trips is unknown')
    return sum(inner) * _times(name, params)


def _times(name: str, params: Any) -> int:
    """How often an operation runs what it holds."""
    if name == 'scan':
        return params['length']
    if name == 'shard_map':
        return math.prod(params['mesh'].shape[axis] for axis in params['newly_manual_axes'])
    return math.prod(params['grid_mapping'].grid) if name == 'pallas_call' else 1
