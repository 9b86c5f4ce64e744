"""KnowHiRA's gates: their gradient, taken from that of a factor, is the one of plain autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from tests import toys
from tests.oracles import float64

GATES = (-30.0, -2.0, 0.0, 30.0)  # shut, slightly negative, the start, open


def gradients(method, form, key, hoisted):
    """Of the mean square of a toy's output, away from init; the gates spread over GATES."""
    made = method if hoisted else method._replace(hoist=None)
    model, params, plan, state, x = toys.setup(form, made, key)
    state = toys.moved(state, key, 0.5)
    spread = lambda path, leaf: (
        jnp.broadcast_to(jnp.array(GATES), leaf.shape) if path[-1].key == 'gate' else leaf
    )
    state = state._replace(params=jax.tree_util.tree_map_with_path(spread, state.params))
    forward = jp.bind(plan, model.apply)
    loss = lambda p: jnp.mean(forward(jp.State(p, state.consts), {'params': params}, x) ** 2)
    return jax.jit(jax.value_and_grad(loss))(state.params)


def leaves_of(tree):
    """[(path, name, leaf)]."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), path[-1].key, leaf) for path, leaf in found]


@pytest.mark.parametrize('form', toys.FORMS)
@pytest.mark.parametrize('train_ab', ['yy', 'yn', 'ny'])
def test_the_gates_gradient_is_that_of_autodiff(form, train_ab, key):
    method = jp.methods.knowhira(rank=4, init_ab='gaussian,gaussian', train_ab=train_ab)
    loss, grads = gradients(method, form, key, True)
    want_loss, want = gradients(method, form, key, False)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    names = {name for _, name, _ in leaves_of(want)}
    assert 'gate' in names
    assert len(names) == 1 + train_ab.count('y')
    for (path, _, got), plain in zip(leaves_of(grads), jax.tree.leaves(want), strict=True):
        scale = np.abs(plain).max()
        assert scale > 0, path
        np.testing.assert_allclose(got, plain, rtol=1e-4, atol=1e-5 * scale, err_msg=path)


def test_the_gates_gradient_is_its_equation(key):
    """dL/dg_i = sum(dL/dW' o W alpha sigma_i s(g_i) (1 - s(g_i)) a_i b_i), in float64."""
    w = jax.random.normal(key, (6, 5))
    method = jp.methods.knowhira(rank=3, knowledge_alpha=0.7)
    state = toys.moved(method.init(key, w), key, 0.5)
    x = jax.random.normal(jax.random.key(1), (4, 6))

    def loss(params):
        return jnp.sum(jnp.sin(method.apply(method.hoist(jp.State(params, state.consts)), w, x)))

    p, w64, x64 = float64(state.params), float64(w), float64(x)
    s = 1 / (1 + np.exp(-p['gate']))
    sigma = float64(state.consts)['sigma']
    y = x64 @ (w64 * (1 + 0.7 * (p['a'] * sigma * s) @ p['b']))
    to_kernel = x64.T @ np.cos(y)
    want = [
        np.sum(to_kernel * w64 * 0.7 * sigma[i] * s[i] * (1 - s[i]) * np.outer(a, b))
        for i, (a, b) in enumerate(zip(p['a'].T, p['b'], strict=True))
    ]
    np.testing.assert_allclose(jax.grad(loss)(state.params)['gate'], want, rtol=1e-4)


def test_the_gates_alone_can_be_differentiated(key):
    """A closure over everything else, as a script that trains gates only would write it."""
    model, params, plan, state, x = toys.setup('scan', jp.methods.knowhira(rank=4), key)
    state = toys.moved(state, key, 0.5)
    forward = jp.bind(plan, model.apply)

    def loss(params_of):
        return jnp.mean(forward(jp.State(params_of, state.consts), {'params': params}, x) ** 2)

    def with_gates(gates):
        leaves = [gates.get(path, leaf) for path, _, leaf in leaves_of(state.params)]
        return loss(jax.tree.unflatten(jax.tree.structure(state.params), leaves))

    gates = {path: leaf for path, name, leaf in leaves_of(state.params) if name == 'gate'}
    want = {path: leaf for path, _, leaf in leaves_of(jax.grad(loss)(state.params))}
    for path, got in jax.grad(with_gates)(gates).items():
        np.testing.assert_allclose(got, want[path], rtol=1e-5)
        assert np.abs(got).max() > 0


def test_without_gates_nothing_is_hoisted(key):
    model, params, plan, state, x = toys.setup(
        'scan', jp.methods.knowhira(rank=4, adaptive_gating=False), key
    )
    state = toys.moved(state, key, 0.5)
    forward = jp.bind(plan, model.apply)
    loss = lambda p: jnp.mean(forward(jp.State(p, state.consts), {'params': params}, x) ** 2)
    assert {name for _, name, _ in leaves_of(jax.grad(loss)(state.params))} == {'a', 'b'}
