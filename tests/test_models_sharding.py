"""Where a base model lies on a mesh, and that it computes the same there."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxpeft import models
from tests.models_tiny import config, jit, random_params, tokens


def mesh(data, fsdp, tensor):
    names = ('data', 'fsdp', 'tensor')
    return jax.make_mesh((data, fsdp, tensor), names, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def specs(kind, the_mesh, scan=True, **changes):
    shapes = models.param_shapes(models.build(config(kind, **changes), scan=scan))
    return jax.tree.map(lambda place: place.spec, models.base_shardings(shapes, the_mesh))


def test_decoder_rules():
    got = specs('qwen2', mesh(2, 2, 2), vocab_size=64, tie_word_embeddings=False)
    layer = got['model']['layers']
    for name in ('q_proj', 'k_proj', 'v_proj'):
        assert layer['self_attn'][name] == {'kernel': P(None, 'fsdp', 'tensor'), 'bias': P()}
    assert layer['self_attn']['o_proj'] == {'kernel': P(None, 'tensor', 'fsdp')}
    assert layer['mlp']['gate_proj']['kernel'] == layer['mlp']['up_proj']['kernel']
    assert layer['mlp']['up_proj']['kernel'] == P(None, 'fsdp', 'tensor')
    assert layer['mlp']['down_proj']['kernel'] == P(None, 'tensor', 'fsdp')
    assert layer['input_layernorm']['weight'] == P()
    assert got['model']['embed_tokens']['embedding'] == P('tensor', 'fsdp')
    assert got['lm_head']['kernel'] == P('fsdp', 'tensor')


def test_gpt_neo_rules_unrolled():
    got = specs('gpt_neo', mesh(1, 2, 4), scan=False)['transformer']
    layer = got['h']['3']
    assert layer['attn']['attention']['q_proj']['kernel'] == P('fsdp', 'tensor')
    assert layer['attn']['attention']['out_proj'] == {'kernel': P('tensor', 'fsdp'), 'bias': P()}
    assert layer['mlp']['c_fc'] == {'kernel': P('fsdp', 'tensor'), 'bias': P()}
    assert layer['mlp']['c_proj'] == {'kernel': P('tensor', 'fsdp'), 'bias': P()}
    assert layer['ln_1'] == {'scale': P(), 'bias': P()}
    assert got['wpe']['embedding'] == P('tensor', 'fsdp')


def test_axes_that_do_not_fit_are_dropped():
    assert specs('llama', mesh(2, 2, 2))['lm_head']['kernel'] == P('fsdp', None)  # 61 words
    got = specs('llama', jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)))
    assert got['model']['layers']['mlp']['up_proj']['kernel'] == P(None, None, None)


def test_sharded_forward_equals_one_device():
    for kind in ('gpt_neo', 'qwen3'):
        model = models.build(config(kind, vocab_size=64))
        params = random_params(model)
        apply = jit(lambda p, t, model=model: model.apply({'params': p}, t))
        places = models.base_shardings(params, mesh(2, 2, 2))
        split = jax.device_put(params, places)
        rows = jax.device_put(tokens(2, 12), jax.NamedSharding(mesh(2, 2, 2), P(('data',))))
        got = jax.block_until_ready(apply(split, rows))
        expected = apply(params, tokens(2, 12))
        np.testing.assert_allclose(got, expected, atol=2e-5, rtol=0)


def test_explicit_mesh_is_refused():
    explicit = jax.make_mesh((8,), ('fsdp',), axis_types=(jax.sharding.AxisType.Explicit,))
    with pytest.raises(ValueError, match=r'AxisType.Auto.*Explicit'):
        specs('llama', explicit)
