"""The product through the sum `W + s A B`: its gradients, and that it is the branches' product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from jaxpeft import factors, lowrank
from tests import toys
from tests.oracles import float64, started

N, M, R, S = 12, 20, 4, 0.7
METHODS = {
    'lora': {},
    'lora-pissa': {'init': 'pissa'},
    'kasa': {},
    'dora': {},
    'dora-pissa': {'init': 'pissa'},
    'dora-grad': {'detach': False},
    'hylorada': {},
    'hylorada_v2': {'structure_dim': 8},
}


@pytest.fixture(scope='module')
def leaves():
    """x [3, 7, N], w, a, b, u, vt, n."""
    shapes = ((3, 7, N), (N, M), (N, R), (R, M), (N, R), (R, M), (M,))
    keys = jax.random.split(jax.random.key(5), len(shapes))
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def fused(x, w, a, b, u, vt, n, *, tail, scaled):
    return lowrank.matmul(
        x, w, a, b, (u, vt) if tail else None, S, (lambda whole: n) if scaled else None
    )


def plain(x, w, a, b, u, vt, n, *, tail, scaled):
    y = x @ (w + S * a @ b - (u @ vt if tail else 0.0))
    return jnp.broadcast_to(n, y.shape) * y if scaled else y


@pytest.mark.parametrize('tail', [False, True])
@pytest.mark.parametrize('scaled', [False, True])
@pytest.mark.parametrize('trained', [(0, 2, 3, 6), tuple(range(7))], ids=['factors', 'base too'])
def test_gradients_are_autodiffs(trained, scaled, tail, leaves):
    how = {'tail': tail, 'scaled': scaled}
    np.testing.assert_allclose(fused(*leaves, **how), plain(*leaves, **how), rtol=1e-5, atol=1e-5)
    loss = lambda f: lambda *args: jnp.sum(jnp.sin(f(*args, **how)))
    got, want = (jax.grad(loss(f), argnums=trained)(*leaves) for f in (fused, plain))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('case', METHODS)
def test_many_tokens_through_the_sum_are_few_tokens_beside_w(case, leaves):
    """The same outputs and gradients whichever form the number of tokens asks for."""
    x, w = leaves[:2]
    method = getattr(jp.methods, case.partition('-')[0])(rank=R, **METHODS[case])
    state = started(method, w)
    assert lowrank.merges(x, w, x)
    assert not lowrank.merges(x[0, :1], w, x[0, :1])
    many = lambda p, x: method.apply(jp.State(p, state.consts), w, x)
    few = lambda p, x: jnp.stack([jnp.stack([many(p, t[None])[0] for t in row]) for row in x])
    np.testing.assert_allclose(many(state.params, x), few(state.params, x), rtol=1e-5, atol=1e-5)
    loss = lambda f: lambda p, x: jnp.sum(jnp.sin(f(p, x)))
    got, want = (jax.grad(loss(f), argnums=(0, 1))(state.params, x) for f in (many, few))
    assert toys.worst(got, want) < 2e-4  # of gradients up to 40


def test_the_norm_of_the_sum_is_the_factored_one(leaves):
    method = jp.methods.dora(rank=R)
    state = started(method, leaves[1])
    whole = leaves[1] + 2.0 * state.params['a'] @ state.params['b']
    want = np.linalg.norm(float64(whole), axis=0)
    for given in (None, whole):
        got = factors.column_norm(state, 2.0, leaves[1], given)
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_columns_without_a_direction_stay_finite(leaves):
    """One of zeros, and one that the update cancels, whose norm is held at 1e-6 of its own."""
    x, w, a, b = leaves[:4]
    w = w.at[:, 3].set(0.0).at[:, 5].set(-2.0 * a @ b[:, 5])
    b = b.at[:, 3].set(0.0)
    state = jp.methods.dora(rank=R).init(jax.random.key(0), w)
    state = state._replace(params={**state.params, 'a': a, 'b': b})
    norms = factors.column_norm(state, 2.0, w, w + 2.0 * a @ b)
    assert norms[3] == pytest.approx(1e-6)
    assert norms[5] >= 1e-6 * state.consts['norm'][5]
    run = lambda p: jp.methods.dora(rank=R).apply(jp.State(p, state.consts), w, x)
    np.testing.assert_array_equal(run(state.params)[..., 3], 0.0)
    grads = jax.grad(lambda p: jnp.sum(run(p) ** 2))(state.params)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
