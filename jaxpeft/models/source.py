"""Where weights come from: safetensors (one file or an index of shards) or HF's Flax msgpack.

A `Source` knows the shape of every tensor before any is read, and reads one at a time.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxpeft.models import flax_msgpack, names

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
FLAX = 'flax_model.msgpack'
PICKLES = ('pytorch_model.bin', 'pytorch_model.bin.index.json', '*.bin', '*.pt', '*.pth')
CONVERT = """\
reading a torch pickle runs whatever code it holds, so jaxpeft does not. Convert it, where torch is:
  python -c "from transformers import AutoModelForCausalLM as M; \
M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')"
and load the new folder (copy the tokenizer files over)"""


class Source(NamedTuple):
    """Weights on disk.

    Attributes:
      label: the file, for messages.
      shapes: tensor name in the file -> its shape there.
      name: jaxpeft's unrolled path -> tensor name in the file.
      read: tensor name -> array, read from the file at this moment.
      transposed: kernels are stored [out, in].
    """

    label: str
    shapes: Mapping[str, tuple[int, ...]]
    name: Callable[[names.Path], str]
    read: Callable[[str], np.ndarray]
    transposed: bool


def open_source(folder: pathlib.Path) -> Source:
    """The weights of a folder: safetensors first, then Flax msgpack.

    Raises:
      ValueError: a broken index, a shard of it that is missing, only a torch pickle, or no weights
        at all.
    """
    if (folder / SINGLE).exists():
        return _safetensors(folder, [SINGLE], SINGLE)
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        if 'weight_map' not in index:
            raise ValueError(f'{folder / INDEX} lacks weight_map; its keys are {sorted(index)}')
        where = index['weight_map']
        return _safetensors(folder, sorted(set(where.values())), INDEX)
    if (folder / FLAX).exists():
        return _msgpack(folder / FLAX)
    pickles = sorted({p.name for pattern in PICKLES for p in folder.glob(pattern)})
    if pickles:
        raise ValueError(
            f'{folder} holds its weights only as {pickles[0]}: ' + CONVERT.format(folder=folder)
        )
    here = sorted(p.name for p in folder.iterdir())
    raise ValueError(
        f'{folder} must hold {SINGLE}, {INDEX} or {FLAX}; it holds {here}. '
        'If the hub has only pytorch_model.bin: ' + CONVERT.format(folder=folder)
    )


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
      ValueError: it is no JSON, or no object.
    """
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f'{file} is no JSON ({error}): write it again') from error
    if not isinstance(found, dict):
        raise ValueError(f'{file} must hold a JSON object, got {type(found).__name__}')
    return found


def _safetensors(folder: pathlib.Path, files: list[str], label: str) -> Source:
    from safetensors import SafetensorError, safe_open

    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        raise ValueError(f'{folder / label} names shards that are not there: {missing}')
    shapes: dict[str, tuple[int, ...]] = {}
    where: dict[str, pathlib.Path] = {}
    for file in files:
        try:
            with safe_open(folder / file, framework='numpy') as f:
                for name in f.keys():  # noqa: SIM118 (the handle is no dict)
                    shapes[name] = tuple(f.get_slice(name).get_shape())
                    where[name] = folder / file
        except SafetensorError as error:
            raise ValueError(
                f'{folder / file} is no whole safetensors file ({error}): write it again'
            ) from error

    def read(name: str) -> np.ndarray:
        # Opened anew for every tensor: a mapping held open would keep each page it has touched
        # resident, which adds up to a second copy of the model.
        with safe_open(where[name], framework='numpy') as f:
            return f.get_tensor(name)

    return Source(str(folder / label), shapes, names.torch_name, read, transposed=True)


def _msgpack(file: pathlib.Path) -> Source:
    entries = {'/'.join(path): entry for path, entry in flax_msgpack.index(file).items()}
    shapes = {name: entry.shape for name, entry in entries.items()}
    read = lambda name: flax_msgpack.read(file, entries[name])
    return Source(str(file), shapes, '/'.join, read, transposed=False)
