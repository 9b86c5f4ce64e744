"""Configs: what is read from config.json, what is refused and how, the table of known models."""

import dataclasses
import json

import pytest

from jaxpeft import models
from jaxpeft.models.config import to_hf
from jaxpeft.models.known import KNOWN
from jaxpeft.models.names import flatten
from jaxpeft.models.rope import frequencies
from tests.models_tiny import CONFIGS, NEO, ROTARY, config


def test_gpt_neo_attention_types_expand_to_windows():
    c = models.from_hf(
        NEO | {'attention_types': [[['global'], 1], [['local', 'global'], 1], [['local'], 1]]}
    )
    assert c.windows == (None, 4, None, 4)
    assert (c.family, c.head_dim, c.num_kv_heads, c.intermediate_size) == ('gpt_neo', 8, 2, 64)
    assert (c.tie_embeddings, c.activation, c.eos_token_id) == (True, 'gelu_new', 3)


def test_decoder_fields():
    c = config('qwen2')
    assert (c.family, c.qkv_bias, c.o_bias, c.qk_norm, c.tie_embeddings) == (
        'decoder', True, False, False, True,
    )  # fmt: skip
    assert config('qwen3').qk_norm
    biased = config('llama', attention_bias=True)
    assert biased.qkv_bias
    assert biased.o_bias
    derived = models.from_hf(CONFIGS['llama'] | {'head_dim': None})
    assert derived.head_dim == 4


@pytest.mark.parametrize(
    'keys',
    [
        {'rope_theta': 5e5, 'rope_scaling': None},
        {'rope_parameters': {'rope_theta': 5e5, 'rope_type': 'default'}},
    ],
)
def test_rope_theta_of_transformers_4_and_5(keys):
    assert (config('llama', **keys).rope_theta, config('llama', **keys).rope) == (5e5, ())


def test_several_eos_ids():
    c = config('llama', eos_token_id=[7, 9])
    assert (c.eos_token_id, c.eos_token_ids) == (7, (7, 9))


def test_config_is_frozen_and_hashable():
    c = config('llama', rope_scaling={'type': 'linear', 'factor': 2.0})
    assert hash(c) == hash(dataclasses.replace(c))
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.vocab_size = 1
    plain = frequencies(config('llama'))
    assert (frequencies(c) == plain / 2).all()


REFUSED = [
    ({'model_type': 'gpt_neox'}, "must be one of .*'gpt_neo'.*got 'gpt_neox' .*nearest: gpt_neo"),
    ({'model_type': None}, 'must be one of'),
    ({'hidden_act': 'silo'}, "got 'silo'; nearest: silu"),
    ({'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}}, "one of .*'llama3'.*got 'yarn'"),
    ({'rope_scaling': {'rope_type': 'llama3', 'factor': 4.0}}, "lacks 'low_freq_factor'"),
    ({'rope_parameters': {'rope_type': 'default', 'partial_rotary_factor': 0.5}}, 'partial_rotary'),
    ({'use_sliding_window': True, 'max_window_layers': 2}, 'sliding-window'),
    ({'layer_types': ['full_attention', 'sliding_attention', 'full_attention']}, 'sliding-window'),
    ({'mlp_bias': True}, 'mlp_bias must be false'),
    ({'num_key_value_heads': 3}, 'multiple of num_key_value_heads, got 4 and 3'),
    ({'head_dim': 5}, 'head_dim must be even'),
    ({'vocab_size': None}, "lacks 'vocab_size'"),
    ({'quantization_config': {'bits': 4}}, 'quantization_config'),
]


@pytest.mark.parametrize(('change', 'message'), REFUSED, ids=[str(c) for c, _ in REFUSED])
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        models.from_hf(ROTARY | {'model_type': 'qwen2'} | change)


@pytest.mark.parametrize(
    'keys',
    [
        {'quantization_config': None},
        {'use_sliding_window': True, 'max_window_layers': 3},  # of 3: none slides
        {'use_sliding_window': True, 'sliding_window': None, 'max_window_layers': 0},
        {'use_sliding_window': True, 'layer_types': ['full_attention'] * 3, 'max_window_layers': 0},
    ],
)
def test_options_that_change_nothing_are_taken(keys):
    assert config('qwen2', **keys) == config('qwen2')


def test_gpt_neo_refused():
    with pytest.raises(ValueError, match=r'expand to num_layers=4 .* got'):
        models.from_hf(NEO | {'attention_types': [[['global', 'local'], 1]]})
    with pytest.raises(ValueError, match='multiple of num_heads, got 16 and 3'):
        models.from_hf(NEO | {'num_heads': 3})


@pytest.mark.parametrize('kind', sorted(CONFIGS))
def test_to_hf_and_back(kind):
    extra = {} if kind == 'gpt_neo' else {
        'rope_scaling': {
            'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
            'original_max_position_embeddings': 16,
        }
    }  # fmt: skip
    c = config(kind, **extra)
    assert models.from_hf(to_hf(c), name=c.name) == c


PUBLISHED = {
    'EleutherAI/gpt-neo-125m': 125.2,
    'gpt-neo-1.3b': 1315.6,
    'EleutherAI/gpt-neo-2.7B': 2651.3,
    'Qwen2-0.5B': 494.0,
    'Qwen/Qwen2.5-0.5B': 494.0,
    'Qwen2.5-1.5B': 1543.7,
    'Qwen2.5-7B': 7615.6,
    'Qwen/Qwen3-0.6B': 596.0,
    'SmolLM2-135M': 134.5,
    'SmolLM2-360M': 361.8,
    'meta-llama/Meta-Llama-3-8B': 8030.3,
}


@pytest.mark.parametrize(('name', 'millions'), PUBLISHED.items())
def test_known_models_have_their_published_sizes(name, millions):
    c = models.config_of(name)
    assert c.name in KNOWN
    shapes = models.param_shapes(models.build(c))
    total = sum(leaf.size for _, leaf in flatten(shapes))
    assert total / 1e6 == pytest.approx(millions, abs=0.1)


def test_every_known_model_is_tested():
    assert {models.config_of(name).name for name in PUBLISHED} == set(KNOWN)


def test_config_of_folder_and_unknown(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(NEO))
    assert models.config_of(str(tmp_path)).windows == (None, 4, None, 4)
    with pytest.raises(ValueError, match=r'EleutherAI/gpt-neo-1.3B'):
        models.config_of('EleutherAI/gpt-neo-1.4B')
    with pytest.raises(ValueError, match='no config is known'):
        models.config_of('someone/gpt-neo-1.3B')
    for text, message in [('{"model_type": ', 'config.json is no JSON'), ('[]', 'got list')]:
        (tmp_path / 'config.json').write_text(text)
        with pytest.raises(ValueError, match=message):
            models.config_of(str(tmp_path))
