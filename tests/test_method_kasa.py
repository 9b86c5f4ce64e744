"""KaSA: its equation in float64, the tail against numpy's SVD, its penalty, and PEFT's layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from jaxpeft import base, linalg
from tests import oracles
from tests.oracles import float64, started

N, M, R = 12, 20, 4


@pytest.fixture(scope='module')
def kernel():
    return jax.random.normal(jax.random.key(7), (N, M)) / 4


@pytest.fixture(scope='module')
def x():
    return jax.random.normal(jax.random.key(8), (2, 3, N))


def truncated(w, rank):
    """W without its `rank` smallest singular triplets."""
    return oracles.triplets(w, slice(min(w.shape) - rank))


def written_out(state, w, scale):
    """`W_world + s A diag(d) B` in numpy float64."""
    p = float64(state.params)
    return truncated(w, len(p['diag'])) + scale * p['a'] @ np.diag(p['diag']) @ p['b']


@pytest.mark.parametrize('shape', [(12, 20), (20, 12), (12, 12)])
def test_with_b_zero_it_is_the_truncated_svd(shape):
    """On all three forms: the authors' program removes nothing where out < in."""
    w = jax.random.normal(jax.random.key(2), shape)
    method = jp.methods.kasa(rank=3)
    state = method.init(jax.random.key(0), w)
    assert not state.params['b'].any()
    np.testing.assert_allclose(method.weight(state, w), truncated(w, 3), atol=1e-5)
    assert np.linalg.matrix_rank(np.asarray(method.weight(state, w)), tol=1e-4) == 9
    x = jax.random.normal(jax.random.key(3), (2, shape[0]))
    np.testing.assert_allclose(method.apply(state, w, x), float64(x) @ truncated(w, 3), atol=1e-5)


def test_is_its_equation(kernel, x):
    method = jp.methods.kasa(rank=R, alpha=6)
    state = started(method, kernel)
    want = written_out(state, kernel, 1.5)
    np.testing.assert_allclose(method.weight(state, kernel), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(method.apply(state, kernel, x), float64(x) @ want, atol=2e-5)


def test_the_diagonal_starts_normal():
    w = jax.random.normal(jax.random.key(2), (120, 130))
    diag = jp.methods.kasa(rank=100).init(jax.random.key(0), w).params['diag']
    assert abs(float(diag.mean())) < 0.3
    assert 0.8 < float(diag.std()) < 1.2


@pytest.mark.parametrize(('beta', 'gamma'), [(0.5, 0.0), (0.0, 0.5), (0.3, 0.7)])
def test_penalty_is_its_formula(beta, gamma, kernel):
    method = jp.methods.kasa(rank=R, beta=beta, gamma=gamma)
    state = started(method, kernel)
    p, eye = float64(state.params), np.eye(R)
    gaps = np.linalg.norm(p['a'].T @ p['a'] - eye) + np.linalg.norm(p['b'] @ p['b'].T - eye)
    want = beta * np.sum(p['diag'] ** 2) + gamma * gaps
    np.testing.assert_allclose(method.penalty(state, kernel), want, rtol=1e-5)


def test_penalty_at_b_zero_is_finite_and_at_orthonormal_factors_flat(kernel):
    """|0 - I|_F = sqrt(r); at the norms' minimum, where the root has no derivative, gradient 0."""
    method = jp.methods.kasa(rank=R, beta=0.0, gamma=1.0)
    state = method.init(jax.random.key(0), kernel)
    eye_a, eye_b = jnp.eye(N, R), jnp.eye(R, M)
    at = lambda **leaves: state._replace(params={**state.params, **leaves})
    np.testing.assert_allclose(method.penalty(at(a=eye_a), kernel), 2.0, rtol=1e-6)
    grad = lambda s: jax.grad(lambda p: method.penalty(s._replace(params=p), kernel))(s.params)
    for leaf in jax.tree.leaves(grad(state)):
        assert bool(jnp.isfinite(leaf).all())
    orthonormal = at(a=eye_a, b=eye_b)
    assert float(method.penalty(orthonormal, kernel)) == 0.0
    for leaf in jax.tree.leaves(grad(orthonormal)):
        np.testing.assert_array_equal(leaf, 0.0)


def test_penalty_of_a_tree_is_the_sum_over_its_kernels(kernel):
    method = jp.methods.kasa(rank=R, beta=0.3, gamma=0.7)
    params = {'one': kernel, 'two': kernel[::-1]}
    state = jp.init({'one|two': method}, jax.random.key(0), params)
    alone = [method.penalty(jp.State(state.params[name], {}), kernel) for name in ('one', 'two')]
    got = jp.penalty({'one|two': method}, state, params)
    np.testing.assert_allclose(got, sum(alone), rtol=1e-6)


def test_bfloat16_base_loses_nothing_but_the_outputs_last_bits(kernel, x):
    """The tail is small against W: in bfloat16 its subtraction would drown in rounding."""
    w, x = kernel.astype(jnp.bfloat16), x.astype(jnp.bfloat16)
    method = jp.methods.kasa(rank=R)
    state = started(method, w)
    want = float64(x.astype(jnp.float32)) @ written_out(state, w.astype(jnp.float32), 2.0)
    y = method.apply(state, w, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), want, rtol=2**-8, atol=1e-4)


def test_dropout_is_on_the_update_and_not_on_the_tail(kernel, x):
    method, key = jp.methods.kasa(rank=R, dropout=0.4), jax.random.key(3)
    state = started(method, kernel)
    dropped = float64(base.dropout(key, x, 0.4))
    world = truncated(kernel, R)
    want = float64(x) @ world + dropped @ (written_out(state, kernel, 2.0) - world)
    np.testing.assert_allclose(method.apply(state, kernel, x, key=key), want, atol=2e-5)


def test_rank_and_weights_out_of_range_are_refused(kernel):
    with pytest.raises(ValueError, match=r'\[1, 11\].*1 singular triplet stays.*rank=12.* 11'):
        jp.methods.kasa(rank=12).init(jax.random.key(0), kernel)
    with pytest.raises(ValueError, match='beta and gamma must not be negative'):
        jp.methods.kasa(beta=-1.0)


@pytest.mark.filterwarnings('ignore')  # peft's own
@pytest.mark.parametrize('shape', [(12, 20), (20, 12)])
def test_is_pefts_layer_and_loss(shape):
    pytest.importorskip('torch', reason='the peft of the test extra needs torch')
    peft = pytest.importorskip('peft', reason='the test extra has peft')

    w = jax.random.normal(jax.random.key(2), shape) / 4
    x = jax.random.normal(jax.random.key(3), (2, 3, shape[0]))
    method = jp.methods.kasa(rank=R, alpha=6, beta=0.3, gamma=0.7)
    state = started(method, w)
    config = peft.KasaConfig(beta=0.3, gamma=0.7)
    layer = oracles.wrap(w, r=R, lora_alpha=6, kasa_config=config)
    oracles.write(layer, state.params)
    want, want_grads = oracles.value_and_grads(layer, x)
    apply = lambda p: method.apply(jp.State(p, state.consts), w, x)
    np.testing.assert_allclose(apply(state.params), want, atol=2e-5)
    grads = jax.grad(lambda p: jnp.sum(jnp.sin(apply(p))))(state.params)
    assert set(grads) == set(want_grads) == {'a', 'b', 'diag'}
    for name, want in want_grads.items():
        np.testing.assert_allclose(grads[name], want, rtol=0, atol=2e-5 * np.abs(want).max())
    from peft.tuners.lora.variants import _kasa_layer_regularization_loss

    loss = _kasa_layer_regularization_loss(layer, 'default', 0.3, 0.7)
    np.testing.assert_allclose(method.penalty(state, w), loss.item(), rtol=1e-5)


def test_golden_numbers():
    """A kernel and leaves by formula; the numbers are numpy's, in float64, of the equation."""
    method = jp.methods.kasa(rank=2, alpha=3)
    want = [[-1.337936, -0.897984, 0.349735, 0.835983], [0.115064, -0.187095, 0.179599, -0.447428]]
    np.testing.assert_allclose(oracles.golden(method, diag=[0.8, -1.2]), want, atol=1.5e-6)


def test_tail_of_a_decaying_spectrum_is_right_to_the_rounding_of_w():
    """Through the Gram matrix the same error is ten times the bound."""
    rng = np.random.default_rng(0)
    values = (1.0 + np.arange(192)) ** -1.5
    left = np.linalg.qr(rng.standard_normal((256, 192)))[0]
    right = np.linalg.qr(rng.standard_normal((192, 192)))[0]
    w = jnp.asarray((left * values) @ right.T, jnp.float32)
    want = truncated(w, 8)
    error = lambda tail: np.linalg.norm(float64(w) - tail - want, 2)
    u, s, vt = float64(jax.jit(linalg.bottom_singular_triplets, static_argnums=1)(w, 8))
    assert error((u * s) @ vt) < 2e-5
    v = jnp.linalg.eigh(w.T @ w)[1][:, :8]
    assert error(float64(w @ v) @ float64(v).T) > 2e-4
