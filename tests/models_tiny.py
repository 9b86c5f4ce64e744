"""Tiny base models with random weights, made without a single compilation."""

import functools

import jax
import numpy as np

from jaxpeft import models

# LLVM's optimizer takes nearly all the time of a tiny model's compile; without it 5 times less.
QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
if jax.__version_info__ < (0, 11):  # later versions have no such option
    QUICK['xla_cpu_use_fusion_emitters'] = False
jit = functools.partial(jax.jit, compiler_options=QUICK)

NEO = {
    'model_type': 'gpt_neo',
    'vocab_size': 61,
    'hidden_size': 16,
    'num_layers': 4,
    'num_heads': 2,
    'attention_types': [[['global', 'local'], 2]],
    'window_size': 4,
    'max_position_embeddings': 32,
    'eos_token_id': 3,
}
ROTARY = {
    'vocab_size': 61,
    'hidden_size': 16,
    'intermediate_size': 24,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 8,
    'max_position_embeddings': 32,
    'eos_token_id': 3,
}
CONFIGS = {
    'gpt_neo': NEO,
    'llama': ROTARY | {'model_type': 'llama'},
    'qwen2': ROTARY | {'model_type': 'qwen2', 'tie_word_embeddings': True},
    'qwen3': ROTARY | {'model_type': 'qwen3'},
}


def config(kind, **changes):
    return models.from_hf(CONFIGS[kind] | changes, name=f'tiny-{kind}')


def random_params(model, seed=0):
    """numpy parameters: kernels, embeddings N(0, 0.3), norm weights about 1, biases N(0, 0.1)."""
    rng = np.random.default_rng(seed)

    def fill(tree):
        return {k: fill(v) if isinstance(v, dict) else draw(k, v) for k, v in tree.items()}

    def draw(name, leaf):
        centre, width = {'scale': (1, 0.1), 'weight': (1, 0.1), 'bias': (0, 0.1)}.get(
            name, (0, 0.3)
        )
        return (centre + width * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return fill(models.param_shapes(model))


def tokens(batch, length, vocab=61, seed=1):
    return np.random.default_rng(seed).integers(0, vocab, (batch, length), dtype=np.int32)
