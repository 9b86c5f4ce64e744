"""GELU in the tanh form: its values, its slope by the sigmoid, and derivatives of every order."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft.models.activations import gelu_tanh

X = np.concatenate([np.linspace(-12.0, 12.0, 481), [-1e4, -0.0, 1e-8, 1e4]])
plain = lambda x: jax.nn.gelu(x, approximate=True)


def exact(x):
    """The slope in float64, with `s = sigmoid(2 z)` and not `(1 + tanh z) / 2`, which cancels."""
    c = 2 * np.sqrt(2 / np.pi)
    near = np.clip(x, -20, 20)
    s = 1 / (1 + np.exp(-c * (near + 0.044715 * near**3)))
    return s + near * s * (1 - s) * c * (1 + 3 * 0.044715 * near**2)


def slopes(fn, x):
    return jax.vmap(jax.grad(fn))(x)


def test_values_are_those_of_jax_and_slopes_those_of_float64():
    """JAX's own slope is held to a tenth of that: XLA's tanh differs from version to version."""
    x = jnp.float32(X)
    np.testing.assert_array_equal(gelu_tanh(x), plain(x))
    want = exact(np.float64(x))
    np.testing.assert_allclose(slopes(gelu_tanh, x), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slopes(plain, x), want, rtol=1e-5, atol=1e-5)


def test_slopes_by_hand():
    """At 0 half; far out 0 and 1; at 1 what central differences in float64 give."""
    found = slopes(gelu_tanh, jnp.array([0.0, -30.0, 30.0, 1.0]))
    z = lambda x: np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    value = lambda x: 0.5 * x * (1 + np.tanh(z(x)))
    middle = (value(1 + 1e-6) - value(1 - 1e-6)) / 2e-6
    np.testing.assert_allclose(found, [0.5, 0.0, 1.0, middle], atol=1e-6)


def test_forward_mode_and_second_derivatives():
    x = jnp.float32(X[:481:20])
    second = lambda fn: jax.vmap(jax.grad(jax.grad(fn)))(x)
    np.testing.assert_allclose(second(gelu_tanh), second(plain), rtol=1e-4, atol=2e-4)
    value, slope = jax.jvp(gelu_tanh, (x,), (jnp.ones_like(x),))
    np.testing.assert_array_equal(value, plain(x))
    np.testing.assert_allclose(slope, exact(np.float64(x)), rtol=1e-5, atol=1e-6)


def test_bfloat16_slopes_are_float32s_rounded_once():
    x = jnp.bfloat16(X[:481])
    found = slopes(gelu_tanh, x)
    assert found.dtype == jnp.bfloat16
    want = exact(np.float64(x))
    np.testing.assert_allclose(np.float64(found), want, rtol=2**-8, atol=1e-6)
