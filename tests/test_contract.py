"""The contract that every kernel method keeps, found by name, on every kind of layer and dtype.

A cell is a method x {Dense, DenseGeneral, scanned} x {float32, bfloat16 base}. One compiled
program a cell answers all its questions; the tests below read its answers.
"""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxpeft as jp
from tests import models_tiny, overrides_tiny, toys

KERNEL = [n for n in jp.methods.names() if 'rank' in jp.methods.options(n)]
FORMS = ('dense', 'heads', 'scan')
DTYPES = {'float32': 1e-5, 'bfloat16': 1e-2}  # what equal means
RANK = 3
NOT_IDENTITY = ('kasa',)  # it starts without the tail that it replaces: by definition
QWEN, LLAMA = 'Qwen/Qwen2-0.5B', 'meta-llama/Meta-Llama-3-8B'
QKVO, FIVE = 'q_proj,k_proj,v_proj,o_proj', 'q_proj,k_proj,v_proj,up_proj,down_proj'
DIFFERENT = {  # r (n + m) and what a method has beside it
    'lora': lambda n, m, r: 0,
    'hira': lambda n, m, r: 0,
    'knowhira': lambda n, m, r: r,
    'kasa': lambda n, m, r: r,
    'dora': lambda n, m, r: m,
    'hylorada': lambda n, m, r: m + 2,
    'hylorada_v2': lambda n, m, r: m + 2 + 32,
}


class Dense(nn.Module):
    """Two Dense layers."""

    dtype: object

    @nn.compact
    def __call__(self, x):
        kwargs = {'dtype': self.dtype, 'param_dtype': self.dtype}
        y = nn.tanh(nn.Dense(20, name='up', **kwargs)(x))
        return x + nn.Dense(16, use_bias=False, name='down', **kwargs)(y)


class Heads(nn.Module):
    """DenseGeneral to heads and back."""

    dtype: object

    @nn.compact
    def __call__(self, x):
        kwargs = {'dtype': self.dtype, 'param_dtype': self.dtype}
        y = nn.tanh(nn.DenseGeneral((4, 5), name='heads', **kwargs)(x))
        return x + nn.DenseGeneral(16, axis=(-2, -1), name='out', **kwargs)(y)


class Stack(nn.Module):
    """Three scanned pairs of Dense layers."""

    dtype: object

    @nn.compact
    def __call__(self, x):
        body = lambda mdl, x, _: (mdl(x), None)
        loop = nn.scan(body, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)
        return loop(Dense(self.dtype, name='layers'), x, None)[0]


def make(name, **options):
    """The method at the suite's rank, with the whole gradient: no norm detached."""
    exact = {'detach': False} if 'detach' in jp.methods.options(name) else {}
    return jp.methods.get(name)(rank=RANK, **(exact | options))


MODELS = {'dense': Dense, 'heads': Heads, 'scan': Stack}


def plan_of(form, method):
    if form == 'heads':
        return {'heads/kernel': jp.on(method, 'i (h d)'), 'out/kernel': jp.on(method, '(h d) o')}
    return {r'(?:.*/)?(up|down)/kernel': method}


def side_of(x):
    """What `bind` may hand to every layer: a structure prior for each token."""
    return {'structure': jax.random.normal(jax.random.key(3), (*x.shape[:-1], 32))}


def directional(loss, params, step=3e-3):
    """(gradient . v, difference quotient along v) for v the gradient, and for a random half of it.

    Along its own direction no sum cancels, so one float32 step of fair size tells.
    """
    grad = jax.grad(loss)(params)
    leaves, treedef = jax.tree.flatten(grad)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    halves = [jnp.where(jax.random.bernoulli(k, shape=g.shape), g, jnp.zeros_like(g))
              for k, g in zip(keys, leaves, strict=True)]  # fmt: skip
    for v in (grad, jax.tree.unflatten(treedef, halves)):
        size = jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(v)))
        v = jax.tree.map(lambda x, size=size: x / size, v)
        slope = sum(jnp.vdot(g, d) for g, d in zip(leaves, jax.tree.leaves(v), strict=True))
        ahead = jax.tree.map(lambda p, d: p + step * d, params, v)
        behind = jax.tree.map(lambda p, d: p - step * d, params, v)
        yield slope, (loss(ahead) - loss(behind)) / (2 * step)


@functools.cache
def cell(name, form, dtype):
    """Everything that one compiled program says about a cell, as a dict of arrays."""
    model = MODELS[form](jnp.dtype(dtype))
    x = jax.random.normal(jax.random.key(1), (2, 5, 16), dtype)
    params = jax.tree.map(
        lambda s: (0.3 * jax.random.normal(jax.random.key(2), s.shape)).astype(s.dtype),
        jax.eval_shape(model.init, jax.random.key(0), x)['params'],
    )
    method = make(name)
    plan = plan_of(form, method)
    state = jp.init(plan, jax.random.key(0), params)
    moved = toys.moved(state, jax.random.key(4), 0.3)
    forward = jp.bind(plan, model.apply)

    def answers(state, moved, params, x):
        bound = lambda s, **kw: forward(s, {'params': params}, x, **kw).astype(jnp.float32)
        side = side_of(x)
        loss = lambda p, s: jnp.mean((bound(s._replace(params=p), side=side) - 1.0) ** 2)
        grads, p = [], state.params
        for _ in range(3):
            grads.append(jax.grad(loss)(p, state))
            p = jax.tree.map(lambda x, g: x - 0.1 * jnp.sign(g), p, grads[-1])
        slopes, quotients = zip(*directional(lambda p: loss(p, moved), moved.params), strict=True)
        found = {
            'base': model.apply({'params': params}, x).astype(jnp.float32),
            'start': bound(state),
            'moved': bound(moved),
            'grads': grads,
            'slopes': slopes,
            'quotients': quotients,
            'penalty': jp.penalty(plan, moved, params),
        }  # fmt: skip
        if method.weight is not None:
            merged = jp.merge(plan, moved, params)
            found['merged'] = model.clone(dtype=jnp.float32).apply(
                {'params': jax.tree.map(lambda w: w.astype(jnp.float32), merged)},
                x.astype(jnp.float32),
            )
        return found

    program = models_tiny.jit(answers)
    found = program(state, moved, params, x)
    program(moved, state, params, x)
    kept = {'program': program, 'plan': plan, 'state': state, 'params': params, 'model': model}
    return jax.device_get(found) | kept


def close(x, y, tolerance):
    scale = max(float(np.abs(y).max()), 1e-6)
    return float(np.abs(np.asarray(x) - np.asarray(y)).max()) <= tolerance * scale


cells = pytest.mark.parametrize(
    ('name', 'form', 'dtype'), [(n, f, d) for n in KERNEL for f in FORMS for d in DTYPES]
)


def test_every_method_is_held_to_a_contract():
    """This one, the overrides' (tests/overrides_tiny.py), or that of leaves (test_core_plans)."""
    covered = [*KERNEL, *overrides_tiny.NAMES, 'full']
    assert sorted(covered) == jp.methods.names()
    assert set(DIFFERENT) == set(KERNEL)
    assert overrides_tiny.NAMES == tuple(overrides_tiny.OPTIONS) == tuple(overrides_tiny.SITES)


@cells
def test_a_fresh_adapter_is_the_base_and_a_moved_one_is_its_merged_weight(name, form, dtype):
    found, tolerance = cell(name, form, dtype), DTYPES[dtype]
    if name not in NOT_IDENTITY:
        assert close(found['start'], found['base'], tolerance)
    else:
        assert not close(found['start'], found['base'], tolerance)
    assert not close(found['moved'], found['base'], 2 * tolerance)
    if 'merged' in found:  # a bfloat16 model rounds every activation, the merged one here none
        assert close(found['moved'], found['merged'], tolerance * (1 if dtype == 'float32' else 3))
    assert found['program']._cache_size() == 1


@cells
def test_every_leaf_gets_a_finite_gradient_within_three_steps(name, form, dtype):
    found = cell(name, form, dtype)
    seen = jax.tree.map(lambda *g: sum(np.abs(x) for x in g), *found['grads'])
    for path, leaf in jp.paths.flatten(seen):
        assert np.isfinite(leaf).all(), path
        assert (leaf > 0).any(), path
    trained = {path for path, _ in jp.paths.flatten(found['state'].params)}
    assert trained == {path for path, _ in jp.paths.flatten(seen)}
    assert not trained & {path for path, _ in jp.paths.flatten(found['state'].consts)}


@pytest.mark.parametrize(('name', 'form'), [(n, f) for n in KERNEL for f in FORMS])
def test_the_gradient_is_that_of_finite_differences(name, form):
    """float32 only: with a bfloat16 base the quotient is rounding noise."""
    found = cell(name, form, 'float32')
    assert np.isfinite(found['penalty'])
    for slope, quotient in zip(found['slopes'], found['quotients'], strict=True):
        assert slope > 0
        assert close(quotient, slope, 1e-2)


@pytest.mark.parametrize('name', KERNEL)
def test_one_key_gives_one_state_and_other_paths_other_draws(name):
    found = cell(name, 'dense', 'float32')
    again = jp.init(found['plan'], jax.random.key(0), found['params'])
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found['state'], again))
    square = {'x': jnp.ones((6, 6)), 'y': jnp.ones((6, 6))}
    state = jp.init({'x|y': make(name)}, jax.random.key(0), square)
    assert not bool((state.params['x']['a'] == state.params['y']['a']).all())


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', KERNEL)
def test_saved_is_loaded_and_the_file_holds_no_base_weight(name, form, tmp_path):
    found = cell(name, form, 'float32')
    moved = toys.moved(found['state'], jax.random.key(4), 0.3)
    jp.save_adapter(tmp_path / 'a', found['plan'], moved, found['params'])
    _, loaded = jp.load_adapter(tmp_path / 'a', found['params'])
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), moved, loaded))
    kernels = {k.size for path, k in jp.paths.flatten(found['params']) if path.endswith('kernel')}
    tensors = safetensors.numpy.load_file(tmp_path / 'a' / 'adapter_model.safetensors')
    assert not kernels & {tensor.size for tensor in tensors.values()}
    assert (
        json.loads((tmp_path / 'a' / 'adapter.json').read_text())['rules'][0]['spec']['name']
        == name
    )


@pytest.mark.parametrize('name', KERNEL)
def test_a_kernel_of_zeros_gives_numbers(name):
    """Layers that start at zero are common, and have neither norms nor a spectrum."""
    w, x = jnp.zeros((6, 4)), jax.random.normal(jax.random.key(1), (3, 6))
    method = make(name)
    state = method.init(jax.random.key(0), w)
    side = side_of(x)

    def loss(params):
        y = method.apply(jp.State(params, state.consts), w, x, side=side)
        return jnp.sum((y - 1.0) ** 2)

    value, grads = jax.value_and_grad(loss)(state.params)
    for leaf in jax.tree.leaves((state, value, grads)):
        assert jnp.isfinite(leaf).all()


@pytest.mark.parametrize('name', KERNEL)
def test_counts_are_the_closed_formula(name):
    """r (n + m) a kernel and the method's own, on the shapes of real models; no memory."""
    extra = DIFFERENT[name]
    for model_name, names, rank in ((QWEN, QKVO, 8), (LLAMA, FIVE, 32)):
        config = jp.models.config_of(model_name)
        params = jp.models.param_shapes(jp.models.build(config))
        at = jp.targets(params, names)
        plan = {at: jp.methods.get(name)(rank=rank)}
        state = jax.eval_shape(functools.partial(jp.init, plan), jax.random.key(0), params)
        want = 0
        for site in jp.tree.sites(plan, params):
            layers, n, m = jp.paths.get(params, site.path).shape
            want += layers * (rank * (n + m) + extra(n, m, rank))
        assert jp.count(state) == want


PUBLISHED = [  # facts sheets: hylorada.md section 5, knowhira.md sections 3.4 and 6
    ('lora', QWEN, 'q_proj,v_proj', 8, 540_672),
    ('lora', QWEN, QKVO, 8, 1_081_344),
    ('dora', QWEN, QKVO, 8, 1_130_496),
    ('hylorada', QWEN, QKVO, 16, 2_212_032),
    ('hylorada', QWEN, QKVO, 8, 1_130_688),
    ('hylorada_v2', QWEN, QKVO, 16, 2_212_032 + 3_072),
    ('hira', LLAMA, FIVE, 32, 56_623_104),
    ('knowhira', LLAMA, FIVE, 32, 56_628_224),
    ('kasa', LLAMA, FIVE, 32, 56_628_224),
]


@pytest.mark.parametrize(('name', 'model_name', 'names', 'rank', 'count'), PUBLISHED)
def test_counts_are_the_published_ones(name, model_name, names, rank, count):
    params = jp.models.param_shapes(jp.models.build(jp.models.config_of(model_name)))
    plan = {jp.targets(params, names): jp.methods.get(name)(rank=rank)}
    state = jax.eval_shape(functools.partial(jp.init, plan), jax.random.key(0), params)
    assert jp.count(state) == count


@pytest.mark.parametrize('name', KERNEL)
def test_sharded_is_single(name):
    """The scanned cell on a 4 x 2 mesh of CPU devices: born sharded, the same numbers."""
    from jax.sharding import NamedSharding, PartitionSpec

    found = cell(name, 'scan', 'float32')
    mesh = jax.make_mesh((4, 2), ('fsdp', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = lambda w: PartitionSpec(*((None, 'fsdp', 'tensor') if w.ndim == 3 else ()))
    layout = jax.tree.map(lambda w: NamedSharding(mesh, spec(w)), found['params'])
    params = jax.device_put(found['params'], layout)
    start = functools.partial(jp.init, found['plan'])
    shapes = jax.eval_shape(start, jax.random.key(0), params)
    placed = jp.shardings(found['plan'], shapes, layout)
    # Blocked each time: with more devices than cores two programs in flight can lock up.
    state = jax.block_until_ready(jax.jit(start, out_shardings=placed)(jax.random.key(0), params))
    moved = jax.block_until_ready(toys.moved(state, jax.random.key(4), 0.3))
    moved = jax.block_until_ready(jax.device_put(moved, placed))
    a = moved.params['layers']['up']['kernel']['a']
    assert a.sharding.spec[1] == 'fsdp'
    x = jax.random.normal(jax.random.key(1), (2, 5, 16))
    forward = models_tiny.jit(jp.bind(found['plan'], found['model'].apply))
    out = jax.block_until_ready(forward(moved, {'params': params}, x))
    assert close(out, found['moved'], 1e-4)


@pytest.mark.parametrize('name', KERNEL)
def test_future_tokens_and_padding_change_nothing_earlier(name):
    """In a decoder with grouped queries, whatever the adapter."""
    model = jp.models.build(models_tiny.config('qwen2'))
    params = jax.tree.map(jnp.asarray, models_tiny.random_params(model))
    plan = {jp.targets(params, 'q_proj,k_proj,down_proj'): jp.methods.get(name)(rank=RANK)}
    state = toys.moved(jp.init(plan, jax.random.key(0), params), jax.random.key(4), 0.1)
    forward = models_tiny.jit(jp.bind(plan, model.apply))
    tokens = jnp.asarray(models_tiny.tokens(2, 8))
    plain = forward(state, {'params': params}, tokens, segment_ids=jnp.ones_like(tokens))
    changed = tokens.at[:, 5:].set((tokens[:, 5:] + 7) % 61)
    other = forward(state, {'params': params}, changed, segment_ids=jnp.ones_like(tokens))
    assert close(other[:, :5], plain[:, :5], 1e-5)
    assert not close(other[:, 5:], plain[:, 5:], 1e-3)
    shifted = jnp.concatenate([jnp.zeros_like(tokens[:, :3]), tokens[:, :5]], axis=1)
    segments = jnp.concatenate([jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 5), jnp.int32)], axis=1)
    padded = forward(state, {'params': params}, shifted, segment_ids=segments)
    assert close(padded[:, 3:], plain[:, :5], 1e-5)


@pytest.mark.parametrize('name', KERNEL)
def test_a_teacher_of_its_own_rank_is_learned(name):
    """Adam brings a fresh adapter to a thousandth of its first distance from a moved one."""
    import optax

    w = jax.random.normal(jax.random.key(7), (12, 20)) / 4
    extra = {'spectrum_init_scale': 1.0} if name == 'knowhira' else {}
    method = make(name, **extra)
    teacher = toys.moved(method.init(jax.random.key(5), w), jax.random.key(6), 0.3)
    x = jax.random.normal(jax.random.key(1), (256, 12))
    y = method.apply(teacher, w, x)
    state = method.init(jax.random.key(0), w)
    loss = lambda p: jnp.mean((method.apply(jp.State(p, state.consts), w, x) - y) ** 2)
    tx = optax.adam(optax.cosine_decay_schedule(3e-2, 3000))

    @jax.jit
    def fit(p):
        def body(carry, _):
            p, s = carry
            value, g = jax.value_and_grad(loss)(p)
            updates, s = tx.update(g, s)
            return (optax.apply_updates(p, updates), s), value

        return jax.lax.scan(body, (p, tx.init(p)), length=3000)[1]

    losses = fit(state.params)
    assert float(losses[-1]) < 1e-3 * float(losses[0])
