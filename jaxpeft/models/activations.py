"""Activation functions by the names that Hugging Face configs use."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxpeft.models.config import ACTIVATIONS


@jax.custom_jvp
def gelu_tanh(x: jax.Array) -> jax.Array:
    """`x (1 + tanh z) / 2` with `z = sqrt(2 / pi) (x + 0.044715 x^3)`, GPT-2's form of the GELU.

    Its slope, in float32, is `s + 2 x s (1 - s) z'` with `s = sigmoid(2 z)`, which is
    `(1 + tanh z) / 2` without its cancellation: below -5 that one's slope has hardly a digit left.
    Nor does it share the tanh with the value that the backward pass takes again for the factors'
    gradients, which XLA kept from one to the other (13 MB of GPT-Neo-125M's at 1024 tokens).

    Source: Hendrycks and Gimpel, 2016, arXiv 1606.08415.
    """
    return jax.nn.gelu(x, approximate=True)


@gelu_tanh.defjvp
def _gelu_tanh_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple:
    (x,), (dx,) = primals, tangents
    wide, c = x.astype(jnp.float32), 2.0 * math.sqrt(2.0 / math.pi)
    s = jax.nn.sigmoid(c * wide * (1.0 + 0.044715 * wide * wide))
    slope = s + wide * s * (1.0 - s) * c * (1.0 + 3.0 * 0.044715 * wide * wide)
    # dx is widened, not the slope narrowed: layers keep what was rounded (`jaxpeft.models.stack`).
    return gelu_tanh(x), (slope * dx.astype(jnp.float32)).astype(dx.dtype)


_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'gelu_new': gelu_tanh,
    'gelu_pytorch_tanh': gelu_tanh,
    'gelu': functools.partial(jax.nn.gelu, approximate=False),
    'relu': jax.nn.relu,
    'silu': jax.nn.silu,
    'swish': jax.nn.silu,
}
assert set(_FUNCTIONS) == set(ACTIVATIONS)


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function called `name`, one of `ACTIVATIONS` (a config with another is refused)."""
    # The backward pass keeps x alone and takes the function again: autodiff of the tanh form keeps
    # four arrays of the widest layer, 450 MB a step of GPT-Neo-125M at 1024 tokens.
    return jax.checkpoint(_FUNCTIONS[name], prevent_cse=False)


def gated(name: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`act(gate) * up` with the activation called `name`; kept for the backward pass: gate, up."""
    act = _FUNCTIONS[name]
    return jax.checkpoint(lambda gate, up: act(gate) * up, prevent_cse=False)
