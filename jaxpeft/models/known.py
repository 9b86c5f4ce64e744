"""The configs of well-known models, as on the hub, so that their shapes need no network."""

from __future__ import annotations

import pathlib
from typing import Any

from jaxpeft.models.config import ModelConfig, from_hf
from jaxpeft.near import nearest


def _neo(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        'model_type': 'gpt_neo',
        'vocab_size': 50257,
        'hidden_size': hidden,
        'num_layers': layers,
        'num_heads': heads,
        'attention_types': [[['global', 'local'], layers // 2]],
        'window_size': 256,
        'max_position_embeddings': 2048,
        'bos_token_id': 50256,
        'eos_token_id': 50256,
    }


def _rotary(
    model_type: str,
    shape: tuple[int, int, int, int, int],
    vocab: int,
    *,
    positions: int,
    theta: float,
    bos: int,
    eos: int,
    tied: bool = True,
    eps: float = 1e-6,
    **more: Any,
) -> dict[str, Any]:
    """shape = (hidden, intermediate, layers, heads, key/value heads)."""
    hidden, intermediate, layers, heads, kv = shape
    return {
        'model_type': model_type,
        'vocab_size': vocab,
        'hidden_size': hidden,
        'intermediate_size': intermediate,
        'num_hidden_layers': layers,
        'num_attention_heads': heads,
        'num_key_value_heads': kv,
        'max_position_embeddings': positions,
        'rope_theta': theta,
        'rms_norm_eps': eps,
        'tie_word_embeddings': tied,
        'bos_token_id': bos,
        'eos_token_id': eos,
        **more,
    }


_QWEN: dict[str, Any] = {'theta': 1e6, 'bos': 151643, 'eos': 151643}
_SMOL: dict[str, Any] = {'positions': 8192, 'theta': 1e5, 'bos': 0, 'eos': 0, 'eps': 1e-5}
_LLAMA3: dict[str, Any] = {'theta': 5e5, 'bos': 128000, 'eos': 128001, 'eps': 1e-5, 'tied': False}

KNOWN: dict[str, dict[str, Any]] = {
    'EleutherAI/gpt-neo-125m': _neo(768, 12, 12),
    'EleutherAI/gpt-neo-1.3B': _neo(2048, 24, 16),
    'EleutherAI/gpt-neo-2.7B': _neo(2560, 32, 20),
    'Qwen/Qwen2-0.5B': _rotary('qwen2', (896, 4864, 24, 14, 2), 151936, positions=131072, **_QWEN),
    'Qwen/Qwen2.5-0.5B': _rotary('qwen2', (896, 4864, 24, 14, 2), 151936, positions=32768, **_QWEN),
    'Qwen/Qwen2.5-1.5B': _rotary(
        'qwen2', (1536, 8960, 28, 12, 2), 151936, positions=131072, **_QWEN
    ),
    'Qwen/Qwen2.5-7B': _rotary(
        'qwen2', (3584, 18944, 28, 28, 4), 152064, positions=131072, tied=False, **_QWEN
    ),
    'Qwen/Qwen3-0.6B': _rotary(
        'qwen3',
        (1024, 3072, 28, 16, 8),
        151936,
        positions=40960,
        head_dim=128,
        **(_QWEN | {'eos': 151645}),
    ),
    'HuggingFaceTB/SmolLM2-135M': _rotary('llama', (576, 1536, 30, 9, 3), 49152, **_SMOL),
    'HuggingFaceTB/SmolLM2-360M': _rotary('llama', (960, 2560, 32, 15, 5), 49152, **_SMOL),
    'meta-llama/Meta-Llama-3-8B': _rotary(
        'llama', (4096, 14336, 32, 32, 8), 128256, positions=8192, **_LLAMA3
    ),
}


def config_of(name: str) -> ModelConfig:
    """The config of a well-known model, a local folder, or 'embedded'; no network.

    The owner of a well-known model may be left out, and case does not matter.

    Raises:
      ValueError: neither; lists the nearest names.

    Example:
      >>> config_of('gpt-neo-1.3B').num_layers
      24
    """
    short = {full.split('/')[-1].lower(): full for full in KNOWN}
    full = short.get(name.split('/')[-1].lower())
    if full is not None and name.lower() in (full.lower(), full.split('/')[-1].lower()):
        return from_hf(KNOWN[full], name=full)
    if name == 'embedded' or pathlib.Path(name).expanduser().is_dir():
        from jaxpeft.models.hub import folder_of
        from jaxpeft.models.load import read_config

        return read_config(folder_of(name))
    raise ValueError(
        f'no config is known for {name!r}, and it is no local folder; {nearest(name, KNOWN)}'
    )
