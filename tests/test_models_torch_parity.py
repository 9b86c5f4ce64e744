"""The same weights in transformers' torch classes give the same logits, both ways."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import models
from tests.models_tiny import NEO, ROTARY, jit, random_params, tokens

torch = pytest.importorskip('torch', reason='compares with torch (extra: test)')
transformers = pytest.importorskip('transformers', reason='compares with transformers')

LLAMA3 = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 16,
    'rope_theta': 10000.0,
}
CASES = {
    'gpt-neo': NEO,  # 12 tokens: three local windows
    'gpt-neo-exact-gelu': NEO | {'activation_function': 'gelu', 'tie_word_embeddings': False},
    'qwen2-tied': ROTARY | {'model_type': 'qwen2', 'tie_word_embeddings': True},
    'qwen2-untied': {k: v for k, v in ROTARY.items() if k != 'head_dim'}
    | {'model_type': 'qwen2', 'rope_theta': 1e6},
    'qwen3': ROTARY | {'model_type': 'qwen3'},
    'llama': ROTARY | {'model_type': 'llama', 'rms_norm_eps': 1e-5},
    'llama-bias-llama3': ROTARY
    | {'model_type': 'llama', 'attention_bias': True, 'rope_parameters': LLAMA3},
    'llama-linear': ROTARY
    | {
        'model_type': 'llama',
        'rope_parameters': {'rope_type': 'linear', 'factor': 3.0, 'rope_theta': 5e5},
    },
}


def torch_logits(model, rows, **kwargs):
    with torch.no_grad():
        return model(torch.tensor(np.asarray(rows), dtype=torch.long), **kwargs).logits.numpy()


def ours(folder, rows, **kwargs):
    model, params, _ = models.load(folder)
    return np.asarray(jit(lambda p, t: model.apply({'params': p}, t, **kwargs))(params, rows))


@pytest.mark.parametrize('case', sorted(CASES))
def test_torch_to_jax_and_back(tmp_path, case):
    """Weights of torch's own initialization load and agree; saved by us, torch loads and agrees."""
    torch.manual_seed(0)
    wanted = transformers.AutoConfig.for_model(**CASES[case])
    theirs = transformers.AutoModelForCausalLM.from_config(wanted).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    rows = tokens(2, 12)
    expected = torch_logits(theirs, rows)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(ours(tmp_path, rows), expected, atol=1e-4, rtol=0)

    model, params, _ = models.load(tmp_path, scan=False)
    models.save_pretrained(tmp_path / 'ours', model, params, max_shard_bytes=10_000)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours').eval()
    np.testing.assert_allclose(torch_logits(again, rows), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize('case', ['gpt-neo', 'qwen2-tied'])
def test_left_padding_as_torch_does_it(tmp_path, case):
    model = models.build(models.from_hf(CASES[case]))
    params = random_params(model)
    models.save_pretrained(tmp_path, model, params)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    mask = np.ones((2, 12), np.int32)
    mask[0, :4] = 0
    where = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    expected = torch_logits(
        theirs,
        tokens(2, 12),
        attention_mask=torch.tensor(mask),
        position_ids=torch.tensor(where, dtype=torch.long),
    )
    got = ours(tmp_path, tokens(2, 12), segment_ids=jnp.asarray(mask))
    np.testing.assert_allclose(got[0, 4:], expected[0, 4:], atol=1e-4, rtol=0)
    np.testing.assert_allclose(got[1], expected[1], atol=1e-4, rtol=0)


def test_bfloat16_folder_in_torch(tmp_path):
    config = models.from_hf(CASES['qwen2-tied'])
    model = models.build(config, dtype=jnp.bfloat16)
    params = random_params(model)
    models.save_pretrained(tmp_path, model, params)
    assert json.loads((tmp_path / 'config.json').read_text())['dtype'] == 'bfloat16'
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype='auto').eval()
    assert theirs.dtype == torch.bfloat16
    expected = torch_logits(theirs.float(), tokens(2, 12))
    np.testing.assert_allclose(ours(tmp_path, tokens(2, 12)), expected, atol=1e-4, rtol=0)


def test_real_stories260k(shared_data):
    """A real model (grouped queries, tied head) over 64 tokens; it has no HF tokenizer."""
    folder = shared_data / 'models-small' / 'stories260k_hf'
    model, params, tokenizer = models.load(folder)
    assert tokenizer is None
    assert (model.config.num_kv_heads, model.config.eos_token_id) == (4, 2)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 260_032
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = tokens(2, 64, vocab=512)
    expected = torch_logits(theirs, rows)
    apply = jit(lambda p, t: model.apply({'params': p}, t))
    np.testing.assert_allclose(apply(params, rows), expected, atol=1e-4, rtol=0)
