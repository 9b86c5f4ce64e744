"""The update: accumulation, penalty, weight decay, clipping, schedule, what is trained, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpeft as jp
from tests import train_tiny
from train import config, feed, model, optimizer, step


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return train_tiny.write_all(tmp_path_factory.mktemp('tiny'))


def prepare(folder, *flags, tx=None):
    """(built, feed, programs, TrainState) of a tiny run; plain SGD of rate 1 shows the gradient."""
    setting = train_tiny.config(folder, '--mesh=1,1,1', *flags)
    built = model.setup(setting)
    data = feed.make(setting, built.tokenizer, built.mesh)
    rate = optax.constant_schedule(1.0)
    programs = step.compile_programs(
        built.plan, built.forward, tx or optax.sgd(1.0), rate, built.mesh, built.state.params, 0
    )
    return built, data, programs, programs.start(jax.tree.map(jnp.copy, built.state.params))


def one_update(folder, *flags):
    """The gradient (by an SGD step of rate 1), the metrics and the weights of the micro-batches."""
    built, data, programs, now = prepare(folder, *flags)
    batch = data.at(0).arrays
    after, metrics = programs.update(now, built.state.consts, built.params, batch)
    grads = jax.tree.map(lambda x, y: np.asarray(x - y), built.state.params, after.params)
    return grads, jax.device_get(metrics), np.asarray(batch['weights'].sum(axis=1))


def assert_close(a, b, share=1e-5):
    """Within a share of the largest entry of each leaf's tree."""
    largest = max(np.abs(x).max() for x in jax.tree.leaves(b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=share * largest, rtol=0)


def test_accumulated_micro_batches_equal_the_big_batch_and_the_definition(folder):
    flags = ('--train_on_inputs', '--ortho_lambda=0.5', '--init_ab=kaiming,kaiming')
    grads, metrics, weights = one_update(folder, *flags, '--batch=2', '--grad_acc=4')
    big_grads, big_metrics, big_weights = one_update(folder, *flags, '--batch=8', '--grad_acc=1')
    assert len(set(weights.tolist())) > 1  # a mean of means would differ
    assert weights.sum() == big_weights.sum()
    np.testing.assert_allclose(metrics['loss'], big_metrics['loss'], rtol=1e-5)
    np.testing.assert_allclose(metrics['penalty'], big_metrics['penalty'], rtol=1e-6)
    assert_close(grads, big_grads)

    built, data, _, _ = prepare(folder, *flags, '--batch=8')
    batch = {name: x[0] for name, x in data.at(0).arrays.items()}

    def loss(params):
        state = jp.State(params, built.state.consts)
        where = train_tiny.where(batch)
        logits = built.forward(state, {'params': built.params}, batch['tokens'], **where)
        flat = logits.reshape(-1, logits.shape[-1])[batch['select']]
        each = optax.softmax_cross_entropy_with_integer_labels(flat, batch['labels'])
        lm = jnp.sum(each * batch['weights']) / jnp.sum(batch['weights'])
        return lm + jp.penalty(built.plan, state, built.params), lm

    (_, lm), expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(built.state.params)
    np.testing.assert_allclose(metrics['loss'], lm, rtol=1e-5)
    assert metrics['penalty'] > 0
    assert_close(grads, jax.tree.map(np.asarray, expected))
    np.testing.assert_allclose(metrics['grad_norm'], optax.tree.norm(expected), rtol=1e-5)


def test_only_the_adapter_is_trained_and_the_step_compiles_once(folder):
    tx = optimizer.make(config.Optim(), optax.constant_schedule(1e-2))
    built, data, programs, now = prepare(folder, tx=tx)
    base = jax.tree.map(np.array, built.params)
    consts = jax.tree.map(np.array, built.state.consts)
    held = sum(x.size for x in jax.tree.leaves(now.opt_state))
    assert held <= 2 * jp.count(built.state) + 8  # two moments of the adapter and a few counts
    for s in range(3):
        now, metrics = programs.update(now, built.state.consts, built.params, data.at(s).arrays)
        assert np.isfinite(metrics['loss'])
    programs.validate(now.params, built.state.consts, built.params, data.validation[0])
    assert programs.update._cache_size() == 1
    assert programs.validate._cache_size() == 1
    assert int(now.step) == 3
    jax.tree.map(np.testing.assert_array_equal, built.params, base)
    jax.tree.map(np.testing.assert_array_equal, built.state.consts, consts)
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), now.params, built.state.params)
    assert all(jax.tree.leaves(moved)), moved


def test_dropout_differs_from_step_to_step_and_never_in_validation(folder):
    built, data, programs, now = prepare(
        folder, '--dropout=0.5', '--init_ab=kaiming,kaiming', tx=optax.sgd(0.0)
    )
    batch, consts = data.at(0).arrays, built.state.consts
    now, first = programs.update(now, consts, built.params, batch)
    again = programs.start(jax.tree.map(jnp.copy, built.state.params))
    again, same = programs.update(again, consts, built.params, batch)
    now, second = programs.update(now, consts, built.params, batch)
    assert first['loss'] == same['loss']  # the key is a function of the seed and the step
    assert first['loss'] != second['loss']
    one = programs.validate(now.params, consts, built.params, data.validation[0])
    two = programs.validate(now.params, consts, built.params, data.validation[0])
    assert one[0] == two[0]


def test_weight_decay_shrinks_the_factors_only():
    params = {
        'h': {'a': jnp.ones((2, 4, 3)), 'b': jnp.ones((2, 3, 4)), 'gate': jnp.ones((2, 3))},
        'o': {'m': jnp.ones((2, 4)), 'diag': jnp.ones((2, 3)), 'residual': jnp.ones(2)},
    }
    tx = optimizer.make(config.Optim(weight_decay=0.1), optax.constant_schedule(0.5))
    zero = jax.tree.map(jnp.zeros_like, params)
    new = jax.jit(lambda p: optax.apply_updates(p, tx.update(zero, tx.init(p), p)[0]))(params)
    np.testing.assert_allclose(new['h']['a'], 0.95, rtol=1e-6)
    np.testing.assert_allclose(new['h']['b'], 0.95, rtol=1e-6)
    for leaf in (new['h']['gate'], new['o']['m'], new['o']['diag'], new['o']['residual']):
        np.testing.assert_array_equal(leaf, 1.0)


def test_the_gradient_is_clipped_by_its_global_norm():
    params = {'a': jnp.zeros(3), 'b': jnp.zeros(4)}
    grads = {'a': jnp.full(3, 10.0), 'b': jnp.full(4, -10.0)}
    rate = optax.constant_schedule(1.0)
    for limit, expected in ((0.5, 0.5), (0.0, 10 * 7**0.5)):
        tx = optimizer.make(config.Optim(max_grad_norm=limit), rate)
        _, state = jax.jit(lambda g, tx=tx: tx.update(g, tx.init(params), params))(grads)
        first_moment = optax.tree.get(state, 'mu')  # 0.1 * what AdamW was given
        np.testing.assert_allclose(optax.tree.norm(first_moment), 0.1 * expected, rtol=1e-5)


@pytest.mark.parametrize(('name', 'half'), [('cosine', 0.5), ('linear', 0.5), ('constant', 1.0)])
def test_schedules(name, half):
    rate = optimizer.schedule(config.Optim(lr=1.0, warmup=4, schedule=name), total=24)
    np.testing.assert_allclose([rate(n) for n in range(5)], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    np.testing.assert_allclose(rate(14), half, rtol=1e-6)
    np.testing.assert_allclose(rate(24), 1.0 if name == 'constant' else 0.0, atol=1e-6)
    share = optimizer.schedule(config.Optim(lr=1.0, warmup=0.25, schedule=name), total=24)
    assert share(5) < share(6) == 1.0
    none = optimizer.schedule(config.Optim(lr=1.0, warmup=0, schedule=name), total=24)
    assert none(0) == 1.0


def test_a_bfloat16_base_trains_a_float32_adapter(folder):
    built, data, programs, now = prepare(folder, '--dtype=bfloat16')
    kernels = [x for x in jax.tree.leaves(built.params) if x.ndim > 2]
    assert {x.dtype.name for x in kernels} == {'bfloat16'}
    now, metrics = programs.update(now, built.state.consts, built.params, data.at(0).arrays)
    assert np.isfinite(metrics['loss'])
    assert {x.dtype.name for x in jax.tree.leaves(now.params)} == {'float32'}
