"""Writing a model as a folder that transformers' torch classes and `load` read."""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft.models import names
from jaxpeft.models.config import ModelConfig, to_hf
from jaxpeft.models.load import param_shapes
from jaxpeft.models.source import INDEX, SINGLE

Tree = Any


class Tensor(NamedTuple):
    """A tensor of the file: torch name, the leaf it comes from, its layer if stacked, its size."""

    name: str
    path: names.Path
    layer: int | None
    nbytes: int


def save_pretrained(
    path: str | pathlib.Path,
    model: Any,
    params: Tree,
    tokenizer: Any = None,
    *,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes an HF folder: both configs, safetensors in torch's names and layout, the tokenizer.

    The parameters' own dtype is kept; scanned and unrolled trees give the same files. The host
    holds one shard at a time. Each file is written under a temporary name first; weight files of an
    earlier save are removed.

    Args:
      max_shard_bytes: above it the weights go to `model-00001-of-0000N.safetensors` and an index.

    Raises:
      ValueError: the parameters are not those of the model (names or shapes).

    Example:
      jp.models.save_pretrained('merged', model, jp.merge(plan, state, params), tokenizer)
    """
    leaves = dict(names.flatten(params))
    _check(model, leaves)
    # JAX's rules: numpy knows no common type of bfloat16 and float16.
    with jax.numpy_dtype_promotion('standard'):
        dtype = str(jnp.result_type(*{leaf.dtype for leaf in leaves.values()}))
    folder = pathlib.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    written = _write_weights(folder, leaves, _shards(leaves, max_shard_bytes))
    for old in folder.glob('model*.safetensors*'):
        if old.name not in written:
            old.unlink()
    _write_json(folder / 'config.json', to_hf(model.config, dtype))
    _write_json(folder / 'generation_config.json', _generation(model.config))
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))


def _check(model: Any, leaves: dict[names.Path, Any]) -> None:
    scan = any(names.is_stacked(path) for path in leaves)
    shapes = dict(names.flatten(param_shapes(model.clone(scan=scan))))
    wrong = sorted(
        '/'.join(path)
        for path in leaves.keys() | shapes.keys()
        if path not in leaves or path not in shapes or leaves[path].shape != shapes[path].shape
    )
    if wrong:
        raise ValueError(
            f'params must have the names and shapes of {model.config.name or "the model"}; '
            f'{len(wrong)} leaves are missing, unexpected or misshaped: {", ".join(wrong[:8])}'
        )


def _shards(leaves: dict[names.Path, Any], limit: int) -> list[list[Tensor]]:
    """All tensors in shards of at most `limit` bytes (a larger tensor gets one of its own)."""
    shards: list[list[Tensor]] = [[]]
    used = 0
    for tensor in _tensors(leaves):
        if shards[-1] and used + tensor.nbytes > limit:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += tensor.nbytes
    return shards


def _tensors(leaves: dict[names.Path, Any]) -> list[Tensor]:
    out = []
    for path, leaf in leaves.items():
        stacked = names.is_stacked(path)
        size = math.prod(leaf.shape[1:] if stacked else leaf.shape) * leaf.dtype.itemsize
        for layer in range(leaf.shape[0]) if stacked else (None,):
            one = path if layer is None else names.layer_path(path, layer)
            out.append(Tensor(names.torch_name(one), path, layer, size))
    return out


def _write_weights(
    folder: pathlib.Path, leaves: dict[names.Path, Any], shards: list[list[Tensor]]
) -> set[str]:
    """Writes the shards (and the index of several); returns the names of the files."""
    from safetensors.numpy import save_file

    where: dict[str, str] = {}
    files = []
    for number, shard in enumerate(shards, 1):
        single = len(shards) == 1
        file = SINGLE if single else f'model-{number:05d}-of-{len(shards):05d}.safetensors'
        tensors = {tensor.name: _value(leaves, tensor) for tensor in shard}
        # transformers' torch loader asks for the 'format' entry.
        save_file(tensors, folder / f'{file}.tmp', metadata={'format': 'pt'})
        os.replace(folder / f'{file}.tmp', folder / file)
        where |= dict.fromkeys(tensors, file)
        files.append(file)
        del tensors
    if len(shards) > 1:
        total = sum(tensor.nbytes for shard in shards for tensor in shard)
        index = {'metadata': {'total_size': total}, 'weight_map': where}
        _write_json(folder / INDEX, index)
        files.append(INDEX)
    return set(files)


def _value(leaves: dict[names.Path, Any], tensor: Tensor) -> np.ndarray:
    leaf = leaves[tensor.path]
    value = np.asarray(leaf if tensor.layer is None else leaf[tensor.layer])
    # safetensors writes the bytes as they lie: a transposed view must become an array of its own.
    return np.ascontiguousarray(value.T if names.is_kernel(tensor.path) else value)


def _generation(config: ModelConfig) -> dict[str, Any]:
    eos = list(config.eos_token_ids)
    keys = {
        'bos_token_id': config.bos_token_id,
        'eos_token_id': eos if len(eos) > 1 else config.eos_token_id,
        'pad_token_id': config.pad_token_id,
    }
    return {'_from_model_config': True} | {k: v for k, v in keys.items() if v is not None}


def _write_json(file: pathlib.Path, value: Any) -> None:
    temporary = file.with_name(file.name + '.tmp')
    temporary.write_text(json.dumps(value, indent=2) + '\n')
    os.replace(temporary, file)
