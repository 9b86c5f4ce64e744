"""The platforms' attention kernels against the plain path, and when each is taken."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import jaxpeft as jp
from jaxpeft.models import attention, blocked, fused, heads, kernels
from jaxpeft.models.cache import run_positions
from tests import models_tiny, train_tiny
from tests.models_tiny import jit
from train import config as configs
from train import mesh as meshes
from train import model as train_model

SCALE = 0.3


@pytest.fixture
def on_tpu(monkeypatch):
    """As if traced for a TPU, whose kernel runs in Pallas's interpreter."""
    monkeypatch.setattr(kernels, 'platform', lambda: 'tpu')
    monkeypatch.setattr(kernels, 'INTERPRET', True)


def rows(length):
    """[3, T] segments: two texts and padding behind, padding before, one that fills its row."""
    seg = np.zeros((3, length), np.int32)
    seg[0, : length // 3], seg[0, length // 3 : -5] = 1, 2
    seg[1, 7:] = 4
    seg[2] = 9
    return jnp.asarray(seg)


def drawn(length, heads, groups, size, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = [(3, length, n, size) for n in (heads, groups, groups, heads)]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def plain(seg, window):
    pos = run_positions(seg)
    where = {'q_pos': pos, 'k_pos': pos, 'q_seg': seg, 'k_seg': seg, 'window': window}
    core = attention.Attention(SCALE)
    return lambda q, k, v: core.apply({}, q, k, v, **where)


def with_gradients(f, q, k, v, dout, compiled=jit):
    """[out, dq, dk, dv]."""

    def both(*qkv):
        out, pull = jax.vjp(f, *qkv)
        return [out, *pull(dout)]

    return compiled(both)(q, k, v)


def assert_same(got, want, tolerance):
    for name, a, b in zip(('out', 'dq', 'dk', 'dv'), got, want, strict=True):
        assert a.dtype == b.dtype
        gap = jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)).max()
        assert gap <= tolerance * jnp.abs(b.astype(jnp.float32)).max(), name


def kernel(name='splash', whole=False, windows=(None, 40)):
    return kernels.Kernel(name, asked=False, whole=whole, windows=windows)


@pytest.mark.parametrize(
    ('length', 'window', 'traced'),
    [(128, None, False), (200, 40, False), (300, None, True), (300, 40, True)],
)
def test_splash_is_the_plain_attention(length, window, traced, monkeypatch):
    """Packed rows, padding, grouped queries; filled up rows; several blocks, some of them empty."""
    monkeypatch.setattr(fused, 'ONE_BLOCK', 256)  # 300 tokens are three blocks of 128
    q, k, v, dout = drawn(length, 4, 2, 8)
    seg = rows(length)
    given = jnp.int32(2**30 if window is None else window) if traced else window
    own = lambda q, k, v: fused.splash(q, k, v, seg, given, kernel(), SCALE, interpret=True)
    got = with_gradients(own, q, k, v, dout)
    assert_same(got, with_gradients(plain(seg, window), q, k, v, dout), 2e-6)
    for x in got:
        assert not np.asarray(x)[np.asarray(seg) == 0].any()


def test_splash_in_bfloat16_is_as_near_to_float32_as_the_plain_attention():
    wide = drawn(128, 2, 1, 8)
    narrow = [x.astype(jnp.bfloat16) for x in wide]
    seg = rows(128)
    own = lambda q, k, v: fused.splash(q, k, v, seg, None, kernel(), SCALE, interpret=True)
    exact = with_gradients(plain(seg, None), *[x.astype(jnp.float32) for x in narrow])
    got, other = (with_gradients(f, *narrow) for f in (own, plain(seg, None)))
    for a, b, want in zip(got, other, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        gaps = [jnp.abs(x.astype(jnp.float32) - want).max() for x in (a, b)]
        assert gaps[0] <= 1.5 * gaps[1]


def test_rows_of_one_segment_need_no_segments():
    q, k, v, dout = drawn(200, 2, 2, 8)
    seg = jnp.ones((3, 200), jnp.int32)
    one = kernel(whole=True)
    own = lambda q, k, v: fused.splash(q, k, v, seg, 40, one, SCALE, interpret=True)
    assert_same(
        with_gradients(own, q, k, v, dout), with_gradients(plain(seg, 40), q, k, v, dout), 2e-6
    )


@pytest.mark.parametrize('window', [None, 40])
@pytest.mark.parametrize('whole', [False, True])
def test_what_cudnn_is_asked_is_the_plain_attention(window, whole):
    """JAX's own form of the same call, which runs anywhere."""
    q, k, v, dout = drawn(100, 4, 2, 8)
    seg = jnp.ones((3, 100), jnp.int32) if whole else rows(100)
    own = functools.partial(fused.cudnn, implementation='xla')
    call = lambda q, k, v: own(q, k, v, seg, window, kernel('cudnn', whole), SCALE)
    got = with_gradients(call, q, k, v, dout)
    assert_same(got, with_gradients(plain(seg, window), q, k, v, dout), 2e-6)


def test_cudnn_on_a_gpu():
    if jax.default_backend() != 'gpu':
        pytest.skip('runs cuDNN: needs a GPU, and this machine has none that JAX sees')
    q, k, v, dout = drawn(256, 4, 2, 64, jnp.bfloat16)
    for seg, whole in ((rows(256), False), (jnp.ones((3, 256), jnp.int32), True)):
        call = functools.partial(fused.cudnn, kernel=kernel('cudnn', whole), scale=SCALE)
        own = lambda q, k, v, seg=seg, call=call: call(q, k, v, seg, None)
        got = with_gradients(own, q, k, v, dout, jax.jit)
        assert_same(got, with_gradients(plain(seg, None), q, k, v, dout, jax.jit), 2e-2)


def test_cudnn_lowers_without_a_gpu(monkeypatch):
    """The calls that a GPU would get; that cuDNN is there, which JAX asks first, is pretended."""
    from jax._src.cudnn import fused_attention_stablehlo as of_jax

    monkeypatch.setattr(of_jax, 'check_cudnn_version', lambda: 91000)
    calls = ('__cudnn$fmhaScaleBiasSoftmax', '__cudnn$fmhaScaleBiasSoftmaxBackward')
    seg = rows(256)

    def loss(q, k, v):
        out = fused.cudnn(q, k, v, seg, None, kernel('cudnn'), SCALE)
        return out.astype(jnp.float32).sum()

    shapes = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in drawn(256, 4, 2, 64)[:3]]
    exported = jax.export.export(
        jax.jit(jax.grad(loss, argnums=(0, 1, 2))), platforms=['cuda'],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(name) for name in calls],
    )(*shapes)  # fmt: skip
    text = exported.mlir_module()
    assert tuple(re.findall(r'custom_call @([\w$]+)', text)) == calls
    assert text.count('mask_type\\22: \\22CAUSAL') == 2


@pytest.fixture(scope='module')
def models():
    """kind -> (a function of `attention` that builds it, params, plan, state)."""
    made = {}
    for kind, changes in (('gpt_neo', {'window_size': 40}), ('llama', {})):
        config = models_tiny.config(kind, max_position_embeddings=256, **changes)
        build = functools.partial(jp.models.build, config, remat='full')
        params = models_tiny.random_params(build())
        plan = {jp.targets(params, ['q_proj', 'v_proj']): jp.methods.lora(rank=2)}
        state = jp.init(plan, jax.random.key(0), params)
        made[kind] = build, params, plan, jax.tree.map(lambda x: x + 0.05, state)
    return made


def loss_and_gradients(model, params, plan, state, seg, mesh):
    """A function of the trained leaves, to be compiled."""
    tokens = models_tiny.tokens(*seg.shape)
    forward = jp.bind(plan, model.apply)

    def loss(trained):
        logits = forward(
            state._replace(params=trained), {'params': params}, tokens, segment_ids=seg,
            positions=run_positions(seg), packed=True,
        )  # fmt: skip
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) * (seg != 0))

    return meshes.within(mesh, jax.value_and_grad(loss))


@pytest.mark.parametrize('kind', ['gpt_neo', 'llama'])
def test_a_model_trains_alike_with_the_kernel_on_a_mesh(kind, models, on_tpu):
    """Under scan, remat and shard_map; GPT-Neo's layers take turns between two kernels."""
    del on_tpu
    build, params, plan, state = models[kind]
    seg = jnp.concatenate([rows(136), rows(136)[:1]])  # a multiple of data * fsdp
    mesh = meshes.make('2,2,2')
    trained = jax.device_put(state.params, meshes.replicated(mesh))
    of = lambda how: loss_and_gradients(build(attention=how), params, plan, state, seg, mesh)
    found = {}
    for how in ('plain', 'auto'):
        traced = jit(of(how)).trace(trained)
        assert ('pallas_call[' in str(traced.jaxpr)) == (how == 'auto')
        found[how] = jax.block_until_ready(traced.lower().compile()(trained))
    got, want = found['auto'], found['plain']
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def chosen(attention='auto', kind='llama', dtype=jnp.bfloat16, shape=(8, 256), packed=True,
           whole=False, **changes):  # fmt: skip
    config = models_tiny.config(kind, **changes)
    return kernels.choose(attention, config, dtype, shape, packed=packed, whole=whole)


def on(mesh=None):
    """A mesh in sight; one device's, since this machine has eight."""
    made = meshes.make(mesh or '1,1,1')
    return jax.sharding.use_abstract_mesh(made.abstract_mesh)


def test_auto_takes_the_kernel_where_it_is_right(on_tpu):
    del on_tpu
    with on():
        found = chosen(kind='gpt_neo')
        assert found == kernels.Kernel('splash', asked=False, whole=False, windows=(None, 4))
        assert chosen(dtype=jnp.float32).name == 'splash'
        assert chosen(packed=False, whole=True).whole
        assert chosen(attention='splash', shape=(8, 16)).asked
        assert chosen(attention='plain') is None
        assert chosen(packed=False) is None
        assert chosen(shape=(8, 120)) is None
        assert chosen(dtype=jnp.float16) is None
    with on('2,2,2'):
        assert chosen().name == 'splash'
        assert chosen(shape=(6, 256)) is None
    with on('1,2,4'):
        assert chosen() is None  # two key heads over four devices
    assert chosen() is None  # eight devices and no mesh in sight
    kinds = (AxisType.Explicit,) * 3
    made = jax.make_mesh((2, 2, 2), meshes.AXES, axis_types=kinds)
    with jax.sharding.use_abstract_mesh(made.abstract_mesh):
        assert chosen() is None


@pytest.mark.parametrize(
    ('asked', 'mesh', 'message'),
    [
        ({'dtype': jnp.float16}, '1,1,1', 'takes bfloat16 or float32, the model has dtype float16'),
        ({'packed': False}, '1,1,1', 'without packed=True'),
        ({'shape': (6, 256)}, '2,2,2', 'data . fsdp = 4, got 6'),
        ({}, '1,2,4', 'tensor = 4, got 2'),
        ({'attention': 'cudnn'}, '1,1,1', 'runs on a GPU only, this is traced for a tpu'),
        ({'attention': 'splsh'}, '1,1,1', "got 'splsh'; nearest: splash"),
    ],
)
def test_a_kernel_asked_for_by_name_says_why_not(asked, mesh, message, on_tpu):
    del on_tpu
    with on(mesh), pytest.raises(ValueError, match=message):
        chosen(**({'attention': 'splash'} | asked))


class Gpu:
    platform, device_kind, compute_capability = 'gpu', 'a GPU', '8.6'
    client = type('Client', (), {'platform_version': 'PJRT C API\ncuda 12.9'})


def test_auto_takes_cudnn_for_what_needs_no_mask(monkeypatch):
    monkeypatch.setattr(kernels, 'platform', lambda: 'gpu')
    monkeypatch.setattr(jax, 'local_devices', lambda backend: [Gpu()])
    whole = {'packed': False, 'whole': True}
    with on():
        assert chosen(**whole).name == 'cudnn'
        assert chosen() is None  # segments
        assert chosen(kind='gpt_neo', **whole) is None  # a window
        assert chosen('cudnn').asked
        assert chosen('cudnn', kind='gpt_neo').asked
        assert chosen(dtype=jnp.float32, **whole) is None
        assert chosen(head_dim=144, **whole) is None
        with pytest.raises(ValueError, match='of even length, got 255'):
            chosen('cudnn', shape=(8, 255))
        monkeypatch.setattr(Gpu, 'compute_capability', '9.0')
        assert chosen(head_dim=144, **whole).name == 'cudnn'
        monkeypatch.setattr(Gpu, 'compute_capability', '7.5')
        with pytest.raises(ValueError, match=r'capability 8\.0, this is a GPU'):
            chosen('cudnn')


def test_a_cpu_has_no_kernel_and_says_so(models):
    build, params, _, _ = models['llama']
    tokens = models_tiny.tokens(1, 128)
    assert kernels.platform() == 'cpu'
    model = build(attention='splash')
    jp.models.param_shapes(model)  # an init is no pass to be refused
    with pytest.raises(ValueError, match=r"runs on a TPU only.*nearest that works is 'auto'"):
        jax.eval_shape(model.apply, {'params': params}, tokens)
    cache = model.init_cache(1, 128)  # a pass with a cache is always the plain one
    jax.eval_shape(lambda t: model.apply({'params': params}, t, cache=cache), tokens)


@pytest.mark.parametrize('window', [None, 70])
@pytest.mark.parametrize('length', [128, 200, 300])
def test_blocks_are_the_plain_path(length, window):
    """Out and gradients, several segments in a row, padding before and behind, grouped queries."""
    q, k, v, dout = drawn(length, 4, 2, 8)
    seg = rows(length)
    pos, found = run_positions(seg), {}
    kernel = kernels.Kernel('blocks', False, False, (window,))
    for how in (None, kernel):
        context = attention.Context(pos, seg, pos, seg, kernel=how)
        core = attention.Attention(SCALE, context, attention.LayerInputs(window))
        where = {'q_pos': pos, 'k_pos': pos, 'q_seg': seg, 'k_seg': seg, 'window': window}
        f = lambda q, k, v, core=core, where=where: core.apply({}, q, k, v, **where)
        squares = str(jax.make_jaxpr(f)(q, k, v)).count(f'f32[3,2,{2 * length},{length}] = dot')
        assert squares == (how is None)  # all queries of both heads at once, or in blocks
        found[how] = with_gradients(f, q, k, v, dout)
    for got, want in zip(found[kernel], found[None], strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_blocks_keep_nothing_as_wide_as_a_row_for_the_backward(dtype):
    """And a window that comes as an array; in bfloat16 the gradients stay near float32's."""
    length, seg = 200, rows(200)
    pos, (q, k, v, dout) = run_positions(seg), drawn(200, 4, 2, 8)
    grouped = lambda x: x.reshape(*x.shape[:2], 2, 2, 8).astype(dtype)
    where = blocked.Rows(pos, seg, jnp.int32(70))
    edges = kernels.edges(length)
    f = lambda q, k, v: blocked.attend(q, k, v, where, SCALE, edges)
    given = grouped(q), k.astype(dtype), v.astype(dtype)
    out, back = jax.vjp(f, *given)
    assert all(x.shape.count(length) < 2 for x in jax.tree.leaves(back))
    want = with_gradients(
        lambda q, k, v: attention.attend(
            grouped(q).astype(jnp.float32), k, v, None,
            heads.visible(pos, pos, seg, seg, 70)[:, None, None], SCALE,
        ).reshape(q.shape), q, k, v, dout,
    )  # fmt: skip
    got = [out, *back(grouped(dout))]
    assert all(x.dtype == dtype for x in got)
    near = 2e-6 if dtype == jnp.float32 else 2e-2
    for x, y in zip(got, want, strict=True):
        x = np.asarray(x, np.float32).reshape(y.shape)
        np.testing.assert_allclose(x, y, atol=near * np.abs(y).max())


def test_auto_is_in_blocks_where_rows_are_runs_and_long(models):
    build, params, _, _ = models['gpt_neo']
    apply = lambda how: build(attention=how).apply
    tokens = models_tiny.tokens(2, 200)
    seg = jnp.ones((2, 200), jnp.int32).at[:, 120:].set(2)
    pos = run_positions(seg)
    for more in ({}, {'segment_ids': seg, 'positions': pos, 'packed': True}):
        got, want = (apply(how)({'params': params}, tokens, **more) for how in ('auto', 'plain'))
        np.testing.assert_allclose(got, want, atol=2e-5)
    config = models_tiny.config('gpt_neo')
    runs, mixed = {'packed': True, 'whole': False}, {'packed': False, 'whole': False}
    assert kernels.in_blocks('auto', config, 128, **runs).name == 'blocks'
    assert kernels.in_blocks('auto', config, 127, **runs) is None
    assert kernels.in_blocks('auto', config, 128, **mixed) is None
    assert kernels.in_blocks('plain', config, 128, **runs) is None


OVERRIDES = {
    'daa': lambda: jp.methods.daa(heads=4, stack=(3,)),
    'prefix': lambda: jp.methods.prefix(kv_heads=2, head_dim=8, length=3, stack=(3,)),
    's2': lambda: jp.methods.s2(group=64, stack=(3,)),
}


@pytest.mark.parametrize('name', OVERRIDES)
def test_an_override_that_changes_who_sees_whom_has_the_plain_attention(name, models, on_tpu):
    del on_tpu
    build, params, _, _ = models['llama']
    plan = {'.*/self_attn/core': OVERRIDES[name]()}
    state = jp.init(plan, jax.random.key(0), params)
    tokens = models_tiny.tokens(1, 128)

    def traced(how, plan=plan, state=state):
        forward = jp.bind(plan, build(attention=how).apply)
        with on():
            return str(jax.make_jaxpr(lambda t: forward(state, {'params': params}, t))(tokens))

    assert 'pallas_call[' in traced('auto', {}, jp.State({}, {}))
    assert 'pallas_call[' not in traced('auto')
    with pytest.raises(ValueError, match="attention='splash' knows no bias"):
        traced('splash')


def test_the_platform_is_that_of_the_mesh_else_the_default_device():
    assert kernels.platform() == 'cpu'
    with jax.default_device('cpu'):
        assert kernels.platform() == 'cpu'
    with jax.default_device(jax.devices()[3]):
        assert kernels.platform() == 'cpu'
    device = jax.sharding.AbstractDevice(device_kind='TPU v5 lite', num_cores=1, platform='tpu')
    mesh = jax.sharding.AbstractMesh((1,), ('data',), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert kernels.platform() == 'tpu'


def test_a_kernel_by_name_is_for_the_update_alone(tmp_path):
    """What validates and evaluates has passes that no kernel can do: it asks for none by name."""
    folder, flags = train_tiny.write_all(tmp_path), ('--method=lora', '--mesh=1,1,1')
    config = train_tiny.config(folder, *flags, '--attention=splash')
    built = train_model.setup(config)
    tokens = models_tiny.tokens(1, 16, vocab=8)
    trace = lambda forward: jax.eval_shape(forward, built.state, {'params': built.params}, tokens)
    trace(built.evaluated)
    with pytest.raises(ValueError, match="attention='splash' runs on a TPU only"):
        trace(built.forward)
    assert built.model.attention == 'auto'
    # Another kernel is the same run, as another mesh is.
    assert configs.identity(config) == configs.identity(train_tiny.config(folder, *flags))
