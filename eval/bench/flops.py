"""Floating-point operations of a program, counted from its jaxpr: dots times trip counts.

XLA's own count takes the body of a scan once, and library calls not at all. Elementwise work is
left out: beside the dots of a transformer it is below a percent.
"""

import math
from typing import Any

import jax


def count(fn: Any, *args: Any) -> float:
    """FLOPs of all matrix products in `fn(*args)`; arguments may be shapes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> body = lambda x, _: (x @ jnp.ones((3, 3)), None)
      >>> count(lambda x: jax.lax.scan(body, x, length=5)[0], jnp.ones((2, 3)))
      180.0
    """
    return float(_of(jax.make_jaxpr(fn)(*args).jaxpr))


def _of(jaxpr: Any) -> float:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> float:
    """2 b m n k for a dot; a loop's body times its trips; the costliest branch of a condition.

    Raises:
      ValueError: for a while loop with dots in it, whose trips nobody knows.
    """
    name = equation.primitive.name
    if name == 'dot_general':
        return _dot(equation)
    inner = [_of(jaxpr) for jaxpr in _inner(equation.params)]
    if name == 'scan':
        return equation.params['length'] * sum(inner)
    if name == 'cond':
        return max(inner)
    if name == 'while' and sum(inner):
        raise ValueError('a while loop holds dots, and its number of trips is unknown')
    return sum(inner)


def _inner(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among an equation's parameters, closed or open, alone or in tuples."""
    found = []
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, 'jaxpr', one)
            if hasattr(one, 'eqns'):
                found.append(one)
    return found


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params['dimension_numbers']
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    return 2.0 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)
