"""HyLoRADA v1 and v2: what their equations say, and what the reference could not learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpeft as jp
from jaxpeft.structure import structure_encoder
from tests import toys

NAMES = ['hylorada', 'hylorada_v2']
LOGITS = {'gate': jnp.float32(0.7), 'residual': jnp.float32(-0.4)}
NEVER = jnp.float32(-40.0)  # a logit whose sigmoid is 0


@pytest.fixture(scope='module')
def kernel():
    return jax.random.normal(jax.random.key(7), (12, 20)) / 4


@pytest.fixture(scope='module')
def prior():
    return jax.random.normal(jax.random.key(8), (3, 5, 32))


def moved(method, w, size=0.4):
    return toys.moved(method.init(jax.random.key(0), w), jax.random.key(1), size)


def with_leaves(state, **leaves):
    return state._replace(params={**state.params, **leaves})


def numpy_of(state, w):
    """(W, s A B in float64, params, m0)."""
    p = {k: np.asarray(v, np.float64) for k, v in state.params.items()}
    return np.asarray(w, np.float64), p, np.linalg.norm(np.asarray(w, np.float64), axis=0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def two_paths(state, w, x, scale, rho=1.0):
    """The reference's form: a DoRA path and a LoRA path, each in full, weighed by beta."""
    w, p, m0 = numpy_of(state, w)
    x, delta = np.asarray(x, np.float64), scale * p['a'] @ p['b']
    plain = x @ w + np.asarray(rho)[..., None] * (x @ delta)
    gamma, beta = sigmoid(p['gate']), sigmoid(p['residual'])
    magnitude = gamma * p['m'] + (1 - gamma) * m0
    dora = plain * (magnitude / np.linalg.norm(w + delta, axis=0))
    return (1 - beta) * dora + beta * plain


def test_the_fused_form_is_the_two_paths(key, kernel):
    method = jp.methods.hylorada(rank=4, alpha=6)
    state = with_leaves(moved(method, kernel), **LOGITS)
    x = jax.random.normal(key, (3, 5, 12))
    want = two_paths(state, kernel, x, 1.5)
    np.testing.assert_allclose(method.apply(state, kernel, x), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(x @ method.weight(state, kernel), want, rtol=1e-5, atol=1e-5)


def test_frozen_logits_are_constants_and_change_nothing_else(key, kernel):
    trained = jp.methods.hylorada(rank=4, gate_init=0.7, residual_init=-0.4)
    frozen = jp.methods.hylorada(rank=4, gate_init=0.7, residual_init=-0.4, adaptive_gating=False)
    states = [method.init(key, kernel) for method in (trained, frozen)]
    assert states[1].params.keys() == {'a', 'b', 'm'}
    assert all(states[1].consts[name] == LOGITS[name] for name in LOGITS)
    assert jp.count(states[0]) == jp.count(states[1]) + 2
    b = jax.random.normal(key, (4, 20))
    x = jax.random.normal(key, (3, 5, 12))
    mine, theirs = (
        method.apply(with_leaves(state, b=b), kernel, x)
        for method, state in zip((frozen, trained), states, strict=True)
    )
    np.testing.assert_array_equal(mine, theirs)


def test_with_the_gates_at_their_ends_and_frozen_it_is_dora(key, kernel):
    """The control that leaves of v1 its orthogonal start alone."""
    method = jp.methods.hylorada(
        rank=4, gate_init=100.0, residual_init=-100.0, adaptive_gating=False
    )
    state = moved(method, kernel)
    dora = jp.methods.dora(rank=4)
    x = jax.random.normal(key, (3, 5, 12))
    want = dora.apply(dora.init(key, kernel)._replace(params=state.params), kernel, x)
    np.testing.assert_allclose(method.apply(state, kernel, x), want, rtol=1e-5, atol=1e-5)


def test_v2_scales_the_update_of_each_token_and_not_the_norm(key, kernel, prior):
    method = jp.methods.hylorada_v2(rank=4, alpha=6)
    state = with_leaves(moved(method, kernel), **LOGITS)
    x = jax.random.normal(key, (3, 5, 12))
    rho = 0.5 + sigmoid(np.asarray(prior) @ np.asarray(state.params['w_s']))
    assert rho.std() > 0.1
    y = method.apply(state, kernel, x, side={'structure': prior})
    want = two_paths(state, kernel, x, 1.5, rho)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('side', [None, {}, {'other': 1}])
def test_v2_without_a_prior_is_v1_and_merges_as_such(side, key, kernel):
    v1, v2 = (jp.methods.get(name)(rank=4) for name in NAMES)
    state, x = moved(v2, kernel), jax.random.normal(key, (3, 12))
    assert v2.weight is None
    want = v1.apply(state, kernel, x)
    np.testing.assert_array_equal(v2.apply(state, kernel, x, side=side), want)
    params = {'kernel': kernel}
    state = jp.State({'kernel': state.params}, {'kernel': state.consts})
    merged = jp.merge({'kernel': v1}, state, params)['kernel']
    np.testing.assert_allclose(x @ merged, want, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match='hylorada_v2 depends on its input'):
        jp.merge({'kernel': v2}, state, params)


def test_without_the_residual_and_with_the_whole_magnitude_it_is_dora(key, kernel):
    method = jp.methods.hylorada(rank=4, alpha=4, init='kaiming')
    state = with_leaves(moved(method, kernel), residual=NEVER, gate=-NEVER)
    w, p, _ = numpy_of(state, kernel)
    whole = w + p['a'] @ p['b']
    want = whole * (p['m'] / np.linalg.norm(whole, axis=0))[None, :]
    np.testing.assert_allclose(method.weight(state, kernel), want, rtol=1e-5, atol=1e-6)
    only_lora = with_leaves(state, residual=-NEVER)
    np.testing.assert_allclose(method.weight(only_lora, kernel), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('init', 'gain'), [('orthogonal', 1), ('orthogonal_matched', 1 / 3)])
def test_a_starts_orthonormal(init, gain, key, kernel):
    a = jp.methods.hylorada(rank=4, init=init).init(key, kernel).params['a']
    np.testing.assert_allclose(a.T @ a, gain * np.eye(4), atol=1e-6)


def test_the_matched_init_has_the_size_of_kaimings(key):
    w = jnp.ones((400, 8))
    sizes = {
        init: float(
            jnp.linalg.norm(jp.methods.hylorada(rank=8, init=init).init(key, w).params['a'])
        )
        for init in ('orthogonal', 'orthogonal_matched', 'kaiming')
    }
    assert sizes['orthogonal_matched'] == pytest.approx(sizes['kaiming'], rel=0.03)
    assert sizes['orthogonal'] == pytest.approx(3**0.5 * sizes['kaiming'], rel=0.03)


@pytest.mark.parametrize('name', NAMES)
def test_the_first_gradients_are_those_of_b_and_m_alone(name, key, kernel, prior):
    """a, the logits and w_s wait for them: each is a product with a difference that is zero yet."""
    method = jp.methods.get(name)(rank=4)
    state, x = method.init(key, kernel), jax.random.normal(key, (3, 5, 12))

    @jax.jit
    def step(p):
        apply = functools.partial(method.apply, side={'structure': prior})
        loss = lambda p: jnp.mean((apply(state._replace(params=p), kernel, x) - 1) ** 2)
        grads = jax.grad(loss)(p)
        return jax.tree.map(lambda p, g: p - 0.1 * g, p, grads), grads

    params, first = step(state.params)
    size = {k: float(jnp.abs(g).max()) for k, g in first.items()}
    assert {k for k, v in size.items() if v > 1e-3} == {'b', 'm'}
    assert max(v for k, v in size.items() if k not in 'bm') < 1e-6
    _, second = step(params)
    assert min(float(jnp.abs(g).max()) for g in second.values()) > 1e-6


@pytest.mark.parametrize('detach', [True, False])
def test_the_norm_is_a_constant_of_the_gradient_only_where_it_is_detached(detach, kernel):
    method = jp.methods.hylorada(rank=4, alpha=4, detach=detach)
    state = moved(method, kernel)
    w = kernel

    def written(p, norm=None):
        whole = w + p['a'] @ p['b']
        norm = jnp.linalg.norm(whole, axis=0) if norm is None else norm
        gamma, beta = jax.nn.sigmoid(p['gate']), jax.nn.sigmoid(p['residual'])
        magnitude = gamma * p['m'] + (1 - gamma) * state.consts['norm']
        return jnp.sum(whole * ((1 - beta) * magnitude / norm + beta)[None, :] * jnp.sin(w))

    fixed = jnp.linalg.norm(w + state.params['a'] @ state.params['b'], axis=0)
    want = jax.grad(written)(state.params, fixed if detach else None)
    other = jax.grad(written)(state.params, None if detach else fixed)
    ones = lambda p: jnp.sum(method.weight(jp.State(p, state.consts), w) * jnp.sin(w))
    got = jax.grad(ones)(state.params)
    assert toys.worst(got, want) < 1e-4
    assert toys.worst(got['b'], other['b']) > 1e-2


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('detach', [True, False])
def test_no_float32_copy_of_the_kernel_waits_for_the_backward_pass(name, detach, key, kernel):
    method = jp.methods.get(name)(rank=4, detach=detach)
    w = kernel.astype(jnp.bfloat16)
    state, x = moved(method, w), jax.random.normal(key, (7, 12), jnp.bfloat16)
    apply = lambda p: method.apply(jp.State(p, state.consts), w, x)
    kept = jax.tree.leaves(jax.vjp(apply, state.params)[1])
    assert len(kept) > 3
    assert all(leaf.dtype == jnp.bfloat16 for leaf in kept if leaf.shape == w.shape)


@pytest.mark.parametrize('name', NAMES)
def test_a_bias_is_not_rescaled_and_a_zero_column_stays(name, key, kernel):
    import flax.linen as nn

    w = kernel.at[:, 3].set(0.0)
    params = {'kernel': w, 'bias': jnp.arange(20.0)}
    plan = {'kernel': jp.methods.get(name)(rank=4)}
    fresh = jp.init(plan, key, params)
    state = toys.moved(fresh, jax.random.key(1), 0.4)
    x = jax.random.normal(key, (2, 12))
    forward = jp.bind(plan, nn.Dense(20).apply)
    method = plan['kernel']
    one = jp.State(state.params['kernel'], state.consts['kernel'])
    want = method.apply(one, w, x) + params['bias'][None, :]
    np.testing.assert_allclose(forward(state, {'params': params}, x), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        forward(fresh, {'params': params}, x), x @ w + params['bias'][None, :], atol=1e-5
    )
    loss = lambda p: forward(fresh._replace(params=p), {'params': params}, x).sum()
    grads = jax.grad(loss)(fresh.params)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(('name', 'count'), [('hylorada', 2_212_032), ('hylorada_v2', 2_215_104)])
def test_counts_of_qwen2(name, count):
    """Rank 16 on q, k, v, o of Qwen2-0.5B: r (n + m) + m + 2 a kernel; v2 has 96 x 32 more."""
    params = jp.models.param_shapes(jp.models.build(jp.models.config_of('Qwen/Qwen2-0.5B')))
    plan = {jp.targets(params, jp.methods.defaults(name)): jp.methods.get(name)(rank=16)}
    state = jax.eval_shape(functools.partial(jp.init, plan), jax.random.key(0), params)
    assert jp.count(state) == count


def test_layerwise_ranks_leave_gates_and_magnitude_alone(key):
    method = jp.methods.hylorada_v2(rank=4)
    params = {'layers': {'up': {'kernel': jax.random.normal(key, (2, 6, 8))}}}
    plan = {'layers/up/kernel': jp.layerwise(method, [4, 2])}
    state = jp.init(plan, key, params)
    assert jp.count(state) == (4 + 2) * (6 + 8) + 2 * (8 + 2 + 32)
    assert state.params['layers']['up']['kernel']['gate'].shape == (2,)


@pytest.mark.parametrize('name', NAMES)
def test_bad_options_are_refused(name):
    factory = jp.methods.get(name)
    with pytest.raises(ValueError, match=rf"{name}: no init is called 'ortho'; nearest: ortho"):
        factory(init='ortho')
    if name == 'hylorada_v2':
        with pytest.raises(ValueError, match='structure_dim must be at least 1, got 0'):
            factory(structure_dim=0)


def test_a_prior_that_does_not_fit_is_refused(key, kernel, prior):
    method = jp.methods.hylorada_v2(rank=4)
    state, x = method.init(key, kernel), jnp.ones((3, 4, 12))
    for wrong in (prior, prior[:, :4, :8], prior[0, :4]):
        with pytest.raises(ValueError, match=r'needs a structure prior of shape \(3, 4, 32\)'):
            method.apply(state, kernel, x, side={'structure': wrong})
    with pytest.raises(TypeError, match="under '~shared/structure'"):
        method.apply(state, kernel, x, side={'structure': {'positions': prior}})


def test_v2_learns_where_to_adapt(key):
    """The facts' toy: a teacher adapts by 0.6 in the first half of a text and 1.4 in the second."""
    w = jax.random.normal(key, (12, 10)) / 4
    key_x, key_t, key_m, key_e = jax.random.split(jax.random.key(1), 4)
    x = jax.random.normal(key_x, (8, 8, 12))
    change = jax.random.normal(key_t, (12, 2)) @ jax.random.normal(key_m, (2, 10)) / 8
    half = jnp.where(jnp.arange(8) < 4, 0.6, 1.4)
    y = x @ w + half[None, :, None] * (x @ change)
    method, encoder = jp.methods.hylorada_v2(rank=2, alpha=2), structure_encoder('default')
    layer, shared = method.init(key_m, w), encoder.init(key_e)
    features = {'positions': jnp.broadcast_to(jnp.arange(8)[None, :], (8, 8))}
    leaves = {'layer': layer.params, 'shared': shared.params}

    def rho(p):
        prior = encoder.call(jp.State(p['shared'], {}), None, features)
        return prior, 0.5 + jax.nn.sigmoid(prior @ p['layer']['w_s'])

    def loss(p):
        side = {'structure': rho(p)[0]}
        got = method.apply(jp.State(p['layer'], layer.consts), w, x, side=side)
        return jnp.mean((got - y) ** 2)

    @jax.jit
    def fit(p):
        tx = optax.adam(1e-2)

        def body(carry, _):
            p, s = carry
            value, g = jax.value_and_grad(loss)(p)
            updates, s = tx.update(g, s)
            seen = jax.tree.map(lambda g: jnp.abs(g).max(), g)
            return (optax.apply_updates(p, updates), s), (value, seen)

        (p, _), history = jax.lax.scan(body, (p, tx.init(p)), length=600)
        return p, history

    fitted, (losses, seen) = fit(leaves)
    found = rho(fitted)[1][0]
    assert float(losses[-1]) < 1e-3
    assert float(losses[-1]) < 0.02 * float(losses[0])
    assert float(found[4:].min() / found[:4].max()) > 1.8  # 1.4 / 0.6 = 2.3
    # One zero factor beside b: w_s moves in the second step, the encoder in the third.
    assert float(seen['layer']['w_s'][1]) > 0
    reached = [float(g[2]) for name, g in seen['shared'].items() if name != 'types']
    assert min(reached) > 0
