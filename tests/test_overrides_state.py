"""An override's state: what learns, what is saved and counted; bfloat16, dropout, full."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from jaxpeft import models
from tests import overrides_tiny as tiny
from tests import toys
from tests.models_tiny import jit, tokens

T, CLOSE = tiny.T, {'atol': 5e-5, 'rtol': 0}
LEARNT = [name for name in tiny.NAMES if name != 's2']  # s2 has no parameters


@pytest.mark.parametrize('kind', tiny.KINDS)
@pytest.mark.parametrize('name', LEARNT)
def test_every_leaf_learns_within_three_steps(name, kind):
    model, params = tiny.base(kind)
    forward = jp.bind(tiny.plan(name, kind), model.apply)

    def loss(p):
        out = forward(jp.State(p, {}), {'params': params}, tokens(2, T))
        return jnp.mean(jax.nn.logsumexp(out, axis=-1) - out[:, :, 5])

    grad = jit(jax.grad(loss))
    leaves = tiny.adapted(name, kind)[0].params
    seen = jax.tree.map(jnp.zeros_like, leaves)
    for _ in range(3):
        grads = grad(leaves)
        leaves = jax.tree.map(lambda p, g: p - 0.05 * jnp.sign(g), leaves, grads)
        seen = jax.tree.map(lambda s, g: s + jnp.abs(g), seen, grads)
    for leaf in jax.tree.leaves(seen):
        assert bool(jnp.isfinite(leaf).all())
        assert bool((leaf.reshape(leaf.shape[0], -1).max(axis=1) > 0).all())  # in every layer


@pytest.mark.parametrize('name', tiny.NAMES)
def test_saved_is_loaded_and_summed_up(name, tmp_path):
    params = tiny.base('qwen2')[1]
    plan, state = tiny.plan(name, 'qwen2'), tiny.adapted(name, 'qwen2')[1]
    jp.save_adapter(tmp_path / 'a', plan, state, params)
    again, loaded = jp.load_adapter(tmp_path / 'a', params)
    assert [rule.spec for rule in again.values()] == [rule.spec for rule in plan.values()]
    jax.tree.map(np.testing.assert_array_equal, loaded.params, state.params)
    model = tiny.base('qwen2')[0]
    got = jit(lambda t: jp.bind(again, model.apply)(loaded, {'params': params}, t))(tokens(2, T))
    np.testing.assert_allclose(got, tiny.logits(name, 'qwen2'), **CLOSE)
    assert name in jp.summary(plan, state, params)
    assert float(jp.penalty(plan, state, params)) == 0.0
    with pytest.raises(ValueError, match=f'{name} depends on its input'):
        jp.merge(plan, state, params)


@pytest.mark.parametrize('name', LEARNT)
def test_loads_into_the_other_layout_and_back(name, tmp_path):
    """The spec's stack follows the base: penalties and dropout keys are mapped over it."""
    plan, state = tiny.plan(name, 'qwen2'), tiny.adapted(name, 'qwen2')[1]
    scanned, unrolled = (tiny.base('qwen2', scan)[1] for scan in (True, False))
    jp.save_adapter(tmp_path / 'a', plan, state, scanned)
    apart, loaded = jp.load_adapter(tmp_path / 'a', unrolled)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, models.unstack(state.params))
    assert [rule.spec['stack'] for rule in apart.values()] == [[]] * len(plan)
    jp.save_adapter(tmp_path / 'b', apart, loaded, unrolled)
    back, again = jp.load_adapter(tmp_path / 'b', scanned)
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)
    assert [rule.spec for rule in back.values()] == [rule.spec for rule in plan.values()]


@pytest.mark.parametrize('name', tiny.NAMES)
def test_a_bfloat16_base_keeps_its_dtype(name):
    """Close to float32 with the base's rounding; the adapter's arithmetic stays float32."""
    model, params = tiny.base('qwen2', dtype=jnp.bfloat16)
    _, exact = tiny.base('qwen2')
    exact = jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(jnp.float32), exact)
    state, plan = tiny.adapted(name, 'qwen2')[1], tiny.plan(name, 'qwen2')
    wide = tiny.base('qwen2')[0]
    got, want = (
        jit(lambda p, m=m: jp.bind(plan, m.apply)(state, {'params': p}, tokens(2, T)))(p)
        for m, p in ((model, params), (wide, exact))
    )
    assert got.dtype == want.dtype
    assert float(jnp.abs(got - want).mean() / jnp.abs(want).mean()) < 0.03


@pytest.mark.parametrize('scan', [True, False])
def test_dropout_is_drawn_for_each_layer_and_off_without_a_key(scan):
    model, params = tiny.base('qwen2', scan)
    plan = tiny.plan('sparse_mlp', 'qwen2', scan, dropout=0.5)
    state = tiny.adapted('sparse_mlp', 'qwen2')[1]
    state = state if scan else jp.State(models.unstack(state.params), {})
    forward = jp.bind(plan, model.apply)
    run = jit(lambda key: forward(state, {'params': params}, tokens(2, T), dropout_key=key))
    np.testing.assert_allclose(run(None), tiny.logits('sparse_mlp', 'qwen2'), **CLOSE)
    one, other = run(jax.random.key(1)), run(jax.random.key(2))
    assert bool(jnp.isfinite(one).all())
    assert toys.worst(one, other) > 1e-2


def test_counts_are_the_closed_formulas():
    """Qwen2-0.5B: 24 layers, width 896, 14 heads, 2 key/value heads of 64, FFN 4864."""
    config = models.config_of('Qwen/Qwen2-0.5B')
    params = models.param_shapes(models.build(config))
    wanted = {
        'daa': 24 * 14 * (1 + 32),
        'ia3': 24 * (2 * 64 + 2 * 64 + 4864),
        'prefix': 24 * 2 * 16 * 2 * 64,
        's2': 0,
        'sparse_mlp': 5_508_096,
    }
    for name, number in wanted.items():
        module = jp.methods.module(name)
        plan = {
            pattern: jp.methods.get(name)(**module.dimensions(config, target), stack=(24,))
            for pattern, target in tiny.SITES[name].items()
        }
        state = jax.eval_shape(lambda p=plan: jp.init(p, jax.random.key(0), params))
        assert jp.count(state) == number
        assert set(tiny.SITES[name].values()) <= set(module.TARGETS)
        for rule in plan.values():
            assert jp.methods.rebuild(rule.spec).spec == rule.spec
            if name == 'sparse_mlp':
                assert module.active(rule.spec) == 24 * (2 * 896 * 6 + 128)


def test_full_trains_every_leaf():
    """Bound at the moved values is the model at those values; every number counts and learns."""
    model, params = tiny.base('qwen2')
    plan = {'.*': jp.methods.full()}
    state = toys.moved(jp.init(plan, jax.random.key(0), params), jax.random.key(1), 0.05)
    assert jp.count(state) == sum(p.size for p in jax.tree.leaves(params))
    forward = jp.bind(plan, model.apply)

    def loss(p):
        out = forward(jp.State(p, {}), {'params': params}, tokens(2, T))
        return jnp.mean(jax.nn.logsumexp(out, axis=-1) - out[:, :, 5]), out

    (_, out), grads = jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    merged = jp.merge(plan, state, params)
    want = jit(lambda p: model.apply({'params': p}, tokens(2, T)))(merged)
    np.testing.assert_allclose(out, want, **CLOSE)
    assert np.abs(want - tiny.plain('qwen2')).max() > 1e-2
    for path, leaf in jp.paths.flatten(grads):
        assert bool(jnp.isfinite(leaf).all())
        # Equal shifts of all scores of a query leave its softmax as it was.
        assert float(jnp.abs(leaf).max()) > (0 if 'k_proj/bias' in path else 1e-7), path
