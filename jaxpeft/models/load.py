"""Loading a base model: check every tensor's name and shape, stream the weights into place."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import logging
import math
import pathlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxpeft.models import names
from jaxpeft.models.config import ModelConfig, end_ids, from_hf
from jaxpeft.models.decoder import Decoder
from jaxpeft.models.gpt_neo import GPTNeo
from jaxpeft.models.hub import folder_of
from jaxpeft.models.source import Source, open_source, read_json

Tree = Any
TOKENIZER_FILES = ('tokenizer.json', 'tokenizer_config.json', 'tokenizer.model', 'vocab.json')
SHOWN = 8  # names in one error message
READERS = 4  # threads, each of which holds one tensor of the file
ALIGNMENT = 64  # bytes; XLA's buffers on CPU
HEAD = ('lm_head', 'kernel')
EMBEDDING = {
    'gpt_neo': ('transformer', 'wte', 'embedding'),
    'decoder': ('model', 'embed_tokens', 'embedding'),
}


def build(
    config: ModelConfig,
    scan: bool = True,
    remat: str | None = None,
    dtype: Any = jnp.float32,
    attention: str = 'auto',
) -> GPTNeo | Decoder:
    """The Linen module of a config; parameters and activations in `dtype`.

    Softmax, norms and logits are float32 whatever `dtype` is.

    Args:
      scan: one scan over the layers, parameters stacked on a leading axis; False: unrolled.
      remat: None, 'full', 'dots' or 'dots_no_batch': what a layer keeps for the backward pass.
      attention: 'auto' takes the platform's kernel where it is right, 'plain' never, 'splash' (TPU)
        and 'cudnn' (GPU) insist on it for passes without a cache; see `models.kernels`.

    Example:
      >>> import jaxpeft as jp
      >>> model = jp.models.build(jp.models.config_of('EleutherAI/gpt-neo-125m'))
      >>> jp.models.param_shapes(model)['transformer']['wte']['embedding'].shape
      (50257, 768)
    """
    module = GPTNeo if config.family == 'gpt_neo' else Decoder
    parts = {'dtype': dtype, 'param_dtype': dtype, 'scan': scan, 'remat': remat}
    return module(config, attention=attention, **parts)


def param_shapes(model: nn.Module) -> Tree:
    """The tree of jax.ShapeDtypeStruct that `model.init` would fill; no memory."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    # The key is drawn under the trace: outside it is a program of its own, compiled and run.
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), tokens)['params']


def load(
    name_or_dir: str | pathlib.Path,
    dtype: Any = jnp.float32,
    scan: bool = True,
    remat: str | None = None,
    shardings: Tree = None,
    attention: str = 'auto',
) -> tuple[GPTNeo | Decoder, Tree, Any]:
    """Loads a base model from a folder in HF's format, a hub id, or 'embedded' (in this package).

    Weights come from `model.safetensors`, its sharded index, or `flax_model.msgpack`. Every leaf is
    allocated once, filled layer by layer from the file, cast to `dtype`, put on its devices and
    dropped from the host before the next.

    Args:
      shardings: a tree of jax.sharding.Sharding like the parameters (see `base_shardings`), or a
        function `params_shape -> tree`; None: the default device.
      attention: which attention runs, see `build`.

    Returns:
      (model, params, tokenizer). The tokenizer is None where the folder has no tokenizer files. The
      call is `model.apply({'params': params}, tokens, positions=None, segment_ids=None, *,
      cache=None, select=None, labels=None, packed=False)`; tokens, positions, segment_ids are
      [B, T] int32 and segment 0 is padding. `packed=True` promises that every segment of a row is
      one run of tokens whose positions count up by one, which lets a platform's attention kernel
      run. It returns float32
      - logits [B, T, V];
      - with `select` [N] (flat indices into B * T): the logits [N, V] of these positions only;
      - with `labels` [N] too: -log p(labels[n]) at position select[n], [N], never holding [N, V];
      - with `cache` (`model.init_cache(batch, length)`): a pair of the above and the new cache.

    Raises:
      ValueError: unknown model type or option, a broken file, weights only as a pickle, tensors
        missing, unexpected, misshaped, not of floats or too large for `dtype`, a head that is not
        the embedding that the config ties it to, or a tokenizer of more tokens than the embedding.
      FileNotFoundError: no such folder, or a hub id that is neither cached nor reachable.
    """
    folder = folder_of(str(name_or_dir))
    config = dataclasses.replace(read_config(folder), name=str(name_or_dir))
    model = build(config, scan, remat, dtype, attention)
    shapes = param_shapes(model)
    if callable(shardings):
        shardings = shardings(shapes)
    source = tied(open_source(folder), config)
    check(source, shapes, config)
    check_head(source, config)
    tokenizer = load_tokenizer(folder)
    check_tokenizer(tokenizer, config)
    return model, read_params(source, shapes, shardings), tokenizer


def read_config(folder: pathlib.Path) -> ModelConfig:
    """The `config.json` of a folder, with the end tokens that `generation_config.json` adds.

    Chat models name the token that ends a turn in the second file alone.
    """
    file = folder / 'config.json'
    if not file.exists():
        here = sorted(p.name for p in folder.iterdir())
        raise FileNotFoundError(f'{folder} must hold a config.json; it holds {here}')
    config, beside = from_hf(read_json(file), name=str(folder)), folder / 'generation_config.json'
    more = end_ids(read_json(beside)) if beside.exists() else ()
    ends = tuple(dict.fromkeys((*config.eos_token_ids, *more)))
    return dataclasses.replace(config, eos_token_ids=ends)


def load_tokenizer(folder: pathlib.Path) -> Any:
    """The folder's tokenizer as transformers reads it, None where it has no tokenizer files."""
    if not any((folder / file).exists() for file in TOKENIZER_FILES):
        return None
    logging.getLogger('transformers').addFilter(_without_torch)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _without_torch(record: logging.LogRecord) -> bool:
    """Not transformers' warning, on import, that its models need PyTorch: nothing here does."""
    return 'PyTorch was not found' not in str(record.msg)


def check_tokenizer(tokenizer: Any, config: ModelConfig) -> None:
    """Compares the tokenizer's ids with the rows of the embedding, which may be more.

    Special tokens beyond it are a warning: published checkpoints have a padding token there that no
    text brings forth, and transformers loads them.

    Raises:
      ValueError: a token beyond it that is found in ordinary text, where it would give NaN.
    """
    vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
    beyond = {token: i for token, i in vocabulary.items() if i >= config.vocab_size}
    if not beyond:
        return
    added = tokenizer.added_tokens_decoder
    plain = [token for token, i in beyond.items() if i not in added or not added[i].special]
    said = (
        f"the tokenizer's ids must be below the {config.vocab_size} rows of the embedding of "
        f'{config.name}; beyond it: {_show(sorted(plain or beyond))}'
    )
    if plain:
        raise ValueError(said + '. Take the tokenizer of this model, or resize the embedding')
    warnings.warn(said + ' (special tokens: a text that holds one gives NaN)', stacklevel=3)


def tied(source: Source, config: ModelConfig) -> Source:
    """The source of a model whose embedding may stand under the tied head's name alone."""
    own, head = source.name(EMBEDDING[config.family]), source.name(HEAD)
    alone = head in source.shapes and own not in source.shapes
    if not (config.tie_embeddings and source.transposed and alone):
        return source
    name = source.name
    return source._replace(name=lambda path: head if name(path) == own else name(path))


def check_head(source: Source, config: ModelConfig) -> None:
    """Compares a head with the embedding that the config ties it to.

    Raises:
      ValueError: they differ, so that the config, or the head, is wrong.
    """
    own, head = source.name(EMBEDDING[config.family]), source.name(HEAD)
    if not config.tie_embeddings or head not in source.shapes or own == head:
        return
    embedding, kernel = (source.read(name).astype(np.float32, copy=False) for name in (own, head))
    if not np.array_equal(embedding, kernel if source.transposed else kernel.T, equal_nan=True):
        raise ValueError(
            f'{source.label}: {head} is not {own}, to which config.json ties it; set '
            f'"tie_word_embeddings": false there to use it, or remove {head}'
        )


def check(source: Source, shapes: Tree, config: ModelConfig) -> None:
    """Compares names and shapes before a byte of weights is read.

    Raises:
      ValueError: lists missing, unexpected and misshaped tensors.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for path, leaf in names.flatten(shapes):
        for one, shape in _slices(path, leaf):
            turn = source.transposed and names.is_kernel(path)
            expected[source.name(one)] = shape[::-1] if turn else shape
    extra = source.shapes.keys() - expected.keys()
    head = {source.name(HEAD)} if config.tie_embeddings else set()
    extra = {name for name in extra - head if not names.IGNORABLE.fullmatch(name.replace('/', '.'))}
    wrong = [
        f'{name} is {source.shapes[name]}, expected {shape}'
        for name, shape in expected.items()
        if name in source.shapes and source.shapes[name] != shape
    ]
    problems = {
        'missing': sorted(expected.keys() - source.shapes.keys()),
        'unexpected': sorted(extra),
        'misshaped': wrong,
    }
    if any(problems.values()):
        lines = [
            f'  {kind} ({len(found)}): {_show(found)}' for kind, found in problems.items() if found
        ]
        raise ValueError(f'{source.label} does not fit its config.json:\n' + '\n'.join(lines))


def read_params(source: Source, shapes: Tree, shardings: Tree = None) -> Tree:
    """Fills the tree leaf by leaf; the host holds one leaf at a time.

    The layers of a leaf are read side by side: copying and turning them lets go of Python's lock,
    and was half of the time that a GPT-Neo-125M took to load.

    Raises:
      ValueError: a tensor that is not of floats, or too large for the leaf's dtype.
    """
    places = dict(names.flatten(shardings)) if shardings is not None else {}
    out: dict[names.Path, jax.Array] = {}
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        for path, leaf in names.flatten(shapes):
            value = _aligned(leaf.shape, leaf.dtype)
            turn = source.transposed and names.is_kernel(path)
            ones = [one for one, _ in _slices(path, leaf)]
            targets = value if names.is_stacked(path) else [value]
            list(pool.map(functools.partial(_fill, source, turn), ones, targets))
            # The host's copy may not be reused or freed before the transfer has ended.
            out[path] = jax.block_until_ready(jax.device_put(value, places.get(path)))
            del value, targets
    return names.unflatten(out)


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An empty array that a CPU device takes as it is; one that numpy places, it copies."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def _fill(source: Source, turn: bool, path: names.Path, target: np.ndarray) -> None:
    """One layer's tensor, cast while it is copied."""
    name = source.name(path)
    tensor = source.read(name)
    _check_range(tensor, target.dtype, f'{source.label}: {name}')
    target[...] = tensor.T if turn else tensor


def _check_range(tensor: np.ndarray, dtype: Any, what: str) -> None:
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ValueError(
            f'{what} holds {tensor.dtype}: the base must hold plain float weights; use the '
            'unquantized checkpoint'
        )
    limit = jnp.finfo(dtype)
    if jnp.finfo(tensor.dtype).maxexp <= limit.maxexp:
        return
    largest = float(max(tensor.max(), -tensor.min()))
    if largest > float(limit.max):
        raise ValueError(
            f'{what} holds {largest:.6g}, and {limit.dtype} ends at {float(limit.max):g}; load it '
            'with dtype bfloat16 or float32'
        )


def _slices(path: names.Path, leaf: Any) -> list[tuple[names.Path, tuple[int, ...]]]:
    """The unrolled paths and shapes that make up one leaf."""
    shape = tuple(leaf.shape)
    if not names.is_stacked(path):
        return [(path, shape)]
    return [(names.layer_path(path, layer), shape[1:]) for layer in range(shape[0])]


def _show(found: list[str]) -> str:
    rest = f', and {len(found) - SHOWN} more' if len(found) > SHOWN else ''
    return ', '.join(found[:SHOWN]) + rest
