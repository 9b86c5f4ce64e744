"""LoRA: its equation in float64, its starts, embedding tables, and PEFT's layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from jaxpeft import linalg
from tests import oracles
from tests.oracles import float64, started

N, M, R = 12, 20, 4
STARTS = ('orthogonal', 'pissa', 'olora')


@pytest.fixture(scope='module')
def kernel():
    return jax.random.normal(jax.random.key(7), (N, M)) / 4


@pytest.fixture(scope='module')
def x():
    return jax.random.normal(jax.random.key(8), (2, 3, N))


def top(w, rank):
    """The best rank-`rank` part of W."""
    return oracles.triplets(w, slice(rank))


def through_qr(w, rank):
    """`(Q_r R_r)^T` with `W^T = Q R`: what OLoRA starts from."""
    q, r = np.linalg.qr(np.asarray(w, np.float64).T)
    return (q[:, :rank] @ r[:rank]).T


@pytest.mark.parametrize('init', ['default', *STARTS])
@pytest.mark.parametrize('rslora', [False, True])
def test_is_its_equation(init, rslora, kernel, x):
    """`W + s A B`, less the part of W that the start took out."""
    method = jp.methods.lora(rank=R, alpha=6, rslora=rslora, init=init)
    state, s = started(method, kernel), 6 / 2 if rslora else 6 / 4
    taken = {'pissa': top(kernel, R), 'olora': s * through_qr(kernel, R)}.get(init, 0.0)
    p, w = float64(state.params), float64(kernel)
    want = w + s * p['a'] @ p['b'] - taken
    np.testing.assert_allclose(method.weight(state, kernel), want, atol=1e-5)
    np.testing.assert_allclose(method.apply(state, kernel, x), float64(x) @ want, atol=3e-5)


@pytest.mark.parametrize('shape', [(12, 20), (20, 12)])
@pytest.mark.parametrize('init', STARTS)
def test_every_start_is_the_base_and_has_no_zero_factor(init, shape):
    w = jax.random.normal(jax.random.key(2), shape)
    x = jax.random.normal(jax.random.key(3), (5, shape[0]))
    method = jp.methods.lora(rank=R, init=init, dropout=0.3)
    state = method.init(jax.random.key(0), w)
    assert min(float(jnp.abs(leaf).max()) for leaf in state.params.values()) > 0.01
    np.testing.assert_allclose(method.weight(state, w), w, atol=1e-5)
    np.testing.assert_allclose(method.apply(state, w, x), x @ w, atol=1e-5)
    dropped = method.apply(state, w, x, key=jax.random.key(4))
    np.testing.assert_allclose(dropped, x @ w, atol=2e-5)
    assert set(state.consts) == (set() if init == 'orthogonal' else {'u', 'vt'})


def test_pissa_starts_at_the_top_part_with_the_scale_divided_out(kernel):
    state = jp.methods.lora(rank=R, alpha=6, init='pissa').init(jax.random.key(0), kernel)
    product = float64(state.params['a']) @ float64(state.params['b'])
    np.testing.assert_allclose(1.5 * product, top(kernel, R), atol=1e-6)
    np.testing.assert_allclose(
        float64(state.consts['u']) @ float64(state.consts['vt']), top(kernel, R), atol=1e-6
    )
    # sqrt(S / s) on either side.
    np.testing.assert_allclose(
        jnp.linalg.norm(state.params['a'], axis=0), jnp.linalg.norm(state.params['b'], axis=1),
        rtol=1e-5,
    )  # fmt: skip


def test_the_vectors_of_a_large_kernel_come_from_a_krylov_space():
    """The product of the top 4 triplets to 1e-3 of |W|; a wide kernel takes its transpose."""
    rng = np.random.default_rng(0)
    values = (1.0 + np.arange(500)) ** -0.7
    left = np.linalg.qr(rng.standard_normal((500, 500)))[0]
    right = np.linalg.qr(rng.standard_normal((600, 500)))[0]
    w = jnp.asarray((left * values) @ right.T, jnp.float32)
    find = functools.partial(linalg.top_singular_triplets, k=4, method='randomized')
    u, s, vt = float64(jax.jit(find)(w))
    np.testing.assert_allclose(s, values[:4], rtol=1e-4)
    assert np.linalg.norm((u * s) @ vt - (left[:, :4] * values[:4]) @ right[:, :4].T, 2) < 1e-3
    np.testing.assert_allclose(u.T @ u, np.eye(4), atol=1e-4)
    np.testing.assert_allclose(vt @ vt.T, np.eye(4), atol=1e-4)


@pytest.mark.parametrize(('k', 'method'), [(0, 'auto'), (13, 'auto'), (2, 'lanczos')])
def test_bad_arguments_of_the_triplets_are_named(k, method, kernel):
    with pytest.raises(ValueError, match=str(k) if method == 'auto' else 'exact, randomized'):
        linalg.top_singular_triplets(kernel, k, method=method)


def test_bad_starts_are_refused():
    lora = jp.methods.lora
    with pytest.raises(ValueError, match=r"'pisa'; nearest: pissa"):
        lora(init='pisa')
    with pytest.raises(ValueError, match='give one of the two'):
        lora(init='pissa', init_ab='gaussian,zero')
    with pytest.raises(ValueError, match=r'even one, got rank=3; the nearest valid choice is 4'):
        lora(rank=3, init='orthogonal')
    with pytest.raises(ValueError, match='train_ab'):
        lora(init='pissa', train_ab='nn')
    with pytest.raises(ValueError, match='divides by the update'):
        lora(rank=2, alpha=0, init='pissa').init(jax.random.key(0), jnp.eye(4))


@pytest.mark.parametrize('init', STARTS)
def test_either_factor_of_a_start_can_be_frozen(init, kernel, x):
    """Neither is zero, so that `train_ab='yn'`, which the default start refuses, trains."""
    method = jp.methods.lora(rank=R, init=init, train_ab='yn')
    state = method.init(jax.random.key(0), kernel)
    assert set(state.params) == {'a'}
    np.testing.assert_allclose(method.apply(state, kernel, x), x @ kernel, atol=1e-5)


def test_specs_of_the_starts_rebuild_them():
    for init in STARTS:
        spec = jp.methods.lora(rank=R, init=init).spec
        assert jp.methods.rebuild(spec).spec == spec
    old = {k: v for k, v in spec.items() if k != 'init'}  # of an adapter saved before the option
    assert jp.methods.rebuild(old).spec['init'] == 'default'


def test_gaussian_start_is_pefts_spread():
    w = jnp.ones((600, 8))
    state = jp.methods.lora(rank=R, init_ab='gaussian,zero').init(jax.random.key(0), w)
    np.testing.assert_allclose(jnp.std(state.params['a']), 1 / R, rtol=0.05)


@pytest.mark.parametrize('init', ['default', 'pissa'])
def test_embedding_tables_look_up_and_attend_as_their_weight_would(init):
    table = jax.random.normal(jax.random.key(2), (30, 10))
    method = jp.methods.lora(rank=R, init=init)
    state = started(method, table)
    change = float64(method.weight(state, table)) - float64(table)
    ids = jnp.array([[3, 29, 0], [7, 7, 1]])
    np.testing.assert_allclose(method.lookup(state, table, ids), change[ids], atol=2e-6)
    h = jax.random.normal(jax.random.key(3), (2, 3, 10))
    np.testing.assert_allclose(method.attend(state, table, h), float64(h) @ change.T, atol=2e-5)
    bf16 = method.attend(state, table, h.astype(jnp.bfloat16))
    assert bf16.dtype == method.lookup(state, table.astype(jnp.bfloat16), ids).dtype == jnp.float32


def test_bfloat16_base_keeps_a_small_update():
    """2^-9 of W is lost when added to W in bfloat16, or to an output rounded before the sum."""
    w = jnp.ones((N, M), jnp.bfloat16)
    method = jp.methods.lora(rank=1, alpha=1)
    state = method.init(jax.random.key(0), w)
    state = state._replace(params={'a': jnp.full((N, 1), 0.0625), 'b': jnp.full((1, M), 2.0**-5)})
    assert bool((method.weight(state, w).astype(jnp.bfloat16) == w).all())
    rows = jax.random.normal(jax.random.key(5), (4096, N)).astype(jnp.bfloat16)
    wanted = rows.astype(jnp.float32) @ jnp.full((N, M), 2.0**-9)
    moved = method.apply(state, w, rows).astype(jnp.float32) - (rows @ w).astype(jnp.float32)
    seen = jnp.sum(moved * wanted) / jnp.sum(wanted**2)
    assert abs(float(seen) - 1.0) < 0.05


def test_a_layers_own_scale_replaces_the_methods(kernel, x):
    method = jp.methods.lora(rank=R)
    state = started(method, kernel)
    other = state._replace(consts={'scale': jnp.float32(0.5)})
    want = float64(kernel) + 0.5 * float64(state.params['a']) @ float64(state.params['b'])
    np.testing.assert_allclose(method.weight(other, kernel), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(method.apply(other, kernel, x), float64(x) @ want, atol=1e-5)


@pytest.mark.filterwarnings('ignore')  # peft's own
@pytest.mark.parametrize('rslora', [False, True])
@pytest.mark.parametrize('init', ['default', 'pissa', 'olora'])
def test_is_pefts_layer(init, rslora, kernel, x):
    """Same starting product (the vectors' signs are free), then the same outputs and gradients."""
    method = jp.methods.lora(rank=R, alpha=6, rslora=rslora, init=init)
    state, s = started(method, kernel), 6 / 2 if rslora else 6 / 4
    theirs = {'init_lora_weights': True if init == 'default' else init}
    layer = oracles.wrap(kernel, r=R, lora_alpha=6, use_rslora=rslora, **theirs)
    if init != 'default':
        start = oracles.read(layer)
        product = float64(state.consts['u']) @ float64(state.consts['vt'])
        np.testing.assert_allclose(s * start['a'] @ start['b'], product, atol=2e-6)
    oracles.write(layer, state.params)
    want, want_grads = oracles.value_and_grads(layer, x)
    apply = lambda p: method.apply(jp.State(p, state.consts), kernel, x)
    np.testing.assert_allclose(apply(state.params), want, atol=2e-5)
    grads = jax.grad(lambda p: jnp.sum(jnp.sin(apply(p))))(state.params)
    assert set(grads) == set(want_grads) == {'a', 'b'}
    for name, want in want_grads.items():
        np.testing.assert_allclose(grads[name], want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.filterwarnings('ignore')
def test_orthogonal_start_has_pefts_form_and_spread():
    """The two programs draw other numbers: the spread of A and B and `A B = 0` tie them."""
    w = jnp.ones((1500, 2000))
    ours = float64(jp.methods.lora(rank=8, init='orthogonal').init(jax.random.key(0), w).params)
    theirs = oracles.read(oracles.wrap(w, r=8, init_lora_weights='orthogonal'))
    for name in ('a', 'b'):
        np.testing.assert_allclose(ours[name].std(), theirs[name].std(), rtol=0.05)
        np.testing.assert_allclose(ours[name].std(), np.sqrt(1 / 200), rtol=0.05)
        assert np.linalg.matrix_rank(ours[name], tol=1e-5) == 4
    for one in (ours, theirs):
        np.testing.assert_allclose(one['a'] @ one['b'], 0.0, atol=1e-6)


@pytest.mark.filterwarnings('ignore')
def test_is_pefts_embedding():
    table = jax.random.normal(jax.random.key(2), (30, 10))
    method = jp.methods.lora(rank=R, alpha=6)
    state = started(method, table)
    layer = oracles.wrap(table, layer='embedding', r=R, lora_alpha=6)
    start = oracles.read(layer)
    assert not start['a'].any()  # PEFT's zero factor is the other one here
    assert abs(start['b'].std() - 1.0) < 0.3
    oracles.write(layer, state.params)
    ids = jnp.array([[3, 29, 0], [7, 7, 1]])
    want, _ = oracles.value_and_grads(layer, ids)
    np.testing.assert_allclose(table[ids] + method.lookup(state, table, ids), want, atol=1e-5)


@pytest.mark.parametrize('init', ['default', 'pissa'])
def test_golden_numbers(init):
    """A kernel and leaves by formula; the numbers are numpy's, in float64, of the equation."""
    method = jp.methods.lora(rank=2, alpha=3, init=init)
    want = {
        'default': [[-1.692663, -0.908437, 0.317344, 0.952456],
                    [1.176436, -0.352852, 0.324624, -0.588398]],
        'pissa': [[-0.276682, -0.018148, -0.118750, 0.030847],
                  [0.803388, -0.455553, 0.089853, 0.089208]],
    }[init]  # fmt: skip
    np.testing.assert_allclose(oracles.golden(method), want, atol=1.5e-6)


def test_counts_of_qwen2_are_the_closed_formula():
    """r (n + m) a kernel: q and v of Qwen2-0.5B, rank 8; PiSSA's constants are not counted."""
    params = jp.models.param_shapes(jp.models.build(jp.models.config_of('Qwen/Qwen2-0.5B')))
    for init in ('default', 'pissa'):
        plan = {jp.targets(params, ['q_proj', 'v_proj']): jp.methods.lora(rank=8, init=init)}
        state = jax.eval_shape(functools.partial(jp.init, plan), jax.random.key(0), params)
        assert jp.count(state) == 540_672
