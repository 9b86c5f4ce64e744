"""`compose`: several methods, patterns, layers, ranks by layer, biases; leaves and shared parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from tests import models_tiny, toys


@pytest.fixture(scope='module', params=['scanned', 'unrolled'])
def tiny(request):
    """(model, params) of a four-layer GPT-Neo."""
    model = jp.models.build(models_tiny.config('gpt_neo'), scan=request.param == 'scanned')
    return model, jax.tree.map(jnp.asarray, models_tiny.random_params(model))


@pytest.fixture(scope='module')
def tokens():
    return jax.random.randint(jax.random.key(3), (2, 9), 1, 60)


def run(model, params, plan, tokens, size=0.3):
    """(logits at init, logits after a move, moved state) of a plan."""
    state = jp.init(plan, jax.random.key(0), params)
    forward = models_tiny.jit(jp.bind(plan, model.apply))
    moved = toys.moved(state, jax.random.key(1), size)
    variables = {'params': params}
    return forward(state, variables, tokens), forward(moved, variables, tokens), moved


def test_several_methods_act_together_each_on_its_part(tiny, tokens):
    model, params = tiny
    plan = jp.compose(model, params, 'lora+sparse_mlp+daa', options={'lora': {'rank': 2}})
    base = model.apply({'params': params}, tokens)
    first, moved, state = run(model, params, plan, tokens)
    assert toys.worst(first, base) <= 1e-5
    assert toys.worst(moved, base) > 1e-2
    table = jp.summary(plan, state, params)
    assert all(name in table for name in ('lora', 'sparse_mlp', 'daa'))
    per_layer = 2 * 6 * model.config.hidden_size + 128  # k = 6 of 128 neurons, and their scores
    idle = model.config.num_layers * (2 * 128 * model.config.hidden_size + 128 - per_layer)
    assert f'{jp.count(state) - idle:,} of them active' in table
    alone = [jp.compose(model, params, name) for name in ('sparse_mlp', 'daa')]
    counts = [jp.count(jp.init(one, jax.random.key(0), params)) for one in alone]
    lora = jp.compose(model, params, 'lora', options={'lora': {'rank': 2}})
    assert jp.count(state) == sum(counts) + jp.count(jp.init(lora, jax.random.key(0), params))


def test_full_trains_every_leaf_and_merges(tiny, tokens):
    model, params = tiny
    plan = jp.compose(model, params, 'full')
    first, moved, state = run(model, params, plan, tokens, 0.05)
    base = model.apply({'params': params}, tokens)
    assert toys.worst(first, base) <= 1e-5
    assert jp.count(state) == sum(leaf.size for leaf in jax.tree.leaves(params))
    merged = jp.merge(plan, state, params)
    assert toys.worst(model.apply({'params': merged}, tokens), moved) <= 1e-5


def test_biases_train_beside_the_adapted_layers_or_everywhere(tiny, tokens):
    model, params = tiny
    paths = dict(jp.paths.flatten(params))
    for which in ('adapted', 'all'):
        plan = jp.compose(
            model,
            params,
            'lora',
            options={'lora': {'rank': 2}},
            targets='out_proj,c_fc',
            bias=which,
        )
        _, _, state = run(model, params, plan, tokens)
        trained = {
            p.removesuffix('/value') for p, _ in jp.paths.flatten(state.params) if 'value' in p
        }
        ends = ('out_proj/bias', 'c_fc/bias') if which == 'adapted' else ('bias',)
        assert trained == {p for p in paths if p.endswith(ends)}
        assert trained
    with pytest.raises(ValueError, match='no adapted layer has a bias'):
        jp.compose(model, params, 'lora', targets='q_proj', bias='adapted')


def test_rank_patterns_follow_peft_and_unknown_ones_are_named(tiny, tokens):
    model, params = tiny
    plan = jp.compose(
        model, params, 'lora', options={'lora': {'rank': 3, 'alpha': 6.0}},
        rank_pattern={'q_proj': 1, r'.*\.v_proj': 2}, alpha_pattern={'q_proj': 9.0},
    )  # fmt: skip
    state = jp.init(plan, jax.random.key(0), params)
    by_name = {
        p.split('/')[-3]: v.shape[-1] for p, v in jp.paths.flatten(state.params) if p.endswith('/a')
    }
    assert by_name == {'q_proj': 1, 'v_proj': 2, 'k_proj': 3, 'out_proj': 3}
    alphas = {rule.spec['rank']: rule.spec['alpha'] for rule in plan.values()}
    assert alphas == {1: 9.0, 2: 6.0, 3: 6.0}
    with pytest.raises(ValueError, match=r"'q_porj' matches no target; nearest: q_proj"):
        jp.compose(model, params, 'lora', rank_pattern={'q_porj': 1})


def test_a_subset_of_layers_is_for_unrolled_models(tiny, tokens):
    model, params = tiny
    if model.scan:
        for name in ('lora', 'daa'):
            with pytest.raises(ValueError, match='needs an unrolled model'):
                jp.compose(model, params, name, layers=[1])
        return
    plan = jp.compose(model, params, 'lora+daa', options={'lora': {'rank': 2}}, layers=[1])
    first, moved, state = run(model, params, plan, tokens)
    assert {jp.paths.canonical(p)[1] for p, _ in jp.paths.flatten(state.params)} == {1}
    assert toys.worst(first, moved) > 1e-3
    with pytest.raises(ValueError, match=r'layers \[7\] were asked for, the model has 0-'):
        jp.compose(model, params, 'lora', layers=[7])
    with pytest.raises(ValueError, match=r"'wte' lies in none of the layers \[1\]"):
        jp.compose(model, params, 'lora', targets='wte,q_proj', layers=[1])


@pytest.mark.parametrize('name', ['lora', 'hira', 'knowhira'])
def test_layerwise_ranks_stay_masked_and_are_counted_truly(name, tiny, tokens, tmp_path):
    model, params = tiny
    options = {name: {'rank': 4} | ({'rslora': True} if name == 'lora' else {})}
    plan = jp.compose(model, params, name, options=options, rank_strategy='decreasing')
    state = jp.init(plan, jax.random.key(0), params)
    ranks = jp.ranks.of_strategy('decreasing', 4, model.config.num_layers)
    assert ranks[0] == 4
    assert min(ranks) < 4
    width = model.config.hidden_size
    per_rank = 4 * 2 * width + (4 if name == 'knowhira' else 0)
    assert jp.count(state) == sum(ranks) * per_rank
    forward = jp.bind(plan, model.apply)

    @models_tiny.jit
    def step(p):
        value = lambda p: (
            forward(state._replace(params=p), {'params': params}, tokens) ** 2
        ).mean()
        return jax.tree.map(lambda x, g: x - 0.1 * jnp.sign(g), p, jax.grad(value)(p))

    moved = step(step(step(state.params)))
    for path, leaf in jp.paths.flatten(moved):
        if path.endswith(('/a', '/b')):
            layer = jp.paths.canonical(path)[1]
            stacked = np.asarray(leaf)[None] if layer is not None else np.asarray(leaf)
            here = ranks if layer is None else ranks[layer : layer + 1]
            for one, rank in zip(stacked, here, strict=True):
                beyond = one[:, rank:] if path.endswith('/a') else one[rank:]
                assert not beyond.any()
    state = state._replace(params=moved)
    merged = jp.merge(plan, state, params)
    bound = forward(state, {'params': params}, tokens)
    assert toys.worst(bound, model.apply({'params': merged}, tokens)) <= 1e-4
    jp.save_adapter(tmp_path / 'adapter', plan, state, params)
    plan2, state2 = jp.load_adapter(tmp_path / 'adapter', params)
    assert jp.count(state2) == jp.count(state)
    again = jp.bind(plan2, model.apply)(state2, {'params': params}, tokens)
    assert toys.worst(again, bound) == 0.0


def test_the_penalty_of_a_cut_layer_is_that_of_its_own_rank():
    """Columns of zeros are no ranks: the penalty equals that of a method of the smaller rank."""
    w = {'h': {'w': jax.random.normal(jax.random.key(0), (2, 6, 8))}}
    small = {'h/w': jp.methods.knowhira(rank=2, ortho_lambda=1.0)}
    cut = {'h/w': jp.layerwise(jp.methods.knowhira(rank=4, ortho_lambda=1.0), [4, 2])}
    state = jp.init(cut, jax.random.key(0), w)
    leaves = state.params['h']['w']
    first = small_state(leaves, 0, 4), small_state(leaves, 1, 2)
    want = [
        jp.methods.knowhira(rank=r, ortho_lambda=1.0).penalty(one, None)
        for one, r in zip(first, (4, 2), strict=True)
    ]
    np.testing.assert_allclose(jp.penalty(cut, state, w), sum(want), rtol=1e-5)
    assert jp.count(state) == (4 + 2) * (6 + 8 + 1)
    assert jp.count(jp.init(small, jax.random.key(0), w)) == (2 + 2) * (6 + 8 + 1)


def small_state(leaves, layer, rank):
    """One layer's factors, cut to its rank."""
    return jp.State({'a': leaves['a'][layer][:, :rank], 'b': leaves['b'][layer][:rank]}, {})


def test_layerwise_ranks_that_do_not_fit_are_refused(tiny):
    model, params = tiny
    at = jp.targets(params, ['q_proj'])
    for rule, ranks, message in (
        (jp.methods.lora(rank=4), [4, 3], '2 layer-wise ranks were given'),
        (jp.methods.lora(rank=4), [3] * model.config.num_layers, "largest is the method's own"),
    ):
        with pytest.raises(ValueError, match=message):
            jp.init({at: jp.layerwise(rule, ranks)}, jax.random.key(0), params)
    with pytest.raises(ValueError, match=r"'importanc'; nearest: importance"):
        jp.compose(model, params, 'lora', rank_strategy='importanc')
    with pytest.raises(ValueError, match='both set the ranks'):
        jp.compose(model, params, 'lora', rank_strategy='decreasing', rank_pattern={'q_proj': 2})


def test_two_methods_on_one_layer_are_refused(tiny):
    model, params = tiny
    with pytest.raises(ValueError, match='two methods on the same layers'):
        jp.compose(model, params, 'lora+hira')


IDLE = [  # (method, arguments, what the error says)
    ('daa', {'rank_pattern': {'q_proj': 2}}, 'rank_pattern is for methods over kernels'),
    ('ia3', {'alpha_pattern': {'k_proj': 2.0}}, 'ia3 adapts other modules: k_proj'),
    ('sparse_mlp+daa', {'rank_strategy': 'decreasing'}, 'sparse_mlp.daa adapts .*: mlp, core'),
    ('daa', {'targets': 'q_proj'}, 'targets is for methods over kernels'),
    ('prefix', {'exclude': 'q_proj'}, 'exclude is for methods over kernels'),
    ('ia3', {'exclude': 'k_proj,v_proj,c_proj'}, 'mlp/c_proj that is left'),
    ('s2', {'bias': 'adapted'}, 'no adapted kernel is in this plan'),
    ('full', {'bias': 'all'}, 'the plan trains them already'),
    ('full', {'bias': 'adapted'}, 'the plan trains them already'),
    ('full', {'exclude': 'wte'}, 'give it targets, such as all-linear'),
    ('full', {'layers': [1]}, 'give it targets, such as all-linear'),
    ('full', {'rank_pattern': {'q_proj': 2}}, 'full takes no rank; it has no options'),
    ('hira', {'alpha_pattern': {'q_proj': 2.0}}, 'hira takes no alpha'),
    ('daa', {'options': {'daa': {'dropout': 0.1}}}, 'daa takes no dropout; there are: num_bu'),
    ('daa', {'options': {'daa': {'heads': 2}}}, 'daa takes no heads'),
    ('lora', {'options': {'hira': {'rank': 2}}}, 'options of hira, which is not in the plan'),
]


@pytest.mark.parametrize(('method', 'arguments', 'message'), IDLE)
def test_what_nothing_in_the_plan_would_follow_is_refused(method, arguments, message):
    model = jp.models.build(models_tiny.config('gpt_neo'), scan=False)
    with pytest.raises(ValueError, match=message):
        jp.compose(model, jp.models.param_shapes(model), method, **arguments)


def test_beside_a_method_over_kernels_an_override_leaves_its_options_alone():
    model = jp.models.build(models_tiny.config('gpt_neo'), scan=False)
    params = jp.models.param_shapes(model)
    plan = jp.compose(
        model, params, 'lora+daa', options={'lora': {'rank': 4}}, rank_pattern={'q_proj': 2},
        targets='q_proj,v_proj', exclude='v_proj', bias='all', layers=[1, 2],
    )  # fmt: skip
    sites = jp.tree.sites(plan, params)
    kernels = {s.path for s in sites if s.method.spec['name'] == 'lora'}
    assert kernels == {f'transformer/h/{i}/attn/attention/q_proj/kernel' for i in (1, 2)}
    assert sum(s.method.spec['name'] == 'daa' for s in sites) == 2
    left = jp.compose(model, params, 'ia3', exclude='k_proj')
    ends = {s.path.rsplit('/', 1)[-1] for s in jp.tree.sites(left, params)}
    assert ends == {'v_proj', 'c_proj'}
    with pytest.raises(ValueError, match=r'layers \[7\] were asked for, the model has 0-3'):
        jp.compose(model, params, 'daa', layers=[1, 7])


def test_an_adapter_kept_in_bfloat16_computes_in_float32(tiny, tokens):
    model, params = tiny
    plan = jp.compose(model, params, 'lora', options={'lora': {'rank': 2}})
    state = toys.moved(jp.init(plan, jax.random.key(0), params), jax.random.key(1), 0.3)
    kept = jp.cast(state, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept.params)} == {jnp.dtype('bfloat16')}
    back = jp.cast(kept, jnp.float32)
    forward = jp.bind(plan, model.apply)
    variables = {'params': params}
    assert toys.worst(forward(kept, variables, tokens), forward(back, variables, tokens)) == 0.0
    assert toys.worst(jp.merge(plan, kept, params), jp.merge(plan, back, params)) == 0.0


def test_what_layers_share_lies_once_and_runs_once_a_forward(tiny, tokens):
    """A shared scale, computed from side input, reaches every adapted layer through `side`."""
    model, params = tiny
    calls = []

    def call(state, _next, features, *, key=None, side=None):
        calls.append(1)
        return features * state.params['w']

    shared = jp.Override(
        {'name': 'doubler'}, lambda key: jp.State({'w': jnp.ones(())}, {}), call, jp.base.no_penalty
    )
    lora = jp.methods.lora(rank=2)

    def apply(state, w, x, *, key=None, side=None):
        y = lora.apply(state, w, x)
        return y if side is None else x @ w + side['size'][..., None] * (y - x @ w)

    method = lora._replace(apply=apply, weight=None)
    plan = {jp.targets(params, ['q_proj', 'v_proj']): method, '~shared/size': shared}
    state = toys.moved(jp.init(plan, jax.random.key(0), params), jax.random.key(1), 0.3)
    assert set(state.params['~shared']['size']) == {'w'}
    forward = jp.bind(plan, model.apply)
    off = forward(state, {'params': params}, tokens, side={'size': jnp.zeros(tokens.shape)})
    assert len(calls) == 1
    assert toys.worst(off, model.apply({'params': params}, tokens)) <= 1e-5
    on = lambda p: forward(
        state._replace(params=p), {'params': params}, tokens, side={'size': jnp.ones(tokens.shape)}
    ).sum()
    assert float(jnp.abs(jax.grad(on)(state.params)['~shared']['size']['w'])) > 0
    assert 'shared' in jp.summary(plan, state, params)
    with pytest.raises(ValueError, match='no merged weight'):
        jp.merge(plan, state, params)


def test_a_tied_embedding_adapts_the_lookup_and_the_head_together(tiny, tokens):
    model, params = tiny
    plan = jp.compose(model, params, 'lora', options={'lora': {'rank': 2}}, targets='wte,q_proj')
    first, moved, state = run(model, params, plan, tokens)
    assert toys.worst(first, model.apply({'params': params}, tokens)) <= 1e-5
    assert state.params['transformer']['wte']['embedding']['a'].shape == (61, 2)
    merged = jp.merge(plan, state, params)
    assert toys.worst(moved, model.apply({'params': merged}, tokens)) <= 1e-4
    wrong = jp.compose(model, params, 'hira', options={'hira': {'rank': 2}}, targets='wte')
    with pytest.raises(ValueError, match='hira has no form for embedding tables; lora has one'):
        run(model, params, wrong, tokens)


def test_scaled_layers_go_by_either_familys_names(tiny):
    model, params = tiny
    for targets in ('o_proj', 'out_proj'):
        plan = jp.compose(model, params, 'ia3', targets=targets)
        assert [pattern.rsplit('/', 1)[-1] for pattern in plan] == ['out_proj']
    every = jp.compose(model, params, 'ia3', targets='all-linear', exclude='mlp/c_fc')
    names = {pattern.rsplit('/', 1)[-1] for pattern in every}
    assert names == {'q_proj', 'k_proj', 'v_proj', 'out_proj', 'c_fc', 'c_proj'} - {'c_fc'}


def test_layerwise_takes_ranks_and_a_method_that_has_them():
    with pytest.raises(ValueError, match='a rank for each layer, got none'):
        jp.layerwise(jp.methods.lora(rank=4), [])
    with pytest.raises(TypeError, match='sparse_mlp is an Override'):
        jp.layerwise(jp.methods.sparse_mlp(dim=8), [1, 2])
