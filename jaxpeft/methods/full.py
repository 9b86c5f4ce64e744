"""Full fine-tuning, the baseline: every leaf of the base trains, W' = value.

A method of leaves and not of kernels: embeddings, norms and biases train as well.
"""

import jax.numpy as jnp

from jaxpeft import base

TARGETS = ('all',)  # every leaf of the base


def full() -> base.Method:
    """Full fine-tuning of the leaves that the plan matches.

    One leaf, `value`, float32 of the base leaf's shape, that starts as a copy of it: the master
    weights of a bfloat16 base, which stays as it is. It has no `apply`: `bind` puts
    `weight(state, leaf)` in the leaf's place.

    Returns:
      The method.

    Example:
      >>> import jax, jax.numpy as jnp, jaxpeft as jp
      >>> bias = jnp.arange(3.0, dtype=jnp.bfloat16)
      >>> state = jp.methods.full().init(jax.random.key(0), bias)
      >>> state.params['value'].tolist(), jp.count(state)
      ([0.0, 1.0, 2.0], 3)
    """

    def init(key, w):
        del key
        return base.State({'value': jnp.array(w, jnp.float32)}, {})

    def weight(state, w):
        del w
        return state.params['value']

    return base.Method({'name': 'full'}, init, None, weight, base.no_penalty)
