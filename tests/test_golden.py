"""Golden numbers of the methods whose own test has none: the equation in float64 numpy, pinned.

Kernel, input and leaves are formulas, no draws: another JAX version, backend or
seed gives the same. A change here is a change of what saved adapters mean.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

import jaxpeft as jp

PINNED = {'lora', 'dora', 'kasa'}  # in their own tests
PINS = {
    'hira': [0.387662, 0.737811, 0.719519, 0.465881],
    'knowhira': [0.388514, 0.615243, 0.617705, 0.327674],
    'hylorada': [0.406613, 0.528212, 0.366258, 0.281939],
    'hylorada_v2': [0.422664, 0.500013, 0.341436, 0.292564],
    'daa': [0.350479, 0.092008],
    'prefix': [0.154318, 0.208911],
    'ia3': [0.920735, 3.99499, -1.909297],
    'sparse_mlp': [1.139809, 1.177913, 0.707483],
}


def wave(*shape, speed):
    """sin(speed k + 1) in the order of memory, float64."""
    return np.sin(speed * np.arange(np.prod(shape)) + 1.0).reshape(shape)


W, X = wave(3, 4, speed=0.7), wave(2, 3, speed=0.5)
A, B = 0.5 * wave(3, 2, speed=0.9), 0.5 * wave(2, 4, speed=1.3)
SIGMOID = lambda x: 1.0 / (1.0 + np.exp(-x))


def applied(method, consts=(), side=None, **leaves):
    """The method's output with these leaves, as float64."""
    asked = {'a': A, 'b': B, **leaves}
    to32 = lambda tree: {k: jnp.asarray(v, jnp.float32) for k, v in tree.items()}
    state = jp.State(to32(asked), to32(dict(consts)))
    y = method.apply(state, jnp.asarray(W, jnp.float32), jnp.asarray(X, jnp.float32), side=side)
    return np.asarray(y, np.float64)


def hylorada(rho=1.0):
    """Both paths written out: beta of LoRA's, 1 - beta of DoRA's with the blended magnitude."""
    m0, m = np.linalg.norm(W, axis=0), np.array([1.0, 2.0, 0.5, 1.5])
    gamma, beta = SIGMOID(0.3), SIGMOID(-0.2)
    scale = (gamma * m + (1 - gamma) * m0) / np.linalg.norm(W + 1.5 * A @ B, axis=0)
    y = X @ W + rho * (1.5 * X @ A @ B)
    leaves = {'m': m, 'gate': 0.3, 'residual': -0.2}
    return leaves, {'norm': m0}, (1 - beta) * scale * y + beta * y


def test_hira():
    want = X @ (W * (1 + A @ B))
    np.testing.assert_allclose(applied(jp.methods.hira(rank=2)), want, atol=2e-6)
    np.testing.assert_allclose(want[0], PINS['hira'], atol=1e-6)


def test_knowhira():
    sigma, gate = np.array([1.0, 0.25]), np.array([0.4, -0.7])
    want = X @ (W * (1 + 0.6 * A @ np.diag(sigma * SIGMOID(gate)) @ B))
    got = applied(jp.methods.knowhira(rank=2), {'sigma': sigma}, gate=gate)
    np.testing.assert_allclose(got, want, atol=2e-6)
    np.testing.assert_allclose(want[0], PINS['knowhira'], atol=1e-6)


def test_hylorada():
    leaves, consts, want = hylorada()
    got = applied(jp.methods.hylorada(rank=2, alpha=3), consts, **leaves)
    np.testing.assert_allclose(got, want, atol=2e-6)
    np.testing.assert_allclose(want[0], PINS['hylorada'], atol=1e-6)


def test_hylorada_v2():
    prior, w_s = wave(2, 3, speed=0.3), np.array([0.5, -1.0, 2.0])
    leaves, consts, want = hylorada(0.5 + SIGMOID(prior @ w_s)[:, None])
    method = jp.methods.hylorada_v2(rank=2, alpha=3, structure_dim=3)
    side = {'structure': jnp.asarray(prior, jnp.float32)}
    got = applied(method, consts, side, **leaves, w_s=w_s)
    np.testing.assert_allclose(got, want, atol=2e-6)
    np.testing.assert_allclose(want[0], PINS['hylorada_v2'], atol=1e-6)


def core(q, k, v, *, q_pos, k_pos, q_seg, k_seg, bias=None, window=None):
    """One head of causal attention in float32, as jaxpeft.models' core is called."""
    del window
    scores = jnp.einsum('bthd,bshd->bhts', q, k) + (0.0 if bias is None else bias)
    seen = (q_pos[:, :, None] >= k_pos[:, None, :]) | (k_seg < 0)[:, None, :]
    probs = jax.nn.softmax(jnp.where(seen[:, None], scores, -1e9), axis=-1)
    return jnp.einsum('bhts,bshd->bthd', probs, v)


def attended(method, leaves):
    """The override's output over that core, four tokens, one head of two."""
    q, k, v = (jnp.asarray(wave(1, 4, 1, 2, speed=s), jnp.float32) for s in (0.3, 0.6, 1.1))
    where = jnp.arange(4, dtype=jnp.int32)[None]
    ones = jnp.ones((1, 4), jnp.int32)
    state = jp.State({k: jnp.asarray(x, jnp.float32) for k, x in leaves.items()}, {})
    y = method.call(state, core, q, k, v, q_pos=where, k_pos=where, q_seg=ones, k_seg=ones)
    return np.asarray(y, np.float64)[0, -1, 0]


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def test_daa():
    q, k, v = (wave(4, 2, speed=s) for s in (0.3, 0.6, 1.1))
    table = np.array([0.3, -0.2, 0.5, 0.1])  # distances 0, 1, 2 to 3, and from 4 on
    want = softmax(1.7 * q[-1] @ k.T + table[[2, 2, 1, 0]]) @ v
    got = attended(
        jp.methods.daa(heads=1, num_buckets=4, max_len=8), {'alpha': [1.7], 'bias': table[:, None]}
    )
    np.testing.assert_allclose(got, want, atol=2e-6)
    np.testing.assert_allclose(want, PINS['daa'], atol=1e-6)


def test_prefix():
    q, k, v = (wave(4, 2, speed=s) for s in (0.3, 0.6, 1.1))
    front_k, front_v = wave(2, 2, speed=0.8), wave(2, 2, speed=1.9)
    want = softmax(q[-1] @ np.concatenate([front_k, k]).T) @ np.concatenate([front_v, v])
    leaves = {'prefix_k': front_k[:, None], 'prefix_v': front_v[:, None]}
    got = attended(jp.methods.prefix(kv_heads=1, head_dim=2, length=2), leaves)
    np.testing.assert_allclose(got, want, atol=2e-6)
    np.testing.assert_allclose(want, PINS['prefix'], atol=1e-6)


def test_ia3_and_full():
    scale = np.array([0.5, 2.0, -1.0])
    method = jp.methods.ia3(dim=3)
    state = jp.State({'scale_l': jnp.asarray(scale, jnp.float32)}, {})
    got = method.call(state, lambda x: x + 1.0, jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(got, (X + 1.0) * scale, atol=2e-6)
    np.testing.assert_allclose(((X + 1.0) * scale)[0], PINS['ia3'], atol=1e-6)
    full = jp.methods.full()
    moved = full.weight(jp.State({'value': jnp.asarray(W + 1.0)}, {}), jnp.asarray(W))
    np.testing.assert_allclose(moved, W + 1.0, atol=2e-6)


def test_sparse_mlp():
    """Three of four neurons by their scores, added to what the FFN gave."""
    scores, a, b = np.array([0.1, -0.3, 0.7, 0.2]), wave(3, 4, speed=0.9), wave(4, 3, speed=1.3)
    hidden = X @ a * np.array([1.0, 0.0, 1.0, 1.0])
    gelu = 0.5 * hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    want = X + gelu @ b
    leaves = {'a': a, 'b': b, 'scores': scores}
    state = jp.State({k: jnp.asarray(x, jnp.float32) for k, x in leaves.items()}, {})
    method = jp.methods.sparse_mlp(dim=3, neurons=4, ratio=0.75)
    got = method.call(state, lambda x: x, jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(got, want, atol=2e-6)
    np.testing.assert_allclose(want[0], PINS['sparse_mlp'], atol=1e-6)


def test_every_method_is_pinned():
    """Here or in its own test; s2 has no numbers of its own but a mask, tested as such."""
    assert {*jp.methods.names()} == {*PINNED, *PINS, 'full', 's2'}
