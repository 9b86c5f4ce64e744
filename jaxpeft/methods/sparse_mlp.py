"""Sparse MLP adapter: a bottleneck behind the FFN of which only the top-k neurons are active.

    y = z + U gelu(mask o (D z))        z: the frozen FFN's output, mask: top k of the scores

Source: github SadiaTabassum1216/hylorada (2026), `sparse_mlp.py`, after SparseAdapter (He et al.,
2022, arXiv 2210.04284). The reference hangs three more adapters that never run on the FFN's own
layers, and evaluates all N neurons; here there is one a FFN, and the k active ones are evaluated.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxpeft import base

TARGETS = ('mlp',)
SEARCH = {
    'neurons': ('choice', 32, 64, 128, 256),
    'ratio': ('float', 0.02, 0.5, 'log'),
}
SCORE_STD = 0.02


def sparse_mlp(
    dim: int,
    *,
    neurons: int = 128,
    ratio: float = 0.05,
    dropout: float = 0.0,
    stack: tuple[int, ...] = (),
) -> base.Override:
    """Sparse MLP: an override of the feed-forward module.

    Leaves `a [h, N]` (D, uniform in +-1/sqrt(h)), `b [N, h]` (U, zeros: the identity at init) and
    `scores [N]` (N(0, 0.02^2)), float32: `2 h N + N` trainable numbers a layer, of which
    `2 h k + N` act. `k = max(1, int(N ratio))`.

    The mask does not depend on the input, so forward and backward run over k gathered columns. Its
    straight-through gradient is that of `mask + k softmax(scores) - stop(k softmax(scores))`, and
    reaches every score: an inactive neuron's pre-activation is 0 with slope gelu'(0) = 1/2, hence

        dL/dgate_j = 1/2 sum_t (z_t . D_j) (dy_t . U_j)        for j outside the top k

    which costs the backward pass two products with all N neurons, and only where an inactive
    neuron has a non-zero row of U: one that was active before. A hard mask leaves the inactive rows
    of D and U without a gradient: every leaf learns, not every number.

    Args:
      dim: h, the model's width.
      neurons: N.
      ratio: share of the neurons that are active, in (0, 1].
      dropout: rate on the active neurons, in training only.
      stack: the layer stack of a scanned model, `(num_layers,)`.

    Returns:
      The override.

    Raises:
      ValueError: for options out of range.

    Example:
      >>> import jax, jaxpeft as jp
      >>> method = jp.methods.sparse_mlp(dim=896)  # Qwen2-0.5B
      >>> jp.count(method.init(jax.random.key(0)))
      229504
    """
    _check(dim, neurons, ratio)
    base.check_rate('sparse_mlp', dropout)
    k = active_neurons(neurons, ratio)
    spec = {
        'name': 'sparse_mlp', 'dim': dim, 'neurons': neurons, 'ratio': ratio, 'dropout': dropout,
        'stack': list(stack),
    }  # fmt: skip

    def init(key):
        key_a, key_scores = jax.random.split(key)
        bound = 1.0 / math.sqrt(dim)
        a = jax.random.uniform(key_a, (dim, neurons), jnp.float32, -bound, bound)
        b = jnp.zeros((neurons, dim), jnp.float32)
        scores = SCORE_STD * jax.random.normal(key_scores, (neurons,), jnp.float32)
        return base.State({'a': a, 'b': b, 'scores': scores}, {})

    def call(state, ffn, *args, key=None, side=None, **kwargs):
        del side
        z = ffn(*args, **kwargs)
        x = z.astype(jnp.float32)
        a, b, scores = (state.params[name] for name in ('a', 'b', 'scores'))
        top = jax.lax.top_k(scores, k)[1]
        soft = k * jax.nn.softmax(scores)
        through = soft - jax.lax.stop_gradient(soft)  # 0, with the gradient of the soft mask
        gate = 1.0 + through[top]
        h = jax.nn.gelu(_scaled(x @ a[:, top], gate), approximate=False)
        update = base.dropout(key, h, dropout) @ b[top]
        silent = _inactive(x, a, b.at[top].set(0.0), through)
        return (x + update + silent).astype(z.dtype)

    return base.Override(spec, init, call, base.no_penalty)


def _scaled(x: base.Array, gate: base.Array) -> base.Array:
    return x * gate.reshape((1,) * (x.ndim - 1) + (-1,))


@jax.custom_vjp
def _inactive(x: base.Array, a: base.Array, b: base.Array, gate: base.Array) -> base.Array:
    """`gelu(gate o (x a)) b` at `gate = 0`: zeros, never computed; with the gradient of `gate`.

    The gradients of `x`, `a` and `b` are zero there: a closed gate stands before each. Active
    neurons, which have their own term, come with rows of zeros in `b`.
    """
    del a, b, gate
    return jnp.zeros_like(x)


def _inactive_forward(x, a, b, gate):
    return _inactive(x, a, b, gate), (x, a, b)


def _inactive_backward(saved, dy):
    x, a, b = saved

    def products() -> base.Array:
        return 0.5 * jnp.sum((x @ a) * (dy @ b.T), axis=tuple(range(x.ndim - 1)))

    # A neuron's row of b leaves zero once it is active: mostly no other row has.
    dgate = jax.lax.cond(jnp.any(b != 0.0), products, lambda: jnp.zeros(b.shape[0], b.dtype))
    return jnp.zeros_like(x), jnp.zeros_like(a), jnp.zeros_like(b), dgate


_inactive.defvjp(_inactive_forward, _inactive_backward)


def active_neurons(neurons: int, ratio: float) -> int:
    """`k = max(1, int(neurons ratio))`; 6 of 128 by default."""
    return max(1, int(neurons * ratio))


def active(spec: Mapping[str, Any]) -> int:
    """The trainable numbers that act on the output, over the whole stack: `2 h k + N` a layer.

    Example:
      >>> active({'dim': 896, 'neurons': 128, 'ratio': 0.05, 'stack': [24]})
      261120
    """
    n = spec['neurons']
    one = 2 * spec['dim'] * active_neurons(n, spec['ratio']) + n
    return one * math.prod(spec['stack'])


def dimensions(config: Any, target: str) -> dict[str, Any]:
    """The factory's dimensions on a model: `{'dim': hidden size}`."""
    del target
    return {'dim': config.hidden_size}


def _check(dim: int, neurons: int, ratio: float) -> None:
    if dim < 1 or neurons < 1:
        raise ValueError(f'sparse_mlp: dim and neurons must be at least 1, got {dim} and {neurons}')
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f'sparse_mlp: ratio must be in (0, 1], got {ratio}')
