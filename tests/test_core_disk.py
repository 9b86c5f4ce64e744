"""Adapter folders: layers under other rules, what else lies there, states that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxpeft as jp
from tests import toys

WEIGHTS = 'adapter_model.safetensors'
Q, K = (f'model/layers/{{}}/self_attn/{name}/kernel' for name in ('q_proj', 'k_proj'))


def _unrolled(key, layers=3):
    return jp.paths.nest(
        {
            path.format(i): jax.random.normal(jax.random.fold_in(key, i), (6, 4))
            for i in range(layers)
            for path in (Q, K)
        }
    )


def _scanned(params):
    layers = params['model']['layers'].values()
    return {'model': {'layers': jax.tree.map(lambda *w: jnp.stack(w), *layers)}}


RULES = {
    'alpha': (jp.methods.lora(rank=2, alpha=50.0), jp.methods.lora(rank=2)),
    'rank': (jp.methods.hira(rank=3), jp.methods.hira(rank=2)),
    'method': (jp.methods.lora(rank=2), jp.methods.dora(rank=2)),
}


@pytest.mark.parametrize('name', sorted(RULES))
def test_layers_under_different_rules_come_back_as_they_were(name, key, tmp_path):
    params, (one, others) = _unrolled(key), RULES[name]
    plan = {Q.format(1): one, '.*/(q|k)_proj/kernel': others}
    state = toys.moved(jp.init(plan, key, params), key)
    jp.save_adapter(tmp_path / 'a', plan, state, params)
    plan_back, back = jp.load_adapter(tmp_path / 'a', params)
    assert [rule.spec for rule in plan_back.values()] == [one.spec, others.spec]
    jax.tree.map(np.testing.assert_array_equal, back, state)
    merged = [jp.merge(p, s, params) for p, s in ((plan, state), (plan_back, back))]
    jax.tree.map(np.testing.assert_array_equal, *merged)
    with pytest.raises(ValueError, match=r'q_proj.kernel have different rules.*unrolled'):
        jp.load_adapter(tmp_path / 'a', _scanned(params))


def test_what_else_lies_in_the_folder_stays(key, tmp_path):
    params = _unrolled(key)
    plan = {'.*/q_proj/kernel': jp.methods.lora(rank=2)}
    state = jp.init(plan, key, params)
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'notes.txt').write_text('mine')
    for moved in (state, toys.moved(state, key)):
        jp.save_adapter(tmp_path / 'a', plan, moved, params)
        jax.tree.map(
            np.testing.assert_array_equal, jp.load_adapter(tmp_path / 'a', params)[1], moved
        )
    assert (tmp_path / 'a' / 'notes.txt').read_text() == 'mine'
    assert [path.name for path in tmp_path.iterdir()] == ['a']


def test_a_save_that_fails_leaves_the_old_one_and_nothing_else(key, tmp_path):
    params = _unrolled(key)
    method = jp.methods.lora(rank=np.int64(2), alpha=np.float32(3.0))  # JSON knows neither
    plan = {'.*/q_proj/kernel': method}
    state = jp.init(plan, key, params)
    jp.save_adapter(tmp_path / 'a', plan, state, params)
    spec = jp.load_adapter(tmp_path / 'a', params)[0].popitem()[1].spec
    assert (spec['rank'], spec['alpha']) == (2, 3.0)
    odd = method._replace(spec={**method.spec, 'alpha': object()})
    with pytest.raises(TypeError, match=r'adapter.json cannot hold <object'):
        jp.save_adapter(tmp_path / 'a', {'.*/q_proj/kernel': odd}, state, params)
    assert [path.name for path in tmp_path.iterdir()] == ['a']
    assert jp.load_adapter(tmp_path / 'a', params)[0].popitem()[1].spec == spec


def test_a_state_that_is_not_the_plans_is_refused(key, tmp_path):
    params = _unrolled(key)
    plan = {'.*/(q|k)_proj/kernel': jp.methods.lora(rank=2)}
    state = jp.init(plan, key, params)
    narrow = {'.*/q_proj/kernel': jp.methods.lora(rank=2)}
    smaller = {'.*/(q|k)_proj/kernel': jp.methods.lora(rank=1)}
    wrong = {
        r'missing \(4\): .*left over \(12\)': (plan, _scanned(params)),
        r'left over \(6\): model/layers/0/self_attn/k_proj/kernel/a': (narrow, params),
        r'misshaped \(12\): .* \(6, 2\) for \(6, 1\)': (smaller, params),
    }
    for message, (other, base) in wrong.items():
        with pytest.raises(ValueError, match=message):
            jp.save_adapter(tmp_path / 'a', other, state, base)
    assert not (tmp_path / 'a').exists()
    with pytest.raises(ValueError, match='holds nothing for model/layers/self_attn/k_proj'):
        jp.merge(plan, state, _scanned(params))


def test_a_leaf_that_the_file_lacks_is_named(key, tmp_path):
    params = _unrolled(key)
    plan = {'.*/q_proj/kernel': jp.methods.lora(rank=2)}
    jp.save_adapter(tmp_path, plan, jp.init(plan, key, params), params)
    tensors = safetensors.numpy.load_file(tmp_path / WEIGHTS)
    del tensors['params/model/layers/self_attn/q_proj/kernel/b']
    safetensors.numpy.save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=rf'{WEIGHTS}: .*missing \(3\): .*/q_proj/kernel/b'):
        jp.load_adapter(tmp_path, params)


def test_a_scalar_leaf_keeps_its_shape(key, tmp_path):
    params = {'head': {'kernel': jax.random.normal(key, (6, 4))}}
    plan = {'head/kernel': jp.methods.hylorada(rank=2)}
    state = jp.init(plan, key, params)
    assert state.params['head']['kernel']['gate'].shape == ()
    jp.save_adapter(tmp_path, plan, state, params)
    jax.tree.map(np.testing.assert_array_equal, jp.load_adapter(tmp_path, params)[1], state)


def test_an_override_of_some_layers_is_for_unrolled_models(key, tmp_path):
    bases = {scan: jp.models.load('embedded', scan=scan)[:2] for scan in (False, True)}
    model, params = bases[False]
    for layers, fits in ((range(model.config.num_layers), True), ((0,), False)):
        plan = jp.compose(model, params, 'sparse_mlp', layers=layers)
        state = toys.moved(jp.init(plan, key, params), key)
        jp.save_adapter(tmp_path / 'a', plan, state, params)
        jax.tree.map(
            np.testing.assert_array_equal, jp.load_adapter(tmp_path / 'a', params)[1], state
        )
        if not fits:
            with pytest.raises(ValueError, match=r'saved for 1 layers.*unrolled'):
                jp.load_adapter(tmp_path / 'a', bases[True][1])
            continue
        scanned, whole = bases[True]
        tokens = jnp.arange(5)[None]
        there = jp.bind(plan, model.apply)(state, {'params': params}, tokens)
        plan, state = jp.load_adapter(tmp_path / 'a', whole)
        here = jp.bind(plan, scanned.apply)(state, {'params': whole}, tokens)
        assert toys.worst(here, there) <= 1e-4


def test_a_file_and_the_current_folder_are_no_place_for_an_adapter(key, tmp_path, monkeypatch):
    params = _unrolled(key)
    plan = {'.*/q_proj/kernel': jp.methods.lora(rank=2)}
    state = jp.init(plan, key, params)
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(FileExistsError, match='file is a file'):
        jp.save_adapter(tmp_path / 'file', plan, state, params)
    assert (tmp_path / 'file').read_text() == 'mine'
    monkeypatch.chdir(tmp_path)
    for here in ('.', tmp_path.parent):
        with pytest.raises(ValueError, match='is the current folder'):
            jp.save_adapter(here, plan, state, params)
    jp.save_adapter('a/../b', plan, state, params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['b', 'file']
