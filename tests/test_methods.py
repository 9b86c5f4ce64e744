"""Options of the methods of a kernel, found by name; and what ties one method to another.

What each of them must hold whatever its options stands in test_contract.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from tests import toys

# Methods of a kernel; overrides need dimensions, and methods of any leaf have no `apply`.
NAMES = [name for name in jp.methods.names() if 'rank' in jp.methods.options(name)]
DTYPES = [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)]


def having(option):
    """The methods that take an option; a new method need not take them all."""
    return [name for name in NAMES if option in jp.methods.options(name)]


def make(name, **options):
    """A method with those of the options that it takes."""
    known = jp.methods.options(name)
    return jp.methods.get(name)(**{k: v for k, v in options.items() if k in known})


@pytest.fixture(scope='module')
def kernel():
    return jax.random.normal(jax.random.key(7), (12, 20)) / 4


def start(name, state, w):
    """The kernel that a method starts from: the base's; KaSA's, by definition, without its tail."""
    if name != 'kasa':
        return w
    return (w.astype(jnp.float32) - state.consts['u'] @ state.consts['vt']).astype(w.dtype)


def side_of(x):
    """What `bind` may hand to every layer: a structure prior for each token of `x [..., n]`."""
    return {'structure': jax.random.normal(jax.random.key(3), (*x.shape[:-1], 32))}


def relative(x, y):
    """The largest difference over the largest value."""
    return toys.worst(x, y) / max(float(jnp.abs(y.astype(jnp.float32)).max()), 1e-9)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(('dtype', 'tolerance'), DTYPES)
def test_one_kernel(name, dtype, tolerance, key, kernel):
    """Identity at init; applied == weight; dtype kept; dtypes of the state; a gradient each."""
    method, w = make(name, rank=4), kernel.astype(dtype)
    x = jax.random.normal(key, (3, 5, 12), dtype)
    state = method.init(key, w)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype('float32')}
    assert relative(method.apply(state, w, x), x @ start(name, state, w)) <= tolerance
    state = toys.moved(state, key, 1.0)
    y = method.apply(state, w, x)
    assert y.dtype == dtype
    assert y.shape == (3, 5, 20)
    # Without its prior, HyLoRADA v2 is v1, which has a weight.
    weight = make('hylorada', rank=4).weight if name == 'hylorada_v2' else method.weight
    whole = x.astype(jnp.float32) @ weight(state, w)
    assert relative(y, whole) <= tolerance
    assert relative(y, x @ w) > 10 * tolerance
    loss = lambda p: jnp.mean(
        method.apply(jp.State(p, state.consts), w, x, side=side_of(x)).astype(jnp.float32) ** 2
    )
    for leaf in jax.tree.leaves(jax.grad(loss)(state.params)):
        assert bool(jnp.isfinite(leaf).all())
        assert bool(jnp.abs(leaf).max() > 0)


@pytest.mark.parametrize('name', having('rank'))
def test_a_rank_that_does_not_fit_is_refused_with_the_nearest(name, key, kernel):
    limit = 11 if name == 'kasa' else 12  # KaSA must leave one singular triplet
    for rank, nearest in ((0, 1), (13, limit), (2.5, 3)):
        message = rf'{name}: rank must be .* in \[1, {limit}\].*got rank={rank}.* is {nearest}$'
        with pytest.raises(ValueError, match=message):
            jp.methods.get(name)(rank=rank).init(key, kernel)
    if name == 'kasa':
        with pytest.raises(ValueError, match=r'\(1, 5\) holds no rank'):
            jp.methods.kasa(rank=1).init(key, kernel[:1, :5])


@pytest.mark.parametrize('name', having('dropout'))
def test_a_dropout_of_one_is_refused(name):
    with pytest.raises(ValueError, match='dropout'):
        jp.methods.get(name)(dropout=1.0)


@pytest.mark.parametrize('name', having('init_ab'))
def test_bad_options_of_the_factors_are_refused(name):
    factory = jp.methods.get(name)
    with pytest.raises(ValueError, match=r'kaimin.*nearest: kaiming'):
        factory(init_ab='kaimin,zero')
    with pytest.raises(ValueError, match='neither factor'):
        factory(init_ab='zero,zero')
    with pytest.raises(ValueError, match='freezes the zero factor'):
        factory(init_ab='kaiming,zero', train_ab='yn')
    with pytest.raises(ValueError, match='train_ab'):
        factory(train_ab='nn')


@pytest.mark.parametrize('name', having('train_ab'))
def test_a_frozen_factor_is_a_constant(name, key, kernel):
    method = make(name, rank=4, init_ab='zero,kaiming', train_ab='yn')
    state = method.init(key, kernel)
    assert 'b' in state.consts
    assert 'b' not in state.params
    x = jnp.ones((2, 12))
    assert relative(method.apply(state, kernel, x), x @ start(name, state, kernel)) <= 1e-5
    grads = jax.grad(lambda p: method.apply(jp.State(p, state.consts), kernel, x).sum())(
        state.params
    )
    assert bool(jnp.abs(grads['a']).max() > 0)


@pytest.mark.parametrize('name', having('dropout'))
def test_dropout_acts_on_the_update_only_and_keeps_its_mean(name, key, kernel):
    method = make(name, rank=4, dropout=0.3)
    state = toys.moved(method.init(key, kernel), key, 0.3)
    x = jax.random.normal(key, (2, 12))
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = jax.jit(jax.vmap(lambda k: method.apply(state, kernel, x, key=k)))(keys)
    whole = method.apply(state, kernel, x)
    assert relative(drawn.mean(0), whole) < 0.05
    assert float(drawn.std(0).max()) > 0.01
    fresh = method.init(key, kernel)  # at init the update is zero, dropped or not
    fresh_y = method.apply(fresh, kernel, x, key=keys[0])
    assert relative(fresh_y, x @ start(name, fresh, kernel)) <= 1e-5


@pytest.mark.parametrize('name', NAMES)
def test_spec_rebuilds_the_method(name):
    method = make(name, rank=3, dropout=0.1)
    assert jp.methods.rebuild(method.spec).spec == method.spec


def test_names_and_their_errors():
    assert {'hira', 'knowhira', 'lora'} <= set(NAMES)
    assert all(getattr(jp.methods, name) is jp.methods.get(name) for name in NAMES)
    assert jp.methods.defaults('knowhira') == ['q_proj', 'k_proj', 'v_proj', 'o_proj']
    with pytest.raises(ValueError, match="'knowhiro'; nearest: knowhira"):
        jp.methods.get('knowhiro')


def _set(state, **leaves):
    return state._replace(params={**state.params, **leaves})


def test_lora_scale_is_alpha_over_r_or_its_root(key, kernel):
    a, b = jnp.ones((12, 4)), jnp.ones((4, 20))
    for rslora, scale in ((False, 16 / 4), (True, 16 / 2)):
        method = jp.methods.lora(rank=4, alpha=16, rslora=rslora)
        state = _set(method.init(key, kernel), a=a, b=b)
        np.testing.assert_allclose(
            method.weight(state, kernel), kernel + scale * (a @ b), rtol=1e-5
        )


def test_hira_on_ones_is_lora_with_scale_one(key):
    ones, x = jnp.ones((12, 20)), jax.random.normal(key, (3, 12))
    lora, hira = jp.methods.lora(rank=4, alpha=4), jp.methods.hira(rank=4)
    state = toys.moved(lora.init(key, ones), key)
    assert relative(hira.apply(state, ones, x), lora.apply(state, ones, x)) <= 1e-5


def test_knowhira_with_unit_gamma_and_alpha_one_is_hira(key, kernel):
    knowhira = jp.methods.knowhira(rank=4, knowledge_alpha=1.0, adaptive_gating=False)
    state = toys.moved(knowhira.init(key, kernel), key)
    state = state._replace(consts={'sigma': jnp.ones(4)})
    hira, x = jp.methods.hira(rank=4), jax.random.normal(key, (3, 12))
    assert relative(knowhira.apply(state, kernel, x), hira.apply(state, kernel, x)) <= 1e-5


def test_knowhira_is_its_equation(key, kernel):
    """W o (1 + alpha A diag(sigma o sigmoid(g)) B), written out with numpy's SVD."""
    method = jp.methods.knowhira(rank=4, knowledge_alpha=0.7)
    state = toys.moved(method.init(key, kernel), key, 0.5)
    w, p = np.asarray(kernel), {k: np.asarray(v) for k, v in state.params.items()}
    sigma = np.linalg.svd(w, compute_uv=False)
    gamma = sigma[:4] / sigma[0] / (1 + np.exp(-p['gate']))
    want = w * (1 + 0.7 * p['a'] @ np.diag(gamma) @ p['b'])
    np.testing.assert_allclose(method.weight(state, kernel), want, rtol=1e-4, atol=1e-6)


def test_knowhira_without_gates_trains_no_more_than_hira(key, kernel):
    state = jp.methods.knowhira(rank=4, adaptive_gating=False).init(key, kernel)
    assert jp.count(state) == jp.count(jp.methods.hira(rank=4).init(key, kernel)) == 4 * (12 + 20)


@pytest.mark.parametrize('form', ['plain', 'scan'])
def test_sigma_is_of_the_real_kernel_of_each_layer(form, key):
    _, params, _, state, _ = toys.setup(form, jp.methods.knowhira(rank=4), key)
    layers = params['layers']['up'] if form == 'scan' else None
    kernels = layers['kernel'] if layers else jnp.stack([
        params[f'block_{i}']['up']['kernel'] for i in range(3)
    ])  # fmt: skip
    got = state.consts['layers']['up']['kernel']['sigma'] if layers else jnp.stack([
        state.consts[f'block_{i}']['up']['kernel']['sigma'] for i in range(3)
    ])  # fmt: skip
    values = np.linalg.svd(np.asarray(kernels), compute_uv=False)[:, :4]
    np.testing.assert_allclose(got, values / values[:, :1], rtol=1e-5)


def test_knowhira_pads_ranks_beyond_the_ratio_with_the_last_value(key, kernel):
    state = jp.methods.knowhira(rank=6, svd_rank_ratio=0.25).init(key, kernel)
    sigma = np.linalg.svd(np.asarray(kernel), compute_uv=False)
    want = np.r_[sigma[:3], [sigma[2]] * 3] / sigma[0]
    np.testing.assert_allclose(state.consts['sigma'], want, rtol=1e-5)
    assert state.params['gate'].shape == (6,)


def test_knowhira_starts_a_by_the_spectrum_and_its_scale_is_not_capped(key, kernel):
    hira = jp.methods.knowhira(rank=4, spectrum_init_scale=0).init(key, kernel)
    for scale in (0.1, 1.0):
        state = jp.methods.knowhira(rank=4, spectrum_init_scale=scale).init(key, kernel)
        factor = scale * (0.1 + 0.9 * state.consts['sigma'])
        np.testing.assert_allclose(state.params['a'], hira.params['a'] * factor[None, :], rtol=1e-5)
    assert float(jnp.abs(hira.params['a']).max()) <= 1 / np.sqrt(12)


@pytest.mark.parametrize('mode', ['reference', 'paper'])
def test_knowhira_penalty_is_its_formula(mode, key, kernel):
    method = jp.methods.knowhira(rank=4, ortho_lambda=0.5, ortho_mode=mode)
    state = toys.moved(method.init(key, kernel), key, 0.5)
    a, b = np.asarray(state.params['a']), np.asarray(state.params['b'])
    gap = lambda g: np.sum((g - np.eye(4)) ** 2)
    parts = gap(a.T @ a), gap(b @ b.T)
    want = 0.5 * sum(parts) if mode == 'paper' else 0.5 * (0.5 * parts[0] + 0.1 * parts[1]) / 16
    np.testing.assert_allclose(method.penalty(state, kernel), want, rtol=1e-5)


def test_penalty_sums_over_layers_of_a_stack(key):
    method = jp.methods.knowhira(rank=2, ortho_lambda=1.0)
    _, params, plan, state, _ = toys.setup('scan', method, key)
    total = 0.0
    for path in (
        'layers/up/kernel',
        'layers/down/kernel',
        'layers/heads/kernel',
        'layers/out/kernel',
    ):
        leaves = jp.paths.get(state.params, path)
        total += sum(
            float(method.penalty(jp.State(jax.tree.map(lambda p, i=i: p[i], leaves), {}), None))
            for i in range(3)
        )
    total += float(method.penalty(jp.State(jp.paths.get(state.params, 'head/kernel'), {}), None))
    np.testing.assert_allclose(jp.penalty(plan, state, params), total, rtol=1e-5)
