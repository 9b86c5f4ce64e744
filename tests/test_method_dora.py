"""DoRA: its equation in float64, its limit, its norm, its memory, and PEFT's layer beside it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from jaxpeft import base, factors, linalg
from tests import oracles, toys
from tests.oracles import float64, started

N, M, R = 12, 20, 4


@pytest.fixture(scope='module')
def kernel():
    return jax.random.normal(jax.random.key(7), (N, M)) / 4


@pytest.fixture(scope='module')
def x():
    return jax.random.normal(jax.random.key(8), (2, 3, N))


def written_out(state, w, scale):
    """`W' = m o (W + s A B) / |W + s A B|`, dense, in numpy float64."""
    p, w = float64(state.params), np.asarray(w, np.float64)
    direction = w + scale * p['a'] @ p['b']
    return p['m'] * direction / np.linalg.norm(direction, axis=0)


@pytest.mark.parametrize('rslora', [False, True])
def test_is_its_equation(rslora, kernel, x):
    method = jp.methods.dora(rank=R, alpha=6, rslora=rslora)
    state = started(method, kernel)
    want = written_out(state, kernel, 6 / 2 if rslora else 6 / 4)
    np.testing.assert_allclose(method.weight(state, kernel), want, rtol=1e-5, atol=1e-6)
    y = float64(x) @ want
    np.testing.assert_allclose(method.apply(state, kernel, x), y, rtol=1e-5, atol=1e-5)


def test_starts_at_the_norms_of_the_base(kernel):
    state = jp.methods.dora(rank=R).init(jax.random.key(0), kernel)
    norms = np.linalg.norm(float64(kernel), axis=0)
    np.testing.assert_allclose(state.params['m'], norms, rtol=1e-6)
    np.testing.assert_allclose(state.consts['norm'], norms, rtol=1e-6)


@pytest.mark.parametrize('init', ['default', 'pissa'])
def test_with_the_norms_as_magnitude_it_is_lora(init, kernel, x):
    dora, lora = jp.methods.dora(rank=R, init=init), jp.methods.lora(rank=R, init=init)
    state = started(dora, kernel)
    norms = jnp.linalg.norm(lora.weight(state, kernel), axis=0)
    state = state._replace(params={**state.params, 'm': norms})
    np.testing.assert_allclose(
        dora.apply(state, kernel, x), lora.apply(state, kernel, x), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize('init', ['orthogonal', 'pissa', 'olora'])
def test_loras_other_starts_are_the_base_too(init, kernel, x):
    method = jp.methods.dora(rank=R, init=init)
    state = method.init(jax.random.key(0), kernel)
    assert float(jnp.abs(state.params['b']).max()) > 0.01
    np.testing.assert_allclose(method.apply(state, kernel, x), x @ kernel, atol=1e-5)


@pytest.mark.parametrize('detach', [True, False])
def test_gradients_are_the_dense_forms(detach, kernel, x):
    """Autodiff of the equation, the norm of the dense sum constant or not."""
    method = jp.methods.dora(rank=R, detach=detach)
    state = started(method, kernel)

    def dense(p):
        direction = kernel + 2.0 * p['a'] @ p['b']
        norm = jnp.linalg.norm(direction, axis=0)
        norm = jax.lax.stop_gradient(norm) if detach else norm
        return jnp.sum(jnp.sin(x @ (direction * (p['m'] / norm)[None, :])))

    fast = lambda p: jnp.sum(jnp.sin(method.apply(jp.State(p, state.consts), kernel, x)))
    got, want = jax.grad(fast)(state.params), jax.grad(dense)(state.params)
    for name in ('a', 'b', 'm'):
        np.testing.assert_allclose(
            got[name], want[name], rtol=0, atol=1e-5 * float(jnp.abs(want[name]).max())
        )


def test_detaching_changes_the_gradients_of_a_and_b_only(kernel, x):
    grads = []
    for detach in (True, False):
        method = jp.methods.dora(rank=R, detach=detach)
        state = started(method, kernel)
        loss = lambda p, f=method, c=state.consts: jnp.sum(
            jnp.sin(f.apply(jp.State(p, c), kernel, x))
        )
        grads.append(jax.grad(loss)(state.params))
    assert toys.worst(grads[0]['m'], grads[1]['m']) < 1e-4
    assert toys.worst(grads[0]['a'], grads[1]['a']) > 0.1
    assert toys.worst(grads[0]['b'], grads[1]['b']) > 0.1


def test_a_bias_is_not_rescaled():
    """Twice the magnitude doubles `x W` and leaves the bias."""
    import flax.linen as nn

    model, x = nn.Dense(6), jnp.ones((2, 4))
    params = {'kernel': jnp.arange(24.0).reshape(4, 6) / 9 - 1, 'bias': jnp.arange(6.0)}
    plan = {'kernel': jp.methods.dora(rank=2)}
    state = jp.init(plan, jax.random.key(0), params)
    leaves = state.params['kernel']
    state = state._replace(params={'kernel': {**leaves, 'm': 2 * leaves['m']}})
    got = jp.bind(plan, model.apply)(state, {'params': params}, x)
    np.testing.assert_allclose(got, 2 * x @ params['kernel'] + params['bias'][None, :], rtol=1e-5)


def test_norm_of_a_bfloat16_base_sees_updates_that_bfloat16_cannot():
    """An update of 2^-10 of W is rounded away in `W + s A B`; the factored norm keeps it."""
    w = (1.0 + jax.random.uniform(jax.random.key(0), (64, 48))).astype(jnp.bfloat16)
    a, b = jnp.full((64, 1), 2.0**-5), jnp.full((1, 48), 2.0**-5)
    w32 = float64(w.astype(jnp.float32))
    naive = w + (a @ b).astype(jnp.bfloat16)
    assert bool((naive == w).all())  # what the naive form would do
    start = np.linalg.norm(w32, axis=0)
    want = np.linalg.norm(w32 + 2.0**-10, axis=0)
    got = linalg.column_norm(w, a, b, jnp.asarray(start, jnp.float32))
    np.testing.assert_allclose((got - start) / (want - start), np.ones(48), rtol=5e-3)


def test_the_norm_never_forms_the_update(kernel):
    """No array of the kernel's shape is computed on the way to n; merging does form it."""
    method = jp.methods.dora(rank=R)
    state = started(method, kernel)
    shapes = lambda f: {
        v.aval.shape for eqn in jax.make_jaxpr(f)(state, kernel).eqns for v in eqn.outvars
    }
    assert (N, M) not in shapes(
        lambda s, w: linalg.column_norm(w, *factors.pair(s, 2.0), s.consts['norm'])
    )
    assert (N, M) in shapes(method.weight)


def test_bfloat16_base_is_the_equation_of_its_float32_cast(kernel, x):
    w, x = kernel.astype(jnp.bfloat16), x.astype(jnp.bfloat16)
    method = jp.methods.dora(rank=R)
    state = started(method, w)
    want = float64(x.astype(jnp.float32)) @ written_out(state, w.astype(jnp.float32), 2.0)
    y = method.apply(state, w, x)
    assert y.dtype == jnp.bfloat16
    # One rounding, of the output: the sum of the branches is float32.
    np.testing.assert_allclose(y.astype(jnp.float32), want, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize('detach', [True, False])
def test_a_column_of_zeros_stays_zero_and_finite(detach, kernel, x):
    w = kernel.at[:, 3].set(0.0)
    method = jp.methods.dora(rank=R, detach=detach)
    state = method.init(jax.random.key(0), w)
    loss = lambda p: jnp.sum(method.apply(jp.State(p, state.consts), w, x) ** 2)
    grads = jax.grad(loss)(state.params)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    np.testing.assert_array_equal(method.apply(state, w, x)[..., 3], 0.0)


def test_dropout_is_on_all_but_the_bases_own_product(kernel, x):
    """`y = x W + (n - 1) o (x' W) + n o s (x' A) B`, written out with the same mask."""
    method, key = jp.methods.dora(rank=R, dropout=0.4), jax.random.key(3)
    state = started(method, kernel)
    dropped = float64(base.dropout(key, x, 0.4))
    want = float64(x) @ float64(kernel)
    want += dropped @ (written_out(state, kernel, 2.0) - float64(kernel))
    np.testing.assert_allclose(method.apply(state, kernel, x, key=key), want, rtol=1e-5, atol=1e-5)


def test_a_layers_own_scale_replaces_the_methods(kernel):
    method = jp.methods.dora(rank=R)
    state = started(method, kernel)
    other = state._replace(consts={**state.consts, 'scale': jnp.float32(0.5)})
    np.testing.assert_allclose(
        method.weight(other, kernel), written_out(state, kernel, 0.5), rtol=1e-5, atol=1e-6
    )


@pytest.mark.filterwarnings('ignore')  # peft's own
@pytest.mark.parametrize('dropout', [0.0, 0.4])
def test_is_pefts_layer(dropout, kernel, x):
    method, key = jp.methods.dora(rank=R, alpha=6, dropout=dropout), jax.random.key(3)
    state = started(method, kernel)
    layer = oracles.wrap(kernel, r=R, lora_alpha=6, use_dora=True)
    oracles.write(layer, state.params)
    if dropout:
        oracles.mask_dropout(layer, base.dropout(key, jnp.ones_like(x), dropout))
    want, want_grads = oracles.value_and_grads(layer, x)
    apply = lambda p: method.apply(jp.State(p, state.consts), kernel, x, key=key)
    np.testing.assert_allclose(apply(state.params), want, rtol=1e-5, atol=1e-5)
    grads = jax.grad(lambda p: jnp.sum(jnp.sin(apply(p))))(state.params)
    assert set(grads) == set(want_grads) == {'a', 'b', 'm'}
    for name, want in want_grads.items():
        np.testing.assert_allclose(grads[name], want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_golden_numbers():
    """A kernel and leaves by formula; the numbers are numpy's, in float64, of the equation."""
    method = jp.methods.dora(rank=2, alpha=3)
    want = [[-1.015040, -1.181615, 0.097701, 1.070450], [0.705474, -0.458959, 0.099942, -0.661291]]
    np.testing.assert_allclose(oracles.golden(method, m=[1.0, 2.0, 0.5, 1.5]), want, atol=1.5e-6)


def test_counts_of_qwen2_are_the_closed_formula():
    """r (n + m) + m a kernel: q, k, v, o of Qwen2-0.5B, rank 8."""
    params = jp.models.param_shapes(jp.models.build(jp.models.config_of('Qwen/Qwen2-0.5B')))
    plan = {jp.targets(params, list(jp.methods.defaults('dora'))): jp.methods.dora(rank=8)}
    state = jax.eval_shape(functools.partial(jp.init, plan), jax.random.key(0), params)
    assert jp.count(state) == 1_130_496


def _temp_bytes(method, depth, dtype, width=256, tokens=4):
    """XLA's temporaries of the gradient through a scan over `depth` square layers."""
    w = jax.ShapeDtypeStruct((depth, width, width), dtype)
    x = jax.ShapeDtypeStruct((tokens, width), dtype)
    keys = jax.random.split(jax.random.key(0), depth)
    state = jax.eval_shape(jax.vmap(method.init), keys, w)

    def loss(params, consts, w, x):
        layer = lambda x, one: (jnp.tanh(method.apply(jp.State(one[0], one[1]), one[2], x)), None)
        return jnp.mean(jax.lax.scan(layer, x, (params, consts, w))[0].astype(jnp.float32))

    compiled = jax.jit(jax.grad(loss)).lower(*state, w, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('detach', [True, False])
def test_memory_grows_per_layer_by_activations_and_not_by_kernels(detach, dtype):
    """The norm keeps no `[n, m]` array of a layer alive; the largest extra one is `[r, n]`."""
    growth = lambda f: (_temp_bytes(f, 6, dtype) - _temp_bytes(f, 2, dtype)) / 4
    extra = growth(jp.methods.dora(rank=4, detach=detach)) - growth(jp.methods.lora(rank=4))
    assert extra <= 4 * 4 * 256 * 4  # four float32 arrays of [4, 256]; a kernel is 64 of them
