"""Loading and saving: every source, every refusal, streaming, the hub without a network."""

import json
import logging
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from huggingface_hub import errors
from safetensors.numpy import load_file, save_file

from jaxpeft import models
from jaxpeft.models import flax_msgpack, hub
from jaxpeft.models.names import flatten
from tests.models_tiny import CONFIGS, config, random_params

SINGLE = 'model.safetensors'


def saved(folder, kind, **kwargs):
    model = models.build(config(kind))
    params = random_params(model)
    models.save_pretrained(folder, model, params, **kwargs)
    return model, params


def same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, got), expected)


@pytest.mark.parametrize('kind', sorted(CONFIGS))
def test_one_file_scanned_and_unrolled(tmp_path, kind):
    model, params = saved(tmp_path, kind)
    loaded, got, tokenizer = models.load(tmp_path)
    same(got, params)
    assert tokenizer is None
    assert loaded.config.name == str(tmp_path)
    assert loaded == model.clone(config=loaded.config)
    unrolled, apart, _ = models.load(tmp_path, scan=False)
    assert not unrolled.scan
    same(apart, models.unstack(params))
    models.save_pretrained(tmp_path / 'again', unrolled, apart)
    first, second = (load_file(folder / SINGLE) for folder in (tmp_path, tmp_path / 'again'))
    same(second, first)


def test_sharded_index(tmp_path):
    _, params = saved(tmp_path, 'qwen3', max_shard_bytes=8000)
    files = sorted(p.name for p in tmp_path.glob('model*'))
    assert len(files) > 4
    assert SINGLE not in files
    index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
    assert set(index['weight_map'].values()) | {'model.safetensors.index.json'} == set(files)
    assert index['metadata']['total_size'] == 4 * sum(leaf.size for _, leaf in flatten(params))
    assert all((tmp_path / f).stat().st_size < 10_000 for f in files)
    same(models.load(tmp_path)[1], params)
    saved(tmp_path, 'qwen3')  # one file again: the old shards and their index go
    assert sorted(p.name for p in tmp_path.glob('model*')) == [SINGLE]
    (tmp_path / SINGLE).unlink()
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"shards that are not there: \['model-00001-of"):
        models.load(tmp_path)
    for text, message in [('{}', 'index.json lacks weight_map'), ('{', 'index.json is no JSON')]:
        (tmp_path / 'model.safetensors.index.json').write_text(text)
        with pytest.raises(ValueError, match=message):
            models.load(tmp_path)


def test_flax_msgpack(tmp_path):
    """What HF's Flax GPT-Neo wrote: unrolled, [in, out] kernels, tied head."""
    _, params = saved(tmp_path, 'gpt_neo')
    (tmp_path / SINGLE).unlink()
    apart = models.unstack(params)
    (tmp_path / 'flax_model.msgpack').write_bytes(serialization.to_bytes(apart))
    same(models.load(tmp_path)[1], params)
    same(models.load(tmp_path, scan=False)[1], apart)
    del apart['transformer']['h']['2']['mlp']['c_fc']['bias']
    (tmp_path / 'flax_model.msgpack').write_bytes(serialization.to_bytes(apart))
    with pytest.raises(ValueError, match=r'missing .1.: transformer/h/2/mlp/c_fc/bias'):
        models.load(tmp_path)


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'pytorch_model-00001-of-00002.bin'])
def test_torch_pickle_is_refused(tmp_path, name):
    saved(tmp_path, 'gpt_neo')
    (tmp_path / SINGLE).unlink()
    with pytest.raises(ValueError, match=r'must hold model.safetensors.*it holds'):
        models.load(tmp_path)
    (tmp_path / name).write_bytes(b'never read')
    with pytest.raises(ValueError, match=rf'only as {name}') as error:
        models.load(tmp_path)
    assert f"from_pretrained('{tmp_path}').save_pretrained('{tmp_path}-safetensors')" in str(
        error.value
    )


def edit(folder, change):
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={'format': 'pt'})


def test_missing_unexpected_misshaped(tmp_path):
    saved(tmp_path, 'qwen2')

    def spoil(t):
        del t['model.layers.1.self_attn.q_proj.bias']
        t['model.layers.7.mlp.up_proj.weight'] = np.zeros((2, 2), np.float32)
        t['model.norm.weight'] = np.zeros(15, np.float32)

    edit(tmp_path, spoil)
    with pytest.raises(ValueError, match=r'does not fit its config.json') as error:
        models.load(tmp_path)
    message = str(error.value)
    assert 'missing (1): model.layers.1.self_attn.q_proj.bias' in message
    assert 'unexpected (1): model.layers.7.mlp.up_proj.weight' in message
    assert 'misshaped (1): model.norm.weight is (15,), expected (16,)' in message


def test_cut_off_safetensors(tmp_path):
    saved(tmp_path, 'llama')
    data = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(data[:-100])
    with pytest.raises(ValueError, match=r'is no whole safetensors file .*write it again'):
        models.load(tmp_path)


def test_kernel_orientation_is_checked(tmp_path):
    saved(tmp_path, 'llama')
    name = 'model.layers.0.self_attn.k_proj.weight'  # [16, 16] is square; up_proj is [24, 16]
    edit(
        tmp_path,
        lambda t: t.update({name.replace('self_attn.k', 'mlp.up'): np.zeros((16, 24), 'f4')}),
    )
    with pytest.raises(ValueError, match=r'up_proj.weight is \(16, 24\), expected \(24, 16\)'):
        models.load(tmp_path)


def test_known_buffers_are_ignored(tmp_path):
    _, params = saved(tmp_path / 'neo', 'gpt_neo')
    prefix = 'transformer.h.1.attn.attention.'
    edit(
        tmp_path / 'neo',
        lambda t: t.update(
            {
                prefix + 'bias': np.zeros((1, 1, 32, 32), np.bool_),
                prefix + 'masked_bias': np.zeros((), np.float32),
                'lm_head.weight': t['transformer.wte.weight'].copy(),
            }
        ),
    )
    same(models.load(tmp_path / 'neo')[1], params)
    _, params = saved(tmp_path / 'llama', 'llama')
    inv = 'model.layers.0.self_attn.rotary_emb.inv_freq'
    edit(tmp_path / 'llama', lambda t: t.update({inv: np.zeros(4, np.float32)}))
    same(models.load(tmp_path / 'llama')[1], params)
    edit(tmp_path / 'llama', lambda t: t.pop('lm_head.weight'))  # not tied: its head must be there
    with pytest.raises(ValueError, match=r'missing .1.: lm_head.weight'):
        models.load(tmp_path / 'llama')


EMBEDDINGS = {'gpt_neo': 'transformer.wte.weight', 'qwen2': 'model.embed_tokens.weight'}


@pytest.mark.parametrize('kind', EMBEDDINGS)
def test_a_tied_head_that_is_not_the_embedding(tmp_path, kind):
    saved(tmp_path, kind)
    other = np.random.default_rng(1).standard_normal((61, 16), np.float32)
    edit(tmp_path, lambda t: t.update({'lm_head.weight': other}))
    message = rf'lm_head.weight is not {EMBEDDINGS[kind]}.*"tie_word_embeddings": false'
    with pytest.raises(ValueError, match=message):
        models.load(tmp_path)
    file = tmp_path / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | {'tie_word_embeddings': False}))
    np.testing.assert_array_equal(models.load(tmp_path)[1]['lm_head']['kernel'], other.T)


@pytest.mark.parametrize('kind', EMBEDDINGS)
def test_an_embedding_under_the_tied_heads_name(tmp_path, kind):
    _, params = saved(tmp_path, kind)
    edit(tmp_path, lambda t: t.update({'lm_head.weight': t.pop(EMBEDDINGS[kind])}))
    same(models.load(tmp_path)[1], params)
    edit(tmp_path, lambda t: t.update({'lm_head.weight': t['lm_head.weight'][:9].copy()}))
    with pytest.raises(ValueError, match=r'lm_head.weight is \(9, 16\), expected \(61, 16\)'):
        models.load(tmp_path)


def test_end_tokens_of_the_generation_config(tmp_path):
    """Chat models name the end of a turn there alone; saving keeps it, in both files."""
    saved(tmp_path, 'qwen2')
    (tmp_path / 'generation_config.json').write_text('{"eos_token_id": [7, 3]}')
    model, params, _ = models.load(tmp_path)
    assert model.config.eos_token_ids == (3, 7)
    models.save_pretrained(tmp_path / 'again', model, params)
    for file in ('config.json', 'generation_config.json'):
        assert json.loads((tmp_path / 'again' / file).read_text())['eos_token_id'] == [3, 7]
    (tmp_path / 'generation_config.json').write_text('{"eos_token_id": 5}')
    assert models.config_of(str(tmp_path)).eos_token_ids == (3, 5)


def test_tensors_that_are_no_floats_or_too_large(tmp_path):
    name = 'model.norm.weight'
    saved(tmp_path, 'llama')
    edit(tmp_path, lambda t: t[name].__setitem__(3, -1e5))
    assert models.load(tmp_path, dtype=jnp.bfloat16)[1]['model']['norm']['weight'][3] < -9e4
    with pytest.raises(ValueError, match=rf'{name} holds 100000, and float16 ends at 65504'):
        models.load(tmp_path, dtype=jnp.float16)
    edit(tmp_path, lambda t: t.update({name: np.ones(16, np.int8)}))
    with pytest.raises(ValueError, match=rf'{name} holds int8: .*the unquantized checkpoint'):
        models.load(tmp_path)


def test_saving_a_mix_of_half_precisions(tmp_path):
    """Each tensor as it is; the config names the type that holds both."""
    model, params = saved(tmp_path, 'llama')
    mixed = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    mixed['lm_head']['kernel'] = params['lm_head']['kernel'].astype(np.float16)
    models.save_pretrained(tmp_path, model, mixed)
    assert json.loads((tmp_path / 'config.json').read_text())['dtype'] == 'float32'
    assert load_file(tmp_path / SINGLE)['lm_head.weight'].dtype == np.float16
    same(models.load(tmp_path)[1], jax.tree.map(lambda a: a.astype(np.float32), mixed))


def test_dtypes(tmp_path):
    """float32 -> bfloat16 rounds to nearest even; a bfloat16 folder loads exactly in either."""
    model, params = saved(tmp_path, 'qwen2')
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    loaded, got, _ = models.load(tmp_path, dtype=jnp.bfloat16)
    same(got, half)
    models.save_pretrained(tmp_path / 'half', loaded, got)
    assert json.loads((tmp_path / 'half/config.json').read_text())['dtype'] == 'bfloat16'
    assert load_file(tmp_path / 'half' / SINGLE)['model.norm.weight'].dtype == jnp.bfloat16
    same(models.load(tmp_path / 'half', dtype='bfloat16')[1], half)
    same(models.load(tmp_path / 'half')[1], jax.tree.map(lambda a: a.astype(np.float32), half))
    assert model.dtype == jnp.float32


@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16, np.float16])
@pytest.mark.parametrize('shape', [(3, 5), (7,), (2, 40, 129)])
def test_a_cpu_takes_the_hosts_array_as_it_is(shape, dtype):
    host = sys.modules['jaxpeft.models.load']._aligned(shape, dtype)
    host[...] = np.arange(host.size).reshape(shape)
    assert (host.shape, host.dtype) == (shape, dtype)
    placed = jax.device_put(host, jax.devices('cpu')[0])
    assert placed.unsafe_buffer_pointer() == host.ctypes.data
    np.testing.assert_array_equal(placed, host)


def test_sharded_loading(tmp_path):
    model, params = saved(tmp_path, 'llama')
    auto = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh((2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=auto)
    _, got, _ = models.load(tmp_path, shardings=lambda shapes: models.base_shardings(shapes, mesh))
    same(got, params)
    expected = models.base_shardings(models.param_shapes(model), mesh)
    jax.tree.map(
        lambda leaf, place: leaf.sharding == place or pytest.fail(str(place)), got, expected
    )
    again = models.load(tmp_path, shardings=expected)[1]
    assert jax.tree.map(lambda a: a.sharding, again) == jax.tree.map(lambda a: a.sharding, got)
    models.save_pretrained(tmp_path / 'again', model, again)
    same(load_file(tmp_path / 'again' / SINGLE), load_file(tmp_path / SINGLE))


def test_save_refuses_other_parameters(tmp_path):
    model, params = saved(tmp_path, 'llama')
    other = random_params(models.build(config('llama', vocab_size=60)))
    with pytest.raises(ValueError, match='misshaped: lm_head/kernel, model/embed_tokens'):
        models.save_pretrained(tmp_path / 'x', model, other)
    with pytest.raises(ValueError, match=r'1 leaves are missing.*model/norm/weight'):
        models.save_pretrained(tmp_path / 'x', model, params | {'model': _without_norm(params)})
    assert not (tmp_path / 'x').exists()


def _without_norm(params):
    return {k: v for k, v in params['model'].items() if k != 'norm'}


def test_stack_refuses_gaps():
    apart = models.unstack(random_params(models.build(config('llama'))))
    del apart['model']['layers']['1']
    with pytest.raises(ValueError, match=r'layers 0..L-1 .* got layers \[0, 2\]'):
        models.stack(apart)


MEASURE = """
import pathlib, sys
import jax, jax.numpy as jnp
from jaxpeft import models
jax.block_until_ready(jnp.zeros(3) + 1)
def status(key):
    lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ':'))
for small, large in (sys.argv[1:3], sys.argv[3:5]):
    models.load(small)  # whatever is imported or compiled once
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    before = status('VmRSS')
    params = models.load(large)[1]
    jax.block_until_ready(params)
    print(status('VmHWM') - before)
    del params
"""


def as_msgpack(folder, params):
    folder.mkdir()
    (folder / 'config.json').write_text((folder.parent / 'config.json').read_text())
    packed = serialization.to_bytes(models.unstack(params))
    (folder / 'flax_model.msgpack').write_bytes(packed)


@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='needs Linux /proc')
def test_memory_never_holds_the_model_twice(tmp_path):
    """The process' peak resident memory grows by less than 1.6 models, from either format."""
    _, params = saved(tmp_path / 'small', 'gpt_neo')
    as_msgpack(tmp_path / 'small/flax', params)
    model = models.build(config('gpt_neo', hidden_size=384, num_layers=16, num_heads=4,
                                attention_types=[[['global', 'local'], 8]]))  # fmt: skip
    shapes = models.param_shapes(model)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    models.save_pretrained(tmp_path / 'large', model, params, max_shard_bytes=total // 3)
    as_msgpack(tmp_path / 'large/flax', params)
    folders = ['small', 'large', 'small/flax', 'large/flax']
    done = subprocess.run(
        [sys.executable, '-c', MEASURE, *(tmp_path / folder for folder in folders)],
        env=os.environ | {'XLA_FLAGS': '', 'PYTHONPATH': str(pathlib.Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = [int(line) / total for line in done.stdout.split()]  # in models
    assert all(0.9 < peak < 1.6 for peak in peaks), peaks


def test_hub_download_asks_for_no_pickle(tmp_path, monkeypatch):
    _, params = saved(tmp_path / 'snapshot', 'llama')
    asked = []

    def snapshot(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path / 'snapshot')

    monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot)
    model, got, _ = models.load('someone/tiny')
    same(got, params)
    assert model.config.name == 'someone/tiny'
    assert len(asked) == 1
    patterns = [re.compile(p.replace('.', r'\.').replace('*', '.*')) for p in asked[0][1]]
    wanted = lambda file: any(p.fullmatch(file) for p in patterns)
    assert wanted('model-00001-of-00002.safetensors')
    assert wanted('model.safetensors.index.json')
    assert wanted('tokenizer.json')
    for file in ('pytorch_model.bin', 'flax_model.msgpack', 'rust_model.ot', 'model.pt', 'x.py'):
        assert not wanted(file)


def test_hub_with_flax_weights_only(tmp_path, monkeypatch):
    _, params = saved(tmp_path, 'gpt_neo')
    (tmp_path / SINGLE).unlink()
    flax = serialization.to_bytes(models.unstack(params))

    def snapshot(name, allow_patterns):
        if 'flax_model.msgpack' in allow_patterns:
            (tmp_path / 'flax_model.msgpack').write_bytes(flax)
        return str(tmp_path)

    monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot)
    same(models.load('EleutherAI/gpt-neo-tiny')[1], params)


def test_names_that_are_nowhere(tmp_path, monkeypatch):
    def offline(name, allow_patterns):
        raise errors.LocalEntryNotFoundError('no network')

    monkeypatch.setattr('huggingface_hub.snapshot_download', offline)
    with pytest.raises(
        FileNotFoundError, match=r'(?s)cannot be reached.*hf download a/b --exclude'
    ):
        models.load('a/b')
    for name in (str(tmp_path / 'nothing/here'), './nope', '../nope', '~/nope', 'nope/', 'a--b/c'):
        with pytest.raises(FileNotFoundError, match='not a hub id of the form owner/name'):
            models.load(name)
    (tmp_path / 'file').write_text('')
    with pytest.raises(FileNotFoundError, match=r'is a file; give the folder'):
        models.load(tmp_path / 'file')
    (tmp_path / 'file').unlink()
    with pytest.raises(FileNotFoundError, match=r'must hold a config.json'):
        models.load(tmp_path)
    monkeypatch.setattr(hub, 'EMBEDDED', tmp_path / 'gone')
    with pytest.raises(FileNotFoundError, match='lacks its assets'):
        models.load('embedded')


READER = 'tokenizers are read by transformers'


def words():
    """A tokenizer of three words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    made = Tokenizer(WordLevel({'a': 0, 'b': 1, '?': 2}, unk_token='?'))
    made.pre_tokenizer = Whitespace()
    return made


def test_a_tokenizer_of_more_tokens_than_the_embedding(tmp_path):
    """What a text can give is refused; a padding token, as in published checkpoints, is told."""
    transformers = pytest.importorskip('transformers', reason=READER)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words(), pad_token='<pad>')
    model = models.build(config('llama', vocab_size=3))
    models.save_pretrained(tmp_path, model, random_params(model), tokenizer)
    with pytest.warns(UserWarning, match=r'below the 3 rows .*beyond it: <pad> \(special'):
        read = models.load(tmp_path)[2]
    assert read.pad_token_id == 3
    tokenizer.add_tokens(['word'])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r'beyond it: word\. Take the tokenizer of this model'):
        models.load(tmp_path)


def test_embedded_and_tokenizer(tmp_path, monkeypatch):
    """'embedded' is a folder like any other; a tokenizer is saved, and loaded if there."""
    transformers = pytest.importorskip('transformers', reason=READER)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words())
    _, params = saved(tmp_path, 'gpt_neo', tokenizer=tokenizer)
    monkeypatch.setattr(hub, 'EMBEDDED', tmp_path)
    model, got, read = models.load('embedded')
    same(got, params)
    assert model.config.name == 'embedded'
    assert read('a b')['input_ids'] == [0, 1]


def test_flax_msgpack_refusals(tmp_path, monkeypatch):
    """Files that are cut off, or that hold something else than arrays, say so."""
    _, params = saved(tmp_path, 'gpt_neo')
    (tmp_path / SINGLE).unlink()
    file = tmp_path / 'flax_model.msgpack'
    whole = serialization.to_bytes(models.unstack(params))
    with monkeypatch.context() as small:
        small.setattr(serialization, 'MAX_CHUNK_SIZE', 61 * 16 * 4 - 1)  # of 1 GiB
        chunked = serialization.to_bytes(models.unstack(params))
    for data, message in [
        (whole[:-5000], 'cut off|is damaged'),
        (b'\xc1', 'no Flax parameter file: type byte 0xc1 at 0'),
        (serialization.msgpack_serialize({'step': 3}), 'step must be an array, got 3'),
        (chunked, 'c_fc/kernel is above 1 GiB'),
        (b'\x07', 'must hold a map of parameters'),
    ]:
        file.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            models.load(tmp_path)
    mixed = {'a': np.arange(6, dtype='i4').reshape(2, 3), 'b': jnp.ones((), jnp.bfloat16)}
    file.write_bytes(serialization.msgpack_serialize(mixed))
    entries = flax_msgpack.index(file)
    for name, value in mixed.items():
        got = flax_msgpack.read(file, entries[(name,)])
        assert got.dtype == value.dtype
        np.testing.assert_array_equal(got, np.asarray(value))


def test_transformers_does_not_say_that_torch_is_missing():
    """It was the first line that a new user read, and nothing here needs PyTorch."""
    models.load('embedded')
    logger = logging.getLogger('transformers')
    said = lambda text: logger.filter(logger.makeRecord('x', 30, '', 0, text, (), None))
    assert not said("PyTorch was not found. Models won't be available")
    assert said('Token indices sequence length is longer than the maximum')
