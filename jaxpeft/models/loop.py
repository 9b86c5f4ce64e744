"""A decoding loop on CPU, one token of each row at a time: its weights and its products.

XLA on CPU copies a layer's kernel out of the stack before it multiplies by it: nothing beside the
work of a prompt, and twice the work of one token. Such a loop gets an array a layer instead, once,
and each `[out, in]` in memory. A product with few rows is as fast as the kernel is read; of the
forms that one product can have, those here are the fastest that XLA has on CPU:

    several rows   (w^T x^T)^T: the kernel is read as it lies; `x w` packs it anew each time
    one row        the outputs in PARTS batches, which the cores share; a matrix times a vector
                   runs on one of them
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from jaxpeft.models.names import flatten, is_kernel, is_stacked, unflatten

Array = jax.Array
PARTS = 4


def apart(params: Any) -> Any:
    """The base for a decoding loop: on CPU the stacked kernels as an array a layer.

    They are one more copy of those kernels; the other leaves are the same arrays. Elsewhere, and
    for unrolled layers, the parameters as they are.

    Args:
      params: of a model of this package.

    Returns:
      The tree, with `[L, in, out]` kernels as tuples of L `[out, in]`; see `joined`.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {'model': {'layers': {'up_proj': {'kernel': jnp.ones((2, 3, 5))}}}}
      >>> [w.shape for w in apart(params)['model']['layers']['up_proj']['kernel']]
      [(5, 3), (5, 3)]
    """
    if jax.default_backend() != 'cpu':
        return params
    split = lambda path, leaf: _split(leaf) if is_kernel(path) and is_stacked(path) else leaf
    return unflatten({path: split(path, leaf) for path, leaf in flatten(params)})


@jax.jit
def _split(w: Array) -> tuple[Array, ...]:
    return tuple(w[i].T for i in range(len(w)))


def joined(params: Any) -> Any:
    """The parameters that `apart` took apart, for a model's call inside the loop's jitted body.

    No array is moved: XLA sees that each layer's slice of the stack is what the stack is made of.
    """
    is_split = lambda leaf: isinstance(leaf, tuple)
    join = lambda leaf: jnp.stack([w.T for w in leaf]) if is_split(leaf) else leaf
    return jax.tree.map(join, params, is_leaf=is_split)


def dense(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """An interceptor that gives each `nn.Dense` of one token a row the product of this file.

    It comes after those of adapters: what they multiply by themselves stays theirs.
    """
    module = context.module
    if type(module) is not nn.Dense or context.method_name != '__call__':
        return next_fun(*args, **kwargs)
    (x,) = args
    kernel: Any = module.get_variable('params', 'kernel')
    bias = module.get_variable('params', 'bias') if module.use_bias else None
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=module.dtype)
    y = product(x[:, 0], kernel, module.precision)[:, None]
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def product(x: Array, w: Array, precision: Any = None) -> Array:
    """`x [B, in] @ w [in, out]` for a `w` that lies in memory as `[out, in]`."""
    n_out = w.shape[1]
    if len(x) > 1:
        # The barriers keep XLA from turning it back into x @ w.
        columns = jax.lax.optimization_barrier(x.T)
        y = jax.lax.dot_general(w, columns, (((0,), (0,)), ((), ())), precision)
        return jax.lax.optimization_barrier(y).T
    parts = PARTS if n_out % PARTS == 0 else 1
    kernels = w.T.reshape(parts, n_out // parts, -1)
    same = jnp.broadcast_to(x, (parts, x.shape[1]))
    dims = (((2,), (1,)), ((0,), (0,)))
    return jax.lax.dot_general(kernels, same, dims, precision).reshape(1, n_out)
