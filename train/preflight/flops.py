"""The arithmetic that a traced function asks for: its matrix products times their trip counts.

The jaxpr is of the whole update on all devices together, before any compiler: what is counted here
and not by the compiler was never used; what the compiler has more of, the devices do twice.
"""

import math
from typing import Any

from jax.extend import core
from jax.interpreters import partial_eval


def count(closed: core.ClosedJaxpr) -> int:
    """FLOPs of the matrix products that lead to a result.

    A `cond` counts as its dearest branch, the body of a `while` once.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def f(w, x):
      ...     return jax.lax.scan(lambda h, _: (h @ w, None), x, length=3)[0]
      >>> count(jax.make_jaxpr(f)(jnp.ones((4, 4)), jnp.ones((2, 4)))) == 3 * 2 * 2 * 4 * 4
      True
    """
    jaxpr = closed.jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(used)


def _count(jaxpr: Any) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
        (contracted, _), _ = params['dimension_numbers']
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    inner = [_count(sub) for sub in core.jaxprs_in_params(params)]
    if name == 'cond':
        return max(inner, default=0)
    return sum(inner) * (params['length'] if name == 'scan' else 1)
