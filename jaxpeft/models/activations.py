"""Activation functions by the names that Hugging Face configs use."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from jaxpeft.models.config import ACTIVATIONS

_TANH_GELU = functools.partial(jax.nn.gelu, approximate=True)
_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'gelu_new': _TANH_GELU,
    'gelu_pytorch_tanh': _TANH_GELU,
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
