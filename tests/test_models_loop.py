"""A decoding loop's weights, cache and products: the same numbers, and no copies in the loop."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from eval import decode, until
from eval.sampling import GREEDY
from jaxpeft import models
from jaxpeft.models import cache as caches
from jaxpeft.models import loop
from tests.models_tiny import CONFIGS, config, jit, random_params, tokens

NEW = 5
NEVER = 99


def made(kind, scan=True):
    model = models.build(config(kind), scan=scan)
    params = random_params(models.build(config(kind)))
    return model, jax.tree.map(jnp.asarray, params if scan else models.unstack(params))


@pytest.mark.parametrize('rows', [1, 2, 5])
@pytest.mark.parametrize('n_out', [8, 6])  # in PARTS of equal size, or in one
def test_the_product_is_x_w(rows, n_out):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((rows, 16)), rng.standard_normal((16, n_out))
    got = jax.jit(loop.product)(x.astype(np.float32), w.astype(np.float32))
    np.testing.assert_allclose(got, x @ w, rtol=1e-5, atol=1e-5)
    assert jax.jit(loop.product)(jnp.bfloat16(x), jnp.bfloat16(w)).dtype == jnp.bfloat16


def test_apart_and_joined_are_inverse_and_touch_only_stacked_kernels():
    params = made('qwen2')[1]
    split = models.apart(params)
    kernels = split['model']['layers']['self_attn']['q_proj']['kernel']
    assert [w.shape for w in kernels] == [(32, 16)] * 3
    assert (
        split['model']['embed_tokens']['embedding'] is params['model']['embed_tokens']['embedding']
    )
    biases = (tree['model']['layers']['self_attn']['q_proj']['bias'] for tree in (split, params))
    assert next(biases) is next(biases)
    jax.tree.map(np.testing.assert_array_equal, models.joined(split), params)
    unrolled = models.unstack(params)
    assert all(
        a is b
        for a, b in zip(*map(jax.tree.leaves, (models.apart(unrolled), unrolled)), strict=True)
    )


def test_elsewhere_than_on_cpu_nothing_is_taken_apart(monkeypatch):
    model, params = made('llama')
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert models.apart(params) is params
    cache = model.init_cache(1, 4)
    assert caches.apart(cache) is cache


@pytest.mark.parametrize('rows', [1, 3])
@pytest.mark.parametrize('scan', [True, False])
@pytest.mark.parametrize('kind', CONFIGS)
def test_single_tokens_through_the_loop_s_form_equal_a_plain_pass(kind, scan, rows):
    model, params = made(kind, scan)
    text = tokens(rows, 9)
    want = jit(lambda p: model.apply({'params': p}, text))(params)
    cache = model.init_cache(rows, 9)
    _, cache = jit(lambda p, c: model.apply({'params': p}, text[:, :6], cache=c))(params, cache)
    single, cache = models.apart(params), caches.apart(cache)
    step = jit(lambda p, t, c: model.apply({'params': models.joined(p)}, t, cache=c))
    for at in range(6, 9):
        logits, cache = step(single, text[:, at : at + 1], cache)
        np.testing.assert_allclose(logits[:, 0], want[:, at], rtol=2e-4, atol=2e-5)
    assert int(cache['index']) == 9


@pytest.mark.parametrize('scan', [True, False])
def test_a_model_with_remat_has_a_cache_as_well(scan):
    model, params = made('gpt_neo', scan)
    model = model.clone(remat='full')
    text = tokens(2, 7)
    want = jit(lambda p: model.apply({'params': p}, text))(params)
    step = jit(lambda p, t, c: model.apply({'params': models.joined(p)}, t, cache=c))
    _, cache = step(params, text[:, :6], model.init_cache(2, 7))
    logits, _ = step(models.apart(params), text[:, 6:], caches.apart(cache))
    np.testing.assert_allclose(logits[:, 0], want[:, 6], rtol=2e-4, atol=2e-5)


def test_several_tokens_into_a_cache_that_is_apart():
    model, params = made('qwen3')
    text = tokens(1, 8)
    want = jit(lambda p: model.apply({'params': p}, text))(params)
    step = jit(lambda p, t, c: model.apply({'params': p}, t, cache=c))
    _, cache = step(params, text[:, :3], model.init_cache(1, 8))
    logits, _ = step(params, text[:, 3:], caches.apart(cache))
    np.testing.assert_allclose(logits, want[:, 3:], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize('rows', [1, 3])
@pytest.mark.parametrize('kind', ['gpt_neo', 'llama'])
def test_the_compiled_loop_copies_neither_weights_nor_keys(kind, rows):
    """Of the program that runs: its temporaries hold no kernel, its loop no copy of a cache."""
    model, params = made(kind)
    forward = jp.bind({}, model.apply)
    compiled = decode.decode.lower(
        forward, model, jp.State({}, {}), params, models.apart(params), None, tokens(rows, 6),
        np.full(rows, 6, np.int32), np.zeros((rows, NEW), np.float32), new_tokens=NEW,
        eos=np.array([NEVER], np.int32), sampling=GREEDY,
    ).compile()  # fmt: skip
    text = compiled.as_text()
    held = model.init_cache(rows, 6 + NEW - 1)['k'].shape[1:]
    kernels = [w.shape for w in jax.tree.leaves(params) if w.ndim == 3]
    assert not copies(loop_of(text), [held, held[1:]])
    assert not copies(text, [*kernels, *((n, o, i) for n, i, o in kernels)])


def copies(text, shapes):
    """The instructions that make an array of one of the shapes by moving others."""
    sizes = '|'.join(','.join(map(str, shape)) for shape in shapes)
    return re.findall(rf'%\S*(?:copy|concatenate|transpose)\S* = f32\[(?:{sizes})\].*', text)


def loop_of(text):
    """The body of the decoding loop: of all loops the one with all layers in it, the longest."""
    parts = {part.split(' ', 1)[0]: part for part in re.split(r'\n(?=%|ENTRY )', text)}
    return max((parts[name] for name in re.findall(r' body=(%[\w.-]+)', text)), key=len)


def test_a_caller_s_own_weights_for_the_loop_are_used():
    model, params = made('gpt_neo')
    run = jp.bind({}, model.apply), jp.State({}, {}), params, model
    prompts = list(tokens(3, 6))
    want = decode.generate(*run, prompts, new_tokens=NEW, eos=NEVER)
    single = models.apart(params)
    for got in (
        decode.generate(*run, prompts, new_tokens=NEW, eos=NEVER, loop=single),
        until.generate(
            *run, prompts, new_tokens=NEW, eos=[NEVER], stopped=lambda row: False, loop=single
        ),
    ):
        assert [row.tolist() for row in got] == [row.tolist() for row in want]
    other = jax.tree.map(jnp.zeros_like, single)
    got = decode.generate(*run, prompts, new_tokens=NEW, eos=NEVER, loop=other)
    assert [row[0] for row in got] == [row[0] for row in want]  # of the prompt
    assert all((row[1:] == 0).all() for row in got)  # the argmax of equal logits
