"""What a base model is: one frozen dataclass, read from and written to HF's `config.json`.

Two module families cover four model types: `gpt_neo` (learned positions, alternating global and
local attention) and `decoder` (Llama, Qwen2/2.5, Qwen3: rotary positions, grouped queries, SwiGLU).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxpeft.near import nearest

MODEL_TYPES = {'gpt_neo': 'gpt_neo', 'llama': 'decoder', 'qwen2': 'decoder', 'qwen3': 'decoder'}
ACTIVATIONS = ('gelu_new', 'gelu_pytorch_tanh', 'gelu', 'relu', 'silu', 'swish')
ROPE_TYPES = ('default', 'linear', 'llama3')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that fixes a base model's function and the shapes of its parameters.

    Attributes:
      model_type: HF's name: 'gpt_neo', 'llama', 'qwen2' or 'qwen3'.
      num_kv_heads: key/value heads; equal to `num_heads` without grouped queries.
      max_positions: learned positions of GPT-Neo (a hard limit); for information in the decoder
        family.
      windows: one entry a layer, the width of its local attention, None for global attention.
      rope: `(('rope_type', ..), ('factor', ..), ..)`, sorted pairs so that the config stays
        hashable.
      qkv_bias, o_bias: whether the attention projections have biases (decoder family).
      qk_norm: RMS norm of every query and key head before the rotation (Qwen3).
      eos_token_ids: all end-of-text ids; `eos_token_id` is the first of them.
      name: where the model came from: a hub id, a folder, or a known name.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    activation: str
    norm_eps: float
    tie_embeddings: bool
    windows: tuple[int | None, ...]
    rope_theta: float = 10000.0
    rope: tuple[tuple[str, Any], ...] = ()
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    name: str = ''

    @property
    def family(self) -> str:
        """'gpt_neo' or 'decoder': which Linen module runs it."""
        return MODEL_TYPES[self.model_type]

    @property
    def eos_token_id(self) -> int | None:
        """The first end-of-text id, None where the model names none."""
        return self.eos_token_ids[0] if self.eos_token_ids else None


def from_hf(hf: Mapping[str, Any], name: str = '') -> ModelConfig:
    """Reads the dict of a `config.json`.

    Dropout rates are ignored: a frozen base has none, and an adapter brings its own.

    Raises:
      ValueError: an unknown `model_type`, a missing key, or an option that these models do not
        compute.
    """
    model_type = hf.get('model_type')
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f'model_type must be one of {sorted(MODEL_TYPES)}, got {model_type!r} '
            f'in {name or "the config"}; {nearest(str(model_type), MODEL_TYPES)}'
        )
    if hf.get('quantization_config'):
        raise ValueError(
            f'{name or "the config"} has a quantization_config: the base must hold plain float '
            'weights; use the unquantized checkpoint'
        )
    config = _gpt_neo(hf, name) if model_type == 'gpt_neo' else _decoder(hf, name)
    _check(config)
    return config


def to_hf(config: ModelConfig, dtype: str = 'float32') -> dict[str, Any]:
    """The dict of a `config.json` for transformers 4.57 and 5 (rotary keys in the older form)."""
    eos: int | list[int] | None = config.eos_token_id
    if len(config.eos_token_ids) > 1:
        eos = list(config.eos_token_ids)
    common = {
        'model_type': config.model_type,
        'vocab_size': config.vocab_size,
        'hidden_size': config.hidden_size,
        'intermediate_size': config.intermediate_size,
        'max_position_embeddings': config.max_positions,
        'tie_word_embeddings': config.tie_embeddings,
        'bos_token_id': config.bos_token_id,
        'eos_token_id': eos,
        'pad_token_id': config.pad_token_id,
        'dtype': dtype,
    }
    if config.model_type == 'gpt_neo':
        return common | _gpt_neo_keys(config)
    return common | _decoder_keys(config)


def _gpt_neo_keys(config: ModelConfig) -> dict[str, Any]:
    kinds = ['global' if window is None else 'local' for window in config.windows]
    return {
        'architectures': ['GPTNeoForCausalLM'],
        'num_layers': config.num_layers,
        'num_heads': config.num_heads,
        'attention_types': [[[kind], 1] for kind in kinds],
        'attention_layers': kinds,
        'window_size': next((w for w in config.windows if w is not None), config.max_positions),
        'activation_function': config.activation,
        'layer_norm_epsilon': config.norm_eps,
    }


def _decoder_keys(config: ModelConfig) -> dict[str, Any]:
    classes = {
        'llama': 'LlamaForCausalLM',
        'qwen2': 'Qwen2ForCausalLM',
        'qwen3': 'Qwen3ForCausalLM',
    }
    keys = {
        'architectures': [classes[config.model_type]],
        'num_hidden_layers': config.num_layers,
        'num_attention_heads': config.num_heads,
        'num_key_value_heads': config.num_kv_heads,
        'head_dim': config.head_dim,
        'hidden_act': config.activation,
        'rms_norm_eps': config.norm_eps,
        'rope_theta': config.rope_theta,
        'rope_scaling': dict(config.rope) if config.rope else None,
    }
    if config.model_type == 'llama':
        keys |= {'attention_bias': config.qkv_bias, 'mlp_bias': False}
    if config.model_type == 'qwen3':
        keys |= {'attention_bias': config.qkv_bias}
    if config.model_type != 'llama':
        keys |= {'use_sliding_window': False}
    return keys


def _get(hf: Mapping[str, Any], key: str, name: str) -> Any:
    if hf.get(key) is None:
        raise ValueError(f'{name or "the config"} lacks {key!r}; its keys are {sorted(hf)}')
    return hf[key]


def end_ids(hf: Mapping[str, Any]) -> tuple[int, ...]:
    """`eos_token_id` of a `config.json` or `generation_config.json`: none, one or several."""
    eos = hf.get('eos_token_id')
    return () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,)


def _tokens(hf: Mapping[str, Any]) -> dict[str, Any]:
    return {
        'bos_token_id': hf.get('bos_token_id'),
        'eos_token_ids': end_ids(hf),
        'pad_token_id': hf.get('pad_token_id'),
    }


def _gpt_neo(hf: Mapping[str, Any], name: str) -> ModelConfig:
    layers, hidden, heads = (_get(hf, k, name) for k in ('num_layers', 'hidden_size', 'num_heads'))
    kinds = [
        kind for group, times in _get(hf, 'attention_types', name) for kind in list(group) * times
    ]
    if len(kinds) != layers or set(kinds) - {'global', 'local'}:
        raise ValueError(
            f'attention_types must expand to num_layers={layers} entries out of global and local, '
            f'got {kinds}'
        )
    window = _get(hf, 'window_size', name) if 'local' in kinds else None
    return ModelConfig(
        model_type='gpt_neo',
        vocab_size=_get(hf, 'vocab_size', name),
        hidden_size=hidden,
        intermediate_size=hf.get('intermediate_size') or 4 * hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        max_positions=_get(hf, 'max_position_embeddings', name),
        activation=hf.get('activation_function', 'gelu_new'),
        norm_eps=hf.get('layer_norm_epsilon', 1e-5),
        tie_embeddings=hf.get('tie_word_embeddings', True),
        windows=tuple(window if kind == 'local' else None for kind in kinds),
        name=name,
        **_tokens(hf),
    )


def _decoder(hf: Mapping[str, Any], name: str) -> ModelConfig:
    layers, hidden, heads = (
        _get(hf, k, name) for k in ('num_hidden_layers', 'hidden_size', 'num_attention_heads')
    )
    if hf.get('mlp_bias'):
        raise ValueError(f'mlp_bias must be false: the feed-forward has no bias; {name} sets it')
    if _slides(hf, layers):
        raise ValueError(
            f'sliding-window attention is not computed by this model; {name} switches it on'
        )
    model_type = hf['model_type']
    # Qwen2 has q/k/v biases and no switch for them; the others say so in attention_bias.
    bias = bool(hf.get('attention_bias', False))
    theta, rope = _rope(hf, name)
    return ModelConfig(
        model_type=model_type,
        vocab_size=_get(hf, 'vocab_size', name),
        hidden_size=hidden,
        intermediate_size=_get(hf, 'intermediate_size', name),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=hf.get('num_key_value_heads') or heads,
        head_dim=hf.get('head_dim') or (128 if model_type == 'qwen3' else hidden // heads),
        max_positions=_get(hf, 'max_position_embeddings', name),
        activation=hf.get('hidden_act', 'silu'),
        norm_eps=hf.get('rms_norm_eps', 1e-6),
        tie_embeddings=hf.get('tie_word_embeddings', False),
        windows=(None,) * layers,
        rope_theta=theta,
        rope=rope,
        qkv_bias=model_type == 'qwen2' or bias,
        o_bias=model_type != 'qwen2' and bias,
        qk_norm=model_type == 'qwen3',
        name=name,
        **_tokens(hf),
    )


def _slides(hf: Mapping[str, Any], layers: int) -> bool:
    """Whether a layer's attention is local, by the rules (and defaults) of transformers' Qwen."""
    if hf.get('layer_types'):
        return 'sliding_attention' in hf['layer_types']
    window = hf.get('sliding_window', 4096) if hf.get('use_sliding_window') else None
    return window is not None and hf.get('max_window_layers', 28) < layers


def _rope(hf: Mapping[str, Any], name: str) -> tuple[float, tuple[tuple[str, Any], ...]]:
    """(theta, scaling) from transformers 5's `rope_parameters` or `rope_theta` + `rope_scaling`."""
    found = dict(hf.get('rope_parameters') or hf.get('rope_scaling') or {})
    theta = float(found.pop('rope_theta', None) or hf.get('rope_theta') or 10000.0)
    kind = found.pop('rope_type', None) or found.pop('type', None) or 'default'
    found.pop('type', None)
    if kind not in ROPE_TYPES:
        raise ValueError(
            f'rope type must be one of {list(ROPE_TYPES)}, got {kind!r} in {name or "the config"}'
        )
    if found.get('partial_rotary_factor', hf.get('partial_rotary_factor') or 1.0) != 1.0:
        raise ValueError(
            f'partial_rotary_factor must be 1: whole heads are rotated; {name} sets another'
        )
    if kind == 'default':
        return theta, ()
    keys = ['factor']
    if kind == 'llama3':
        keys += ['low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings']
    scaling = {
        key: _get(found, key, f'rope scaling {kind!r} of {name or "the config"}') for key in keys
    }
    return theta, tuple(sorted((scaling | {'rope_type': kind}).items()))


def _check(config: ModelConfig) -> None:
    if config.activation not in ACTIVATIONS:
        raise ValueError(
            f'activation must be one of {list(ACTIVATIONS)}, got {config.activation!r}; '
            f'{nearest(config.activation, ACTIVATIONS)}'
        )
    if config.family == 'gpt_neo' and config.hidden_size % config.num_heads:
        raise ValueError(
            f'hidden_size must be a multiple of num_heads, got {config.hidden_size} and '
            f'{config.num_heads}'
        )
    if config.num_heads % config.num_kv_heads:
        raise ValueError(
            f'num_attention_heads must be a multiple of num_key_value_heads, '
            f'got {config.num_heads} and {config.num_kv_heads}'
        )
    if config.family == 'decoder' and config.head_dim % 2:
        raise ValueError(f'head_dim must be even to be rotated, got {config.head_dim}')
