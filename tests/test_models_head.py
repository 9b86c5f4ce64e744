"""The loss's short way through a bare head: the gradients of the plain way, with fewer products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from eval.bench import flops
from jaxpeft import models
from jaxpeft.models import head, online
from tests.models_tiny import config, jit, random_params, tokens

SELECT = np.array([3, 23, 0, 7, 7, 15, 1], np.int32)  # of 2 x 12 tokens
LABELS = np.array([5, 60, 0, 9, 8, 33, 2], np.int32)
KINDS = {'gpt_neo': ('transformer', 'ln_f', 'wte'), 'qwen3': ('model', 'norm', 'lm_head')}


def parts(kind, params):
    """The last norm, below the head, and the head's matrix, tied or not."""
    trunk, norm, table = KINDS[kind]
    return params[trunk][norm], params[trunk][table] if kind == 'gpt_neo' else params[table]


def put(kind, params, norm, table):
    trunk, norm_name, name = KINDS[kind]
    inner = params[trunk] | {norm_name: norm}
    if kind == 'gpt_neo':
        return params | {trunk: inner | {name: table}}
    return params | {trunk: inner, name: table}


def loss_of(kind, dtype):
    model = models.build(config(kind), dtype=dtype)
    params = random_params(model)

    def loss(norm, table):
        p = put(kind, params, norm, table)
        nll = model.apply({'params': p}, tokens(2, 12), select=SELECT, labels=LABELS)
        return (nll * jnp.arange(7.0)).sum()  # a weight of 0 and unequal ones

    return loss, parts(kind, params)


@pytest.mark.parametrize('kind', sorted(KINDS))
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('chunk', [3, 512])  # three chunks, the last padded; one
def test_gradients_are_those_of_the_plain_way(kind, dtype, chunk, monkeypatch):
    """Below a frozen head, and of the head's own matrix where that is trained."""
    monkeypatch.setattr(head, 'CHUNK', chunk)
    monkeypatch.setattr(online, 'ROWS', chunk)
    monkeypatch.setattr(online, 'CELLS', 20 * chunk)  # words of 61, three times; all of them
    loss, (norm, table) = loss_of(kind, dtype)

    def grads():
        frozen = jit(jax.value_and_grad(lambda norm: loss(norm, table)))(norm)
        return frozen, jit(jax.grad(lambda *a: loss(*a), argnums=(0, 1)))(norm, table)

    short = grads()
    monkeypatch.setattr(head, '_only_matrix', lambda module: None)
    plain = grads()
    limit = 1e-5 if dtype == jnp.float32 else 0.05  # either way is 3 % from float32's there
    for a, b in zip(jax.tree.leaves(short), jax.tree.leaves(plain), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.linalg.norm(a - b) <= limit * np.linalg.norm(b)
        assert np.linalg.norm(b) > 0


@pytest.mark.parametrize('kind', sorted(KINDS))
def test_a_frozen_head_multiplies_twice(kind, monkeypatch):
    """Logits and the gradient below: one product less than building the logits again."""
    monkeypatch.setattr(head, 'CHUNK', 4)  # two chunks of 4: one row of padding
    loss, (norm, table) = loss_of(kind, jnp.float32)
    step = lambda: jax.value_and_grad(lambda norm: loss(norm, table))  # anew: it is not traced yet
    short = flops.count(step(), norm)
    monkeypatch.setattr(head, '_only_matrix', lambda module: None)
    plain = flops.count(step(), norm)
    # A hidden size of 16 and 61 words; three times 8 rows, or twice the 7 that there are.
    assert plain - short == 2 * 16 * 61 * (3 * 8 - 2 * 7)


@pytest.mark.parametrize('kind', sorted(KINDS))
@pytest.mark.parametrize('side', ['takes', 'gives'])
def test_an_interceptor_changes_the_loss_and_its_gradient(kind, side):
    """One that halves what the head takes, or what it gives: as in the logits of the plain way."""
    model = models.build(config(kind))
    params = random_params(model)
    norm, table = parts(kind, params)

    def halve(call, args, kwargs, context):
        if context.module.name != KINDS[kind][2] or context.method_name == 'setup':
            return call(*args, **kwargs)
        looked_up = jnp.issubdtype(args[0].dtype, jnp.integer)
        if side == 'takes' and not looked_up:
            args = (args[0] / 2, *args[1:])
        out = call(*args, **kwargs)
        return out / 2 if side == 'gives' and not looked_up else out

    def loss(norm, plain):
        with nn.intercept_methods(halve):
            how = {} if plain else {'labels': LABELS}
            out = model.apply(
                {'params': put(kind, params, norm, table)}, tokens(2, 12), select=SELECT, **how
            )
        if plain:
            out = -jax.nn.log_softmax(out)[jnp.arange(7), LABELS]
        return (out * jnp.arange(7.0)).sum()

    value, grads = jit(jax.value_and_grad(lambda norm: loss(norm, plain=False)))(norm)
    wanted, wanted_grads = jit(jax.value_and_grad(lambda norm: loss(norm, plain=True)))(norm)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, wanted_grads
    )
    unchanged = loss_of(kind, jnp.float32)[0](norm, table)
    assert abs(unchanged - wanted) > 0.01 * wanted


def test_the_exponentials_take_the_place_of_the_logits():
    """[N, V] once in memory, and what is small beside it."""
    rows, words, width = 256, 4096, 16
    table = jax.ShapeDtypeStruct((words, width), jnp.float32)
    hidden = jax.ShapeDtypeStruct((rows, width), jnp.float32)
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)

    def loss(hidden, table, labels):
        return head._nll(hidden @ table.T, labels).sum()

    compiled = jax.jit(jax.value_and_grad(loss)).lower(hidden, table, labels).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.2 * 4 * rows * words


def test_the_loss_is_that_of_logsoftmax_whatever_the_label():
    """The largest logit as the label, equal logits, and an infinite one."""
    logits = jnp.array([[0.0, 50.0, -3.0], [1.0, 1.0, 1.0], [2.0, -jnp.inf, 0.0]])
    labels = jnp.array([1, 2, 0])
    plain = -jax.nn.log_softmax(logits)[jnp.arange(3), labels]
    np.testing.assert_allclose(head._nll(logits, labels), plain, atol=1e-6)
