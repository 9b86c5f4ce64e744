"""Loading a base model: check every tensor's name and shape, stream the weights into place."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxpeft.models import names
from jaxpeft.models.config import ModelConfig, from_hf
from jaxpeft.models.decoder import Decoder
from jaxpeft.models.gpt_neo import GPTNeo
from jaxpeft.models.hub import folder_of
from jaxpeft.models.source import Source, open_source

Tree = Any
TOKENIZER_FILES = ('tokenizer.json', 'tokenizer_config.json', 'tokenizer.model', 'vocab.json')
SHOWN = 8  # tensor names in one error message


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
    return jax.eval_shape(model.init, jax.random.key(0), tokens)['params']


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
      ValueError: unknown model type or option, weights only as a pickle, or tensors missing,
        unexpected or misshaped.
      FileNotFoundError: no such folder, or a hub id that is neither cached nor reachable.
    """
    folder = folder_of(str(name_or_dir))
    config = dataclasses.replace(read_config(folder), name=str(name_or_dir))
    model = build(config, scan, remat, dtype, attention)
    shapes = param_shapes(model)
    if callable(shardings):
        shardings = shardings(shapes)
    source = open_source(folder)
    check(source, shapes, config)
    return model, read_params(source, shapes, shardings), load_tokenizer(folder)


def read_config(folder: pathlib.Path) -> ModelConfig:
    """The `config.json` of a folder."""
    file = folder / 'config.json'
    if not file.exists():
        here = sorted(p.name for p in folder.iterdir())
        raise FileNotFoundError(f'{folder} must hold a config.json; it holds {here}')
    return from_hf(json.loads(file.read_text()), name=str(folder))


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
    tied = {source.name(('lm_head', 'kernel'))} if config.tie_embeddings else set()
    extra = {name for name in extra - tied if not names.IGNORABLE.fullmatch(name.replace('/', '.'))}
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
    """Fills the tree leaf by leaf; the host holds one leaf at a time."""
    places = dict(names.flatten(shardings)) if shardings is not None else {}
    out: dict[names.Path, jax.Array] = {}
    for path, leaf in names.flatten(shapes):
        value = np.empty(leaf.shape, leaf.dtype)
        turn = source.transposed and names.is_kernel(path)
        for layer, (one, _) in enumerate(_slices(path, leaf)):
            tensor = source.read(source.name(one))
            target = value[layer] if names.is_stacked(path) else value
            target[...] = tensor.T if turn else tensor  # casts while it copies
            del tensor
        # The host's copy may not be reused or freed before the transfer has ended.
        out[path] = jax.block_until_ready(jax.device_put(value, places.get(path)))
        del value, target
    return names.unflatten(out)


def _slices(path: names.Path, leaf: Any) -> list[tuple[names.Path, tuple[int, ...]]]:
    """The unrolled paths and shapes that make up one leaf."""
    shape = tuple(leaf.shape)
    if not names.is_stacked(path):
        return [(path, shape)]
    return [(names.layer_path(path, layer), shape[1:]) for layer in range(shape[0])]


def _show(found: list[str]) -> str:
    rest = f', and {len(found) - SHOWN} more' if len(found) > SHOWN else ''
    return ', '.join(found[:SHOWN]) + rest
