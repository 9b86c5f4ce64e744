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
    return _FUNCTIONS[name]
