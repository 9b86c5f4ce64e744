"""The forward pass against itself: layouts, padding, packing, cache, loss, remat, interception."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.ad_checkpoint import print_saved_residuals

import jaxpeft as jp
from jaxpeft import models
from jaxpeft.models import cache as caches
from jaxpeft.models import head, online
from jaxpeft.models.attention import Attention, masked_softmax
from tests.models_tiny import CONFIGS, config, jit, random_params, tokens

KINDS = sorted(CONFIGS)
T = 12  # three times the local window of the tiny GPT-Neo
CLOSE = {'atol': 2e-5, 'rtol': 0}


@functools.cache
def made(kind):
    """(model, params, jitted apply); one compile for each set of argument shapes and each model."""
    model = models.build(config(kind))
    apply = jit(lambda p, *a, **k: model.apply({'params': p}, *a, **k))
    return model, random_params(model), apply


@functools.cache
def plain(kind):
    """Logits [2, T, V] of two unpadded rows."""
    _, params, apply = made(kind)
    ones = np.ones((2, T), np.int32)
    return np.asarray(apply(params, tokens(2, T), segment_ids=ones))


def count(batch, length):
    return np.tile(np.arange(length, dtype=np.int32), (batch, 1))


@pytest.mark.parametrize('kind', KINDS)
def test_unrolled_equals_scanned(kind):
    _, params, _ = made(kind)
    unrolled = models.build(config(kind), scan=False)
    apart = models.unstack(params)
    container = apart.get('transformer', apart.get('model'))
    assert sorted(container.get('h', container.get('layers'))) == [
        str(i) for i in range(unrolled.config.num_layers)
    ]
    got = jit(lambda p, t: unrolled.apply({'params': p}, t))(apart, tokens(2, T))
    np.testing.assert_allclose(got, plain(kind), **CLOSE)
    again = models.stack(apart)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize('kind', KINDS)
def test_left_padded_equals_plain(kind):
    _, params, apply = made(kind)
    short = tokens(2, T)[:, :7]
    rows = np.full((2, T), 5, np.int32)  # the padding's token must not matter
    seg = np.zeros((2, T), np.int32)
    rows[0, 5:], seg[0, 5:] = short[0], 1
    rows[1], seg[1] = tokens(2, T)[1], 1
    got = np.asarray(apply(params, rows, segment_ids=seg))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[0, 5:], plain(kind)[0, :7], **CLOSE)
    np.testing.assert_allclose(got[1], plain(kind)[1], **CLOSE)


@pytest.mark.parametrize('kind', KINDS)
def test_packed_equals_plain(kind):
    _, params, apply = made(kind)
    t = tokens(2, T)
    rows = np.stack([np.concatenate([t[0, :5], t[1, :7]]), np.concatenate([t[1, :9], [0, 0, 0]])])
    seg = np.array([[1] * 5 + [2] * 7, [1] * 9 + [0] * 3], np.int32)
    got = np.asarray(apply(params, rows.astype(np.int32), segment_ids=seg))
    np.testing.assert_allclose(got[0, :5], plain(kind)[0, :5], **CLOSE)
    np.testing.assert_allclose(got[0, 5:], plain(kind)[1, :7], **CLOSE)
    np.testing.assert_allclose(got[1, :9], plain(kind)[1, :9], **CLOSE)


@pytest.mark.parametrize('kind', KINDS)
def test_cached_left_padded_decoding_equals_plain(kind):
    """Prompts of 6 and 3 tokens in one left-padded batch, then one token at a time."""
    model, params, apply = made(kind)
    t = tokens(2, T)
    prompt = np.stack([t[0, :6], np.concatenate([[9, 9, 9], t[1, :3]])]).astype(np.int32)
    seg = np.array([[1] * 6, [0] * 3 + [1] * 3], np.int32)
    cache = model.init_cache(2, 16)
    logits, cache = apply(params, prompt, segment_ids=seg, cache=cache)
    got = [np.asarray(logits)]
    for i in range(6):
        step = np.stack([t[0, 6 + i : 7 + i], t[1, 3 + i : 4 + i]])
        logits, cache = apply(params, step, cache=cache)
        got.append(np.asarray(logits))
    got = np.concatenate(got, axis=1)
    np.testing.assert_allclose(got[0], plain(kind)[0], **CLOSE)
    np.testing.assert_allclose(got[1, 3:], plain(kind)[1, :9], **CLOSE)
    assert int(cache['index']) == 12
    assert cache['pos'][1, 3:12].tolist() == list(range(9))


@pytest.mark.parametrize('kind', ['gpt_neo', 'llama'])
def test_a_full_cache_takes_no_token_more(kind):
    """The last slot would be written over: an error, or NaN where that is not known in time."""
    model, params, apply = made(kind)
    step = lambda t, cache: model.apply({'params': params}, t, cache=cache)
    given = tokens(1, 9)
    _, cache = apply(params, given[:, :7], cache=model.init_cache(1, 8))
    logits, full = apply(params, given[:, 7:8], cache=cache)
    assert np.isfinite(logits).all()
    with pytest.raises(ValueError, match=r'room for tokens of shape \(1, 0\), got \(1, 1\)'):
        step(given[:, 8:], full)
    with pytest.raises(ValueError, match=r'room for tokens of shape \(1, 1\), got \(1, 2\)'):
        step(given[:, 7:], cache)
    assert np.isnan(apply(params, given[:, 8:], cache=full)[0]).all()
    assert np.isnan(apply(params, given[:, 7:], cache=cache)[0]).all()


def test_unrolled_cache():
    model = models.build(config('gpt_neo'), scan=False)
    params = models.unstack(made('gpt_neo')[1])
    apply = jit(lambda p, t, c: model.apply({'params': p}, t, cache=c))
    first, cache = apply(params, tokens(2, T)[:, :6], model.init_cache(2, T))
    second, _ = apply(params, tokens(2, T)[:, 6:], cache)
    got = np.concatenate([first, second], axis=1)
    np.testing.assert_allclose(got, plain('gpt_neo'), **CLOSE)


@pytest.mark.parametrize('kind', ['gpt_neo', 'qwen3'])  # a tied and an untied head
def test_select_and_labels(kind, monkeypatch):
    model, params, apply = made(kind)
    select = np.array([3, 23, 0, 7, 7, 15, 1], np.int32)
    labels = np.array([5, 60, 0, 9, 8, 33, 2], np.int32)
    flat = plain(kind).reshape(2 * T, -1)[select]
    got = apply(params, tokens(2, T), select=select)
    np.testing.assert_allclose(got, flat, **CLOSE)
    expected = np.log(np.exp(flat).sum(-1)) - flat[np.arange(7), labels]
    nll = apply(params, tokens(2, T), select=select, labels=labels)
    np.testing.assert_allclose(nll, expected, **CLOSE)

    monkeypatch.setattr(online, 'ROWS', 3)  # 7 labels: three chunks, the last padded
    monkeypatch.setattr(online, 'CELLS', 50)  # of 16 words of 61
    again = jit(lambda p, t: model.apply({'params': p}, t, select=select, labels=labels))
    np.testing.assert_allclose(again(params, tokens(2, T)), expected, **CLOSE)


def test_chunked_gradient(monkeypatch):
    """The head's gradient, and what flows below it, do not depend on the chunks."""
    model, params, _ = made('qwen3')
    select = np.array([3, 23, 0, 7, 7, 15, 1], np.int32)

    def loss(adapted, p, t):
        p = p | {'lm_head': adapted['lm_head'], 'model': p['model'] | {'norm': adapted['norm']}}
        weights = jnp.arange(7.0)
        return (model.apply({'params': p}, t, select=select, labels=select) * weights).sum()

    adapted = {'lm_head': params['lm_head'], 'norm': params['model']['norm']}
    whole = jit(jax.grad(loss))(adapted, params, tokens(2, T))
    monkeypatch.setattr(head, 'CHUNK', 3)
    monkeypatch.setattr(online, 'ROWS', 3)
    chunked = jit(jax.grad(lambda *a: loss(*a)))(adapted, params, tokens(2, T))
    same_grads(chunked, whole)


def test_nll_never_holds_all_logits():
    """2048 labels over 4001 words: no array in the gradient's program is as large as 513 x 4001."""
    model = models.build(config('gpt_neo', vocab_size=4001, max_position_embeddings=2048))
    shapes = models.param_shapes(model)
    ids = jax.ShapeDtypeStruct((1, 2048), jnp.int32)
    n = jax.ShapeDtypeStruct((2048,), jnp.int32)

    def loss(p, t, select, labels):
        return model.apply({'params': p}, t, select=select, labels=labels).sum()

    program = str(jax.make_jaxpr(jax.grad(loss))(shapes, ids, n, n))
    assert '[512,4001]' in program
    assert '[2048,4001]' not in program
    assert '[4,512,4001]' not in program


@pytest.mark.parametrize(('kind', 'scan'), [('gpt_neo', True), ('llama', True), ('qwen2', False)])
def test_remat_policies_change_nothing(kind, scan):
    params = made(kind)[1] if scan else models.unstack(made(kind)[1])
    expected = None
    for remat in [None, 'full', 'dots', 'dots_no_batch'] if kind == 'gpt_neo' else [None, 'full']:
        model = models.build(config(kind), scan=scan, remat=remat)

        def loss(p, t, model=model):
            return jnp.square(model.apply({'params': p}, t)).mean()

        got = jit(jax.value_and_grad(loss))(params, tokens(2, T))
        expected = expected or got
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
        same_grads(got[1], expected[1])


@pytest.mark.parametrize('method', ['lora', 'knowhira', 'dora'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(('kind', 'widest'), [('gpt_neo', 1), ('llama', 2), ('qwen3', 2)])
def test_a_scanned_layer_keeps_its_products_once_and_narrow(kind, widest, dtype, method, capsys):
    """Of the widest: c_fc's alone, or gate and up; what an activation makes of it is taken again.

    A product and its adapter's branch are kept as their sum, in the base's dtype. DoRA's magnitude
    needs the sum in float32, before it is rescaled.
    """
    model = models.build(config(kind), dtype=jnp.dtype(dtype))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), random_params(model))
    options = {method: {'rank': 2}}
    plan = jp.compose(model, params, method, options=options, targets='all-linear')
    state, text = jp.init(plan, jax.random.key(0), params), tokens(2, T)
    run = lambda p: jp.bind(plan, model.apply)(jp.State(p, state.consts), {'params': params}, text)
    print_saved_residuals(lambda p: run(p).sum(), state.params)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    kept = [line[0].split('[') for line in lines if 'argument' not in line]
    shape = (model.config.num_layers, 2, T, model.config.intermediate_size)
    wide = [name for name, rest in kept if rest == f'{",".join(map(str, shape))}]']
    narrow = {'float32': 'f32', 'bfloat16': 'bf16'}[dtype]
    rescaled = method == 'dora' and dtype == 'bfloat16'
    assert sorted(wide) == sorted([narrow] * widest + ['f32'] * widest * rescaled)


def same_grads(got, expected):
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    assert largest > 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest, rtol=0), got, expected
    )


def test_unknown_remat():
    model = models.build(config('llama'), remat='most')
    with pytest.raises(ValueError, match=r"remat must be None or one of .*'dots'.*got 'most'"):
        models.param_shapes(model)


@pytest.mark.parametrize('kind', ['gpt_neo', 'llama'])  # a tied and an untied head
def test_bfloat16(kind):
    """bf16 parameters: float32 logits near those of the same values in float32; gradients exist."""
    model = models.build(config(kind), dtype=jnp.bfloat16)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), made(kind)[1])
    assert {leaf.dtype for leaf in jax.tree.leaves(models.param_shapes(model))} == {
        jnp.dtype('bfloat16')
    }
    full = jax.tree.map(lambda a: a.astype(np.float32), half)
    expected = np.asarray(made(kind)[2](full, tokens(2, T), segment_ids=np.ones((2, T), np.int32)))

    def loss(p, t):
        logits = model.apply({'params': p}, t)
        return jnp.square(logits).mean(), logits

    grads, logits = jit(jax.grad(loss, has_aux=True))(half, tokens(2, T))
    assert logits.dtype == jnp.float32
    logits = np.asarray(logits)
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
    assert (logits != logits.astype(jnp.bfloat16).astype(np.float32)).any()  # not rounded to bf16
    assert all(np.isfinite(leaf.astype(np.float32)).all() for leaf in jax.tree.leaves(grads))
    assert model.init_cache(1, 4)['k'].dtype == jnp.bfloat16


def test_invisible_rows_are_zeros_with_zero_gradients():
    mask = jnp.array([[True, True, False], [False, False, False]])
    scores = jnp.array([[1.0, 2.0, 1e30], [0.0, 1.0, 2.0]])
    probs = masked_softmax(scores, mask)
    np.testing.assert_allclose(probs[0], [0.26894143, 0.7310586, 0.0], rtol=1e-6)
    assert probs[1].tolist() == [0, 0, 0]
    grad = jax.grad(lambda s: (masked_softmax(s, mask) * jnp.arange(3.0)[None]).sum())(scores)
    assert np.isfinite(grad).all()
    assert grad[1].tolist() == [0, 0, 0]


def test_core_sees_segments_order_and_window():
    """Each query's output is the mean of the values that it may see (equal keys)."""
    pos = jnp.array([[0, 1, 2, 0, 1, 0]])
    seg = jnp.array([[1, 1, 1, 2, 2, 0]])
    q = jnp.zeros((1, 6, 2, 4))
    values = jnp.broadcast_to(2.0 ** jnp.arange(6)[None, :, None, None], (1, 6, 1, 4))
    where = {'q_pos': pos, 'k_pos': pos, 'q_seg': seg, 'k_seg': seg}
    out = Attention(scale=1.0).apply({}, q, q[:, :, :1], values, **where, window=2)
    np.testing.assert_allclose(out[0, :, 0, 0], [1, 1.5, 3, 8, 12, 0], rtol=1e-6)
    out = Attention(scale=1.0).apply({}, q, q[:, :, :1], values, **where, window=None)
    np.testing.assert_allclose(out[0, :, 1, 3], [1, 1.5, 7 / 3, 8, 12, 0], rtol=1e-6)


@pytest.mark.parametrize('kind', ['gpt_neo', 'llama'])
@pytest.mark.parametrize('layout', ['scan', 'scan+remat', 'unrolled+remat'])
def test_interceptors_see_every_linear_and_the_core(kind, layout):
    """Every nn.Dense, the core with its fixed signature, the module `mlp`, the chunked head."""
    scan = layout.startswith('scan')
    model = models.build(config(kind), scan=scan, remat='full' if 'remat' in layout else None)
    seen = {}

    def watch(next_fun, args, kwargs, context):
        if context.method_name == '__call__':
            seen['/'.join(context.module.path)] = (type(context.module), args, kwargs)
        return next_fun(*args, **kwargs)

    n = jnp.arange(2 * 600, dtype=jnp.int32) % 24  # 1200 labels: three chunks

    def loss(p, t):
        with nn.intercept_methods(watch):
            return model.apply({'params': p}, t, select=n, labels=n).mean()

    jax.eval_shape(jax.grad(loss), models.param_shapes(model), tokens(2, T))
    root, box, last, width = {
        'gpt_neo': ('transformer/h', 'attn/attention', 'out_proj', [2, 2, 2]),
        'llama': ('model/layers', 'self_attn', 'o_proj', [4, 2, 2]),
    }[kind]
    layers = [root] if scan else [f'{root}/{i}' for i in range(model.config.num_layers)]
    for layer in layers:
        for name in ('q_proj', 'k_proj', 'v_proj', last):
            assert seen[f'{layer}/{box}/{name}'][0] is nn.Dense
        assert f'{layer}/mlp' in seen
        core, args, kwargs = seen[f'{layer}/{box}/core']
        assert core is Attention
        assert [a.shape[2] for a in args] == width
        assert set(kwargs) == {'q_pos', 'k_pos', 'q_seg', 'k_seg', 'window'}
    if kind == 'llama':
        kernel, args, _ = seen['lm_head']
        assert kernel is nn.Dense
        assert args[0].shape == (1, 16)  # untouched: the loss takes the matrix itself


def test_an_interceptor_changes_the_scanned_remat_model():
    model = models.build(config('llama'), remat='full')

    def mute(next_fun, args, kwargs, context):
        out = next_fun(*args, **kwargs)
        muted = context.module.name in ('o_proj', 'down_proj')
        return out * 0.0 if muted and context.method_name == '__call__' else out

    def logits(p, t):
        with nn.intercept_methods(mute):
            return model.apply({'params': p}, t)

    got = jit(logits)(made('llama')[1], np.tile(tokens(1, 1), (1, 4)))
    np.testing.assert_allclose(got, np.tile(got[:, :1], (1, 4, 1)), **CLOSE)  # no layer acts


def test_default_positions():
    t = jnp.zeros((2, 6), jnp.int32)
    assert caches.context(t, None, None, None).q_pos.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    seg = jnp.array([[0, 0, 1, 1, 1, 1], [1, 1, 2, 2, 2, 0]])
    ctx = caches.context(t, None, seg, None)
    assert ctx.q_pos.tolist() == [[0, 1, 0, 1, 2, 3], [0, 1, 0, 1, 2, 0]]


def test_refusals():
    model, params, _ = made('gpt_neo')
    shapes = models.param_shapes(model)
    run = lambda *a, **k: jax.eval_shape(lambda p: model.apply({'params': p}, *a, **k), shapes)
    with pytest.raises(ValueError, match='max_positions=32 learned positions, got 33'):
        run(tokens(1, 33))
    with pytest.raises(ValueError, match='at most max_positions=32 of tiny-gpt_neo, got 33'):
        model.init_cache(1, 33)
    with pytest.raises(ValueError, match=r'positions must have the shape of tokens \(2, 12\)'):
        run(tokens(2, T), count(1, T))
    with pytest.raises(ValueError, match=r'room for tokens of shape \(2, 4\), got \(2, 12\)'):
        run(tokens(2, T), cache=model.init_cache(2, 4))
    with pytest.raises(ValueError, match='labels need select of the same shape'):
        run(tokens(2, T), labels=jnp.zeros(3, jnp.int32))
    packed = run(tokens(1, 40), segment_ids=jnp.arange(40)[None] // 20 + 1)
    assert packed.shape == (1, 40, 61)
    del params
