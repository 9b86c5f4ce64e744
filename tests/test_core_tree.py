"""Plans over trees: which rule takes what, keys, merge, counts, the table, adapters on disk."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxpeft as jp
from tests import toys

LORA = jp.methods.lora(rank=2)


@pytest.fixture(scope='module')
def params():
    k = jax.random.split(jax.random.key(0), 6)
    layer = lambda i: {
        'self_attn': {
            'q_proj': {'kernel': jax.random.normal(k[i], (2, 6, 4))},
            'o_proj': {'kernel': jax.random.normal(k[i + 1], (2, 4, 6))},
        },
        'mlp': {
            'up_proj': {'kernel': jax.random.normal(k[i + 2], (2, 6, 8)), 'bias': jnp.ones((2, 8))}
        },
    }
    return {
        'model': {'layers': layer(0), 'embed_tokens': {'embedding': jnp.ones((9, 6))}},
        'lm_head': {'kernel': jax.random.normal(k[5], (6, 9))},
    }


def _unrolled(params):
    layers = params['model']['layers']
    split = {str(i): jax.tree.map(lambda p, i=i: p[i], layers) for i in range(2)}
    return {**params, 'model': {**params['model'], 'layers': split}}


def test_targets_by_name_suffix_and_family(params):
    plan = lambda names, **kw: [
        s.path for s in jp.tree.sites({jp.targets(params, names, **kw): LORA}, params)
    ]
    attention = ['model/layers/self_attn/o_proj/kernel', 'model/layers/self_attn/q_proj/kernel']
    assert plan(['q_proj', 'out_proj']) == attention
    assert plan(' q_proj, o_proj ') == attention
    assert plan(['mlp.up_proj']) == plan(['mlp/up_proj']) == ['model/layers/mlp/up_proj/kernel']
    everything = ['model/layers/mlp/up_proj/kernel', *attention]
    assert plan(['all-linear']) == everything
    assert plan(['all-linear'], exclude=['o_proj', 'q_proj']) == everything[:1]
    assert plan(['lm_head']) == ['lm_head/kernel']


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (['q_prj'], "called 'q_prj'; nearest: q_proj"),
        (['all-linear', 'q_proj'], 'stands alone'),
        (' , ', 'no target module was named'),
    ],
)
def test_a_name_that_matches_nothing_is_an_error_with_the_nearest(params, names, message):
    with pytest.raises(ValueError, match=message):
        jp.targets(params, names)


def test_rules_match_whole_paths_first_wins_and_idle_rules_are_errors(params, key):
    plan = {r'.*/q_proj/kernel': jp.methods.hira(rank=1), r'.*_proj/kernel': LORA}
    state = jp.init(plan, key, params)
    attention = state.params['model']['layers']['self_attn']
    assert attention['q_proj']['kernel']['a'].shape == (2, 6, 1)
    assert attention['o_proj']['kernel']['a'].shape == (2, 4, 2)
    with pytest.raises(ValueError, match='put the narrower rule first'):
        jp.init(dict(reversed(plan.items())), key, params)
    with pytest.raises(
        ValueError, match=r"'q_proj/kernel' matches nothing .full match.; nearest: .*q_proj"
    ):
        jp.init({'q_proj/kernel': LORA}, key, params)
    with pytest.raises(ValueError, match=r'up_proj/bias: a kernel has at least two axes'):
        jp.init({r'.*': LORA}, key, {'up_proj': {'bias': jnp.ones(3)}})
    with pytest.raises(TypeError, match='Method or an Override'):
        jp.init({'lm_head/kernel': jp.methods.lora}, key, params)


@pytest.mark.parametrize('pattern', ['l (h d', '(h d)', 'i i', '(l k) i o'])
def test_a_bad_view_is_an_error(pattern):
    with pytest.raises(ValueError, match=r'view|axis'):
        jp.on(LORA, pattern)


def test_a_view_of_other_axes_is_an_error(params, key):
    with pytest.raises(ValueError, match='has 3 axes, the kernel has 2'):
        jp.init({'lm_head/kernel': jp.on(LORA, 'i (h d)')}, key, params)


def test_same_key_same_state_scanned_or_not_and_layers_differ(params, key):
    plan = {jp.targets(params, 'all-linear'): jp.methods.knowhira(rank=2)}
    scanned, loop = jp.init(plan, key, params), jp.init(plan, key, _unrolled(params))
    again = jp.init(plan, key, params)
    assert toys.worst(scanned, again) == 0
    for i in range(2):
        layer = jax.tree.map(lambda p, i=i: p[i], scanned.params['model']['layers'])
        assert toys.worst(layer, loop.params['model']['layers'][str(i)]) <= 1e-6
    one = jp.init({jp.targets(params, ['q_proj', 'o_proj']): LORA}, key, params)
    attention = one.params['model']['layers']['self_attn']
    q, o = attention['q_proj']['kernel']['a'], attention['o_proj']['kernel']['a']
    assert abs(float(q[0, 0, 0] - q[1, 0, 0])) > 1e-4
    assert abs(float(q[0, 0, 0] - o[0, 0, 0])) > 1e-4


def test_shapes_instead_of_weights_are_refused(params, key):
    shapes = jax.eval_shape(lambda: params)
    with pytest.raises(TypeError, match='load the weights first'):
        jp.init({'lm_head/kernel': LORA}, key, shapes)


def test_merge_makes_new_arrays_only_where_it_adapts(params, key):
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    plan = {jp.targets(low, ['q_proj']): LORA}
    state = toys.moved(jp.init(plan, key, low), key)
    merged = jp.merge(plan, state, low)
    assert jax.tree.structure(merged) == jax.tree.structure(low)
    q = merged['model']['layers']['self_attn']['q_proj']['kernel']
    assert q.dtype == jnp.float32
    assert jp.merge(plan, state, low, dtype=jnp.bfloat16)['lm_head']['kernel'].dtype == jnp.bfloat16
    same = [a is b for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(low), strict=True)]
    assert same.count(False) == 1


def test_a_bare_pytree_learns_through_merge(key):
    base = {'w1': jax.random.normal(key, (4, 6)), 'w2': jax.random.normal(key, (6, 2))}
    plan = {r'w\d': jp.methods.hira(rank=2)}
    state = toys.moved(jp.init(plan, key, base), key)
    call = lambda p, x: jnp.tanh(x @ p['w1']) @ p['w2']
    loss = lambda t: call(jp.merge(plan, state._replace(params=t), base), jnp.ones((3, 4))).sum()
    grads = jax.jit(jax.grad(loss))(state.params)
    assert all(bool(jnp.abs(g).max() > 0) for g in jax.tree.leaves(grads))


def test_boxed_parameters_are_read_through_their_boxes(key):
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ('fsdp', None))
    model, x = nn.Dense(4, kernel_init=init), jnp.ones((2, 3))
    params = model.init(key, x)['params']
    plan = {'kernel': LORA}
    state = toys.moved(jp.init(plan, key, params), key)
    merged = model.apply({'params': jp.merge(plan, state, params)}, x)
    assert toys.worst(jp.bind(plan, model.apply)(state, {'params': params}, x), merged) <= 1e-5


def test_padded_ranks_are_not_counted():
    a, b = jnp.zeros((3, 8, 4)), jnp.zeros((3, 4, 6))
    state = jp.State({'w': {'a': a, 'b': b}}, {'w': {'rank': jnp.array([1, 2, 4])}})
    assert jp.count(state) == 7 * (8 + 6)


def test_summary_fits_and_adds_up(params, key):
    plan = {jp.targets(params, 'all-linear'): LORA}
    state = jp.init(plan, key, params)
    text = jp.summary(plan, state, params)
    assert all(len(line) <= 100 for line in text.splitlines())
    total = 2 * (2 * (6 + 4) + 2 * (4 + 6) + 2 * (6 + 8))
    assert jp.count(state) == total
    assert f'{total:,} trainable over' in text.splitlines()[-1]
    assert 'model/layers/mlp/up_proj/kernel' in text
    deep = {'x' * 120: {'kernel': jnp.ones((4, 4))}}
    plan = {r'.*': LORA}
    long = jp.summary(plan, jp.init(plan, key, deep), deep)
    assert all(len(line) <= 100 for line in long.splitlines())


@pytest.mark.parametrize('direction', ['scanned to loop', 'loop to scanned', 'same'])
def test_an_adapter_loads_in_either_layout(direction, params, key, tmp_path):
    saved, loaded = params, params
    if direction == 'scanned to loop':
        loaded = _unrolled(params)
    elif direction == 'loop to scanned':
        saved = _unrolled(params)
    plan = {jp.targets(saved, 'all-linear'): jp.methods.knowhira(rank=2)}
    state = toys.moved(jp.init(plan, key, saved), key)
    jp.save_adapter(tmp_path / 'a', plan, state, saved, base_name='toy')
    jp.save_adapter(tmp_path / 'a', plan, state, saved, base_name='toy')  # replaces the first
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a']
    new_plan, new_state = jp.load_adapter(tmp_path / 'a', loaded)
    merged, want = jp.merge(new_plan, new_state, loaded), jp.merge(plan, state, saved)
    want = _unrolled(want) if direction == 'scanned to loop' else want
    merged = _unrolled(merged) if direction == 'loop to scanned' else merged
    assert toys.worst(merged, want) == 0
    assert jp.count(new_state) == jp.count(state)


def test_the_file_holds_the_adapter_alone_with_sigma_and_gate(params, key, tmp_path):
    plan = {jp.targets(params, ['q_proj']): jp.methods.knowhira(rank=2)}
    jp.save_adapter(tmp_path / 'a', plan, jp.init(plan, key, params), params)
    tensors = safetensors.numpy.load_file(tmp_path / 'a' / 'adapter_model.safetensors')
    site = 'model/layers/self_attn/q_proj/kernel'
    assert sorted(tensors) == [
        f'consts/{site}/sigma', f'params/{site}/a', f'params/{site}/b', f'params/{site}/gate',
    ]  # fmt: skip
    described = json.loads((tmp_path / 'a' / 'adapter.json').read_text())
    assert described['rules'][0]['spec']['name'] == 'knowhira'
    assert len(described['sites'][site]['checksums']) == 2


def test_a_bfloat16_load_of_the_same_base_is_the_same_base(params, key, tmp_path):
    plan = {jp.targets(params, ['q_proj']): LORA}
    jp.save_adapter(tmp_path / 'a', plan, jp.init(plan, key, params), params)
    jp.load_adapter(tmp_path / 'a', jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))


def test_another_base_is_refused(params, key, tmp_path):
    plan = {jp.targets(params, ['q_proj']): LORA}
    jp.save_adapter(tmp_path / 'a', plan, jp.init(plan, key, params), params, base_name='mine')
    with pytest.raises(ValueError, match=r"checksums of .*q_proj/kernel differ[\s\S]*'mine'"):
        jp.load_adapter(tmp_path / 'a', jax.tree.map(lambda p: p + 1, params))
    with pytest.raises(ValueError, match=r'kernel of .*q_proj/kernel differ'):
        jp.load_adapter(tmp_path / 'a', jax.tree.map(lambda p: p.repeat(2, -1), params))
    with pytest.raises(ValueError, match='matches nothing'):
        jp.load_adapter(tmp_path / 'a', {'lm_head': params['lm_head']})
    with pytest.raises(FileNotFoundError, match=r'no adapter\.json'):
        jp.load_adapter(tmp_path, params)


def test_a_method_of_ones_own_loads_by_name(params, key, tmp_path):
    def mine(rank=2):
        return jp.methods.lora(rank=rank)._replace(spec={'name': 'mine', 'rank': rank})

    plan = {jp.targets(params, ['q_proj']): mine()}
    state = jp.init(plan, key, params)
    jp.save_adapter(tmp_path / 'a', plan, state, params)
    with pytest.raises(ValueError, match="no method is called 'mine'"):
        jp.load_adapter(tmp_path / 'a', params)
    new_plan, new = jp.load_adapter(tmp_path / 'a', params, methods={'mine': mine})
    np.testing.assert_array_equal(jp.count(new), jp.count(state))
    assert next(iter(new_plan.values())).spec['name'] == 'mine'


def test_bare_layers_in_a_numbered_list_go_by_the_lists_name():
    """As NNX and Equinox name them: `blocks/0/kernel`."""
    params = {'blocks': {str(i): {'kernel': jnp.ones((4, 4))} for i in range(2)}, 'head': {}}
    for names in ('all-linear', 'blocks'):
        plan = {jp.targets(params, names): jp.methods.lora(rank=1)}
        state = jp.init(plan, jax.random.key(0), params)
        assert set(state.params['blocks']) == {'0', '1'}


def test_merge_keeps_boxes_empty_mappings_and_the_base_s_structure(key):
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ('fsdp', None))
    params = nn.Dense(4, kernel_init=init).init(key, jnp.ones((2, 3)))['params']
    params = {'layer': params, 'nothing': {}}
    plan = {'layer/kernel': LORA}
    merged = jp.merge(plan, toys.moved(jp.init(plan, key, params), key), params)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert merged['layer']['kernel'].names == ('fsdp', None)
