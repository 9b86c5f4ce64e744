"""Singular values: exact, randomized to 1e-4 on flat, decaying and steep spectra; the Gram gap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import linalg


def _with_spectrum(values, n, m, seed):
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((n, len(values))))[0]
    right = np.linalg.qr(rng.standard_normal((m, len(values))))[0]
    return jnp.asarray((left * values) @ right.T, jnp.float32)


SPECTRA = {
    'decaying': (1.0 + np.arange(512)) ** -0.5,
    'steep': (1.0 + np.arange(512)) ** -1.5,
    'low rank': np.r_[np.linspace(2, 1, 20), np.zeros(492)],
}


@pytest.mark.parametrize('name', sorted(SPECTRA))
@pytest.mark.parametrize('shape', [(512, 768), (768, 512)])
def test_randomized_values_are_within_1e_4(name, shape):
    values = SPECTRA[name]
    w = _with_spectrum(values, *shape, seed=0)
    got = jax.jit(lambda w: linalg.top_singular_values(w, 16, method='randomized'))(w)
    np.testing.assert_allclose(got, values[:16], rtol=1e-4)


def test_randomized_values_of_a_flat_spectrum_deepen_until_they_hold():
    """Gaussian noise is the worst case: no gap anywhere. Shallow Krylov alone misses 1e-4."""
    w = np.random.default_rng(1).standard_normal((1280, 1100)).astype(np.float32)
    want = np.linalg.svd(w, compute_uv=False)[:32]
    got = jax.jit(lambda w: linalg.top_singular_values(w, 32, method='randomized'))(w)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_auto_is_exact_for_small_kernels_and_casts_bfloat16_first():
    w = jnp.asarray(np.random.default_rng(2).standard_normal((24, 40)), jnp.bfloat16)
    want = np.linalg.svd(np.asarray(w, np.float32), compute_uv=False)[:5]
    np.testing.assert_allclose(linalg.top_singular_values(w, 5), want, rtol=1e-5)


@pytest.mark.parametrize(('k', 'method'), [(0, 'auto'), (25, 'auto'), (2, 'lanczos')])
def test_bad_arguments_are_named(k, method):
    with pytest.raises(ValueError, match=str(k) if method == 'auto' else 'exact, randomized'):
        linalg.top_singular_values(jnp.ones((24, 40)), k, method=method)


@pytest.mark.parametrize('axis', [0, 1])
def test_gram_gap_and_its_written_gradient(axis, key):
    a = jax.random.normal(key, (7, 3) if axis == 0 else (3, 7))
    long = a if axis == 0 else a.T
    plain = lambda x: jnp.sum((x.T @ x - jnp.eye(3)) ** 2)
    np.testing.assert_allclose(linalg.gram_gap(a, axis), plain(long), rtol=1e-5)
    want = jax.grad(plain)(long)
    got = jax.grad(linalg.gram_gap)(a, axis)
    np.testing.assert_allclose(got if axis == 0 else got.T, want, rtol=1e-4, atol=1e-4)
    q = jnp.linalg.qr(long)[0]
    assert float(linalg.gram_gap(q if axis == 0 else q.T, axis)) < 1e-10


@pytest.mark.parametrize(('small', 'k'), [(24, 8), (40, 35), (75, 8), (300, 100)])
def test_randomized_is_exact_where_its_space_would_fill_the_kernel(small, k):
    w = np.random.default_rng(3).standard_normal((small + 8, small)).astype(np.float32)
    want = np.linalg.svd(w, compute_uv=False)[:k]
    np.testing.assert_allclose(
        linalg.top_singular_values(w, k, method='randomized'), want, rtol=1e-4
    )
    u, s, vt = linalg.top_singular_triplets(jnp.asarray(w), k, method='randomized')
    np.testing.assert_allclose(s, want, rtol=1e-4)
    assert (u.shape, vt.shape) == ((small + 8, k), (k, small))


def test_many_randomized_values_need_no_deeper_space():
    w = np.random.default_rng(4).standard_normal((800, 720)).astype(np.float32)
    want = np.linalg.svd(w, compute_uv=False)[:96]
    np.testing.assert_allclose(
        linalg.top_singular_values(w, 96, method='randomized'), want, rtol=1e-3
    )


@pytest.mark.parametrize('size', [1.0, 1e-7, 1e-12])
def test_column_norms_of_small_columns_are_their_own(size, key):
    w = size * jax.random.normal(key, (6, 4))
    norm = jnp.linalg.norm(w, axis=0)
    a, b = jax.random.normal(key, (6, 2)), jnp.zeros((2, 4))
    np.testing.assert_allclose(linalg.column_norm(w, a, b, norm), norm, rtol=1e-5)
