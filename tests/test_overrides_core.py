"""The overrides against dense references written out in numpy, on the attention core and an FFN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from jaxpeft.models import attention, heads
from tests import toys
from tests.models_tiny import jit

SCALE = 0.3
daa, prefix, s2, sparse = (jp.methods.module(n) for n in ('daa', 'prefix', 's2', 'sparse_mlp'))


def drawn(T, S, H, Hkv, D=4, B=2):
    """Queries, keys, values; the queries are the last T of S tokens."""
    keys = jax.random.split(jax.random.key(T * 7 + S + H), 3)
    shapes = ((B, T, H, D), (B, S, Hkv, D), (B, S, Hkv, D))
    return [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]


def places(seg, T):
    """The core's keywords of S tokens in these segments, queried by the last T of them."""
    seg = np.asarray(seg, np.int32)
    pos = np.array([[(row[:i] == row[i]).sum() for i in range(len(row))] for row in seg], np.int32)
    return {'q_pos': pos[:, -T:], 'k_pos': pos, 'q_seg': seg[:, -T:], 'k_seg': seg}


def dense(q, k, v, mask, alpha=None, bias=None):
    """softmax(alpha_h scale q k^T + bias) v under mask [B, H, T, S]; rows that see nothing: 0."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    share = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, share, axis=2), np.repeat(v, share, axis=2)
    scores = SCALE * np.einsum('bthd,bshd->bhts', q, k)
    scores = scores if alpha is None else scores * np.asarray(alpha)[None, :, None, None] + bias
    weights = np.where(mask, np.exp(scores), 0)
    probs = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    return np.einsum('bhts,bshd->bthd', probs, v)


def seen(where, heads, window=None):
    """The core's own mask [B, H, T, S], in numpy."""
    gap = where['q_pos'][:, :, None] - where['k_pos'][:, None, :]
    same = where['q_seg'][:, :, None] == where['k_seg'][:, None, :]
    mask = same & (where['k_seg'] != 0)[:, None, :] & (gap >= 0)
    mask &= gap < (window or 10**6)
    return np.repeat(mask[:, None], heads, axis=1)


def run(method, state, q, k, v, where, window=None):
    core = attention.Attention(scale=SCALE)

    @jit
    def call(q, k, v, where):
        apply = lambda *args, **kwargs: core.apply({}, *args, **kwargs)
        return method.call(state, apply, q, k, v, **where, window=window)

    with jax.numpy_dtype_promotion('strict'):
        return np.asarray(call(q, k, v, where))


PACKED = [[0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 0]]
PLAIN = [[1] * 11] * 2
CASES = [(PACKED, 11, None), (PACKED, 11, 3), (PLAIN, 11, 4), (PLAIN, 2, None)]


@pytest.mark.parametrize(('seg', 'T', 'window'), CASES)
def test_daa_is_its_equation(seg, T, window, key):
    method = jp.methods.daa(heads=4, num_buckets=6, max_len=8)
    state = toys.moved(method.init(key), key, 0.5)
    q, k, v = drawn(T, 11, 4, 2)
    where = places(seg, T)
    gap = np.maximum(where['q_pos'][:, :, None] - where['k_pos'][:, None, :], 0)
    number = np.select([gap < 3, gap < 5, gap < 6], [gap, 3, 4], 5)  # 3 (8/3)^(i/3): 3, 4.2, 5.8
    bias = np.moveaxis(np.asarray(state.params['bias'])[number], 3, 1)
    want = dense(q, k, v, seen(where, 4, window), state.params['alpha'], bias)
    np.testing.assert_allclose(run(method, state, q, k, v, where, window), want, atol=2e-6)
    assert np.abs(want - dense(q, k, v, seen(where, 4, window))).max() > 1e-2


def test_daa_reaches_every_bucket_and_spaces_them_as_the_reference():
    edges = daa.lower_edges(32, 32768)
    far = (16, 26, 42, 67, 108, 174, 280, 450, 725, 1167, 1879, 3025, 4871, 7845, 12634, 20347)
    assert edges == (*range(1, 16), *far)
    for n, longest in ((2, 2), (5, 9), (32, 512), (33, 2048)):
        numbers = np.asarray(daa.bucket(jnp.arange(longest), daa.lower_edges(n, longest)))
        assert (np.diff(numbers) >= 0).all()
        assert numbers[0] == 0
        assert set(numbers) == set(range(n)), (n, longest)
    assert daa.bucket(jnp.array([-5, 10**6]), edges).tolist() == [0, 31]


def test_daa_keeps_a_small_alpha_over_a_bfloat16_base(key):
    """1.001 is 1 in bfloat16; in a float32 score it is not."""
    method = jp.methods.daa(heads=2)
    state = method.init(key)
    state.params['alpha'] = jnp.full(2, 1.001)
    q, k, v = (x.astype(jnp.bfloat16) for x in drawn(9, 9, 2, 2))
    scores = []

    def core(q, k, v, *, bias, **kwargs):
        del bias, kwargs
        assert v.dtype == jnp.bfloat16
        scores.append(jnp.einsum('bthd,bshd->bhts', q, k))
        return q

    assert method.call(state, core, q, k, v, q_pos=jnp.zeros((2, 9), int), k_pos=jnp.zeros(
        (2, 9), int)).dtype == jnp.bfloat16  # fmt: skip
    plain = jnp.einsum('bthd,bshd->bhts', q.astype(jnp.float32), k.astype(jnp.float32))
    np.testing.assert_allclose(scores[0], 1.001 * plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('seg', 'T', 'window'), CASES)
def test_prefix_is_its_equation(seg, T, window, key):
    """Seen by every query that is not padding, through any window."""
    method = jp.methods.prefix(kv_heads=2, head_dim=4, length=3, init_std=1.0)
    state = method.init(key)
    q, k, v = drawn(T, 11, 4, 2)
    where = places(seg, T)
    front = lambda name: np.repeat(np.asarray(state.params[name])[None], 2, axis=0)
    there = np.repeat((where['q_seg'] != 0)[:, None, :, None], 4, axis=1)
    mask = np.concatenate([np.repeat(there, 3, axis=3), seen(where, 4, window)], axis=3)
    keys = np.concatenate([front('prefix_k'), k], axis=1)
    values = np.concatenate([front('prefix_v'), v], axis=1)
    got = run(method, state, q, k, v, where, window)
    np.testing.assert_allclose(got, dense(q, keys, values, mask), atol=2e-6)
    assert prefix.EVERYONE == heads.EVERYONE


@pytest.mark.parametrize(('heads', 'kv'), [(4, 2), (4, 1), (2, 2), (6, 3), (3, 3), (1, 1)])
@pytest.mark.parametrize(('seg', 'window'), [(PACKED, None), (PACKED, 3), (PLAIN, None)])
def test_s2_is_dense_attention_under_its_mask(heads, kv, seg, window, key):
    group = 4
    q, k, v = drawn(11, 11, heads, kv)
    where = places(seg, 11)
    i = np.arange(11)
    cells = [i // group] * (heads // 2) + [(i + group // 2) // group] * (heads - heads // 2)
    together = np.stack([c[:, None] == c[None, :] for c in cells])[None]
    want = dense(q, k, v, seen(where, heads, window) & together)
    method = jp.methods.s2(group=group)
    got = run(method, method.init(key), q, k, v, where, window)
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert np.abs(want - dense(q, k, v, seen(where, heads, window))).max() > 1e-3


def test_s2_scores_groups_alone_and_is_dense_when_short_or_cached():
    method, shapes = jp.methods.s2(group=4), []

    def core(q, k, v, **where):
        shapes.append((q.shape, k.shape))
        return attention.Attention(scale=SCALE).apply({}, q, k, v, **where)

    for T, S in ((11, 11), (4, 4), (2, 11)):
        call = lambda q, k, v, where: method.call(None, core, q, k, v, **where)
        jax.eval_shape(call, *drawn(T, S, 4, 2), places([[1] * S] * 2, T))
    half = [((2 * 3, 4, 2, 4), (2 * 3, 4, 1, 4)), ((2 * 4, 4, 2, 4), (2 * 4, 4, 1, 4))]
    assert shapes == [*half, ((2, 4, 4, 4), (2, 4, 2, 4)), ((2, 2, 4, 4), (2, 11, 2, 4))]


def test_s2_gradients_are_those_of_the_dense_form(key):
    """Through padding and both halves: the sum over queries of a random projection."""
    method, (q, k, v) = jp.methods.s2(group=4), drawn(11, 11, 4, 2)
    where = {name: jnp.asarray(x) for name, x in places(PACKED, 11).items()}
    weight = jax.random.normal(key, q.shape)
    core = lambda *args, **kw: attention.Attention(scale=SCALE).apply({}, *args, **kw)
    sparse_loss = lambda q, k, v: (method.call(None, core, q, k, v, **where) * weight).sum()

    def dense_loss(q, k, v):
        cells = (jnp.arange(11) // 4, (jnp.arange(11) + 2) // 4)
        out = []
        for half, cell in enumerate(cells):
            mask = (
                jnp.asarray(seen(places(PACKED, 11), 1)) & (cell[:, None] == cell[None])[None, None]
            )
            rows = q[:, :, 2 * half : 2 * half + 2]
            scores = SCALE * jnp.einsum('bthd,bsd->bhts', rows, k[:, :, half])
            probs = attention.masked_softmax(scores, mask)
            out.append(jnp.einsum('bhts,bsd->bthd', probs, v[:, :, half]))
        return (jnp.concatenate(out, axis=2) * weight).sum()

    got = jit(jax.grad(sparse_loss, argnums=(0, 1, 2)))(q, k, v)
    want = jit(jax.grad(dense_loss, argnums=(0, 1, 2)))(q, k, v)
    assert toys.worst(got, want) <= 5e-6


def sparse_reference(params, z, k):
    """All N neurons: z + gelu(gate o (z D)) U with the straight-through mask as the gate."""
    scores = params['scores']
    hard = (jnp.argsort(jnp.argsort(-scores)) < k).astype(jnp.float32)
    soft = k * jax.nn.softmax(scores)
    gate = hard + soft - jax.lax.stop_gradient(soft)
    h = jax.nn.gelu((z @ params['a']) * gate[None, None, :], approximate=False)
    return z + h @ params['b']


def test_sparse_mlp_and_all_its_gradients_are_the_dense_form(key):
    method = jp.methods.sparse_mlp(dim=6, neurons=16, ratio=0.2)
    state = toys.moved(method.init(key), key, 0.5)
    z, weight = jax.random.normal(jax.random.key(1), (2, 2, 5, 6))
    ours = lambda p, z: (method.call(jp.State(p, {}), lambda z: z, z) * weight).sum()
    dense = lambda p, z: (sparse_reference(p, z, 3) * weight).sum()
    with jax.numpy_dtype_promotion('strict'):
        got = jit(jax.value_and_grad(ours, argnums=(0, 1)))(state.params, z)
    want = jit(jax.value_and_grad(dense, argnums=(0, 1)))(state.params, z)
    assert toys.worst(got, want) <= 1e-5
    assert bool((jnp.abs(got[1][0]['scores']) > 1e-6).all())  # inactive neurons' scores too
    assert int((jnp.abs(got[1][0]['b']).max(axis=1) > 0).sum()) == 3


def test_sparse_mlp_evaluates_the_active_neurons_only(key):
    """FLOPs of the compiled forward pass: 4 T h k and change, not 4 T h N."""
    method = jp.methods.sparse_mlp(dim=32, neurons=128)
    state, z = method.init(key), jnp.ones((1, 64, 32))
    call = lambda state, z: method.call(state, lambda z: z, z)
    flops = jax.jit(call).lower(state, z).compile().cost_analysis()['flops']
    assert 4 * 64 * 32 * 6 <= flops < 4 * 64 * 32 * 128 / 3
    assert sparse.active(method.spec) == 2 * 32 * 6 + 128
    assert sparse.active_neurons(10, 0.05) == 1


def test_sparse_mlp_drops_active_neurons_in_training_only(key):
    method = jp.methods.sparse_mlp(dim=6, neurons=8, ratio=0.5, dropout=0.3)
    state, z = toys.moved(method.init(key), key, 0.5), jax.random.normal(key, (3, 6))
    keys = jax.random.split(key, 3000)
    drawn = jit(jax.vmap(lambda k: method.call(state, lambda z: z, z, key=k)))(keys)
    whole, spread = method.call(state, lambda z: z, z), drawn.std(0)
    assert float((jnp.abs(drawn.mean(0) - whole) / spread).max()) < 5 / 3000**0.5
    assert float(spread.min()) > 0.01


@pytest.mark.parametrize('feedforward', [False, True])
def test_ia3_scales_the_output_with_its_bias_or_the_input(feedforward, key):
    method = jp.methods.ia3(dim=3 if feedforward else 5, feedforward=feedforward)
    state = toys.moved(method.init(key), key, 0.5)
    w, bias, x = jax.random.normal(key, (3, 5)), jnp.arange(5.0), jax.random.normal(key, (2, 3))
    got = method.call(state, lambda x: x @ w + bias[None], x)
    scale = state.params['scale_l'][None]
    want = (x * scale) @ w + bias[None] if feedforward else (x @ w + bias[None]) * scale
    np.testing.assert_allclose(got, want, rtol=1e-6)
    with pytest.raises(ValueError, match=r'ia3: the layer has 4 features, the scale dim='):
        method.call(state, lambda x: x, jnp.ones((2, 4)))


def test_full_keeps_a_float32_copy_of_any_leaf(key):
    method, leaf = jp.methods.full(), jnp.arange(4, dtype=jnp.bfloat16)
    state = method.init(key, leaf)
    assert state.params['value'].dtype == jnp.float32
    np.testing.assert_array_equal(method.weight(state, leaf), leaf.astype(jnp.float32))
    assert (method.apply, float(method.penalty(state, leaf))) == (None, 0.0)
    assert (
        jax.grad(lambda p: method.weight(jp.State(p, {}), leaf).sum())(state.params)[
            'value'
        ].tolist()
        == [1.0] * 4
    )


REFUSED = [
    ('daa', {'heads': 0}, 'heads must be at least 1, got 0'),
    ('daa', {'heads': 2, 'num_buckets': 1}, 'num_buckets must be at least 2, got 1'),
    ('daa', {'heads': 2, 'max_len': 16}, r'above num_buckets // 2 = 16, got 16; .*choice is 17'),
    ('sparse_mlp', {'dim': 0}, 'at least 1, got 0 and 128'),
    ('sparse_mlp', {'dim': 4, 'ratio': 0.0}, r'ratio must be in \(0, 1\], got 0.0'),
    ('sparse_mlp', {'dim': 4, 'dropout': 1.0}, r'dropout must be in \[0, 1\), got 1.0'),
    ('s2', {'group': 5}, 'even and at least 2, got 5; the nearest valid choice is 6'),
    ('s2', {'group': 0}, 'nearest valid choice is 2'),
    ('ia3', {'dim': 0}, 'dim must be at least 1, got 0'),
    ('prefix', {'kv_heads': 1, 'head_dim': 2, 'length': 0}, 'length must be at least 1, got 0'),
    ('prefix', {'kv_heads': 1, 'head_dim': 2, 'init_std': 0.0}, 'init_std must be positive'),
]


@pytest.mark.parametrize(('name', 'options', 'message'), REFUSED)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=f'{name}: .*{message}'):
        jp.methods.get(name)(**options)
