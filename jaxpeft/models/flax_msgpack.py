"""Reads Flax's `flax_model.msgpack` lazily: an index of where each array lies, then one at a time.

`flax.serialization` decodes the whole file into memory at once. The format (https://msgpack.org) is
simple: nested maps with string keys whose leaves are extension values of type 1, each holding
packed `(shape, dtype name, buffer)`.
"""

from __future__ import annotations

import pathlib
from typing import Any, BinaryIO, NamedTuple

import numpy as np

NDARRAY = 1  # flax.serialization's extension code of an array
CHUNKED = '__msgpack_chunked_array__'

# Type byte -> bytes of the length (or of the integer) after it; the fixed forms hold it themselves.
MAPS = {0xDE: 2, 0xDF: 4}
LISTS = {0xDC: 2, 0xDD: 4}
TEXTS = {0xD9: 1, 0xDA: 2}
BUFFERS = {0xC4: 1, 0xC5: 2, 0xC6: 4}
INTEGERS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
BOOLEANS = {0xC2: False, 0xC3: True}
EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


class Entry(NamedTuple):
    """One array in the file: shape, dtype, and the offset of its first byte."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int


def index(file: pathlib.Path) -> dict[tuple[str, ...], Entry]:
    """{path: Entry} of every array; reads headers only.

    Raises:
      ValueError: the file holds something that Flax's parameter files do not.
    """
    with file.open('rb') as f:
        tree = _value(f, file)
    if not isinstance(tree, dict):
        raise ValueError(f'{file} must hold a map of parameters, its first value is {tree!r}')
    return dict(_entries(tree, file, ()))


def read(file: pathlib.Path, entry: Entry) -> np.ndarray:
    """One array."""
    count = int(np.prod(entry.shape))
    flat = np.fromfile(file, entry.dtype, count=count, offset=entry.offset)
    return flat.reshape(entry.shape)


def _entries(tree: dict[str, Any], file: pathlib.Path, path: tuple[str, ...]):
    if CHUNKED in tree:
        raise ValueError(
            f'{file}: {"/".join(path)} is above 1 GiB and split into chunks, which are not read; '
            'convert the checkpoint to safetensors'
        )
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _entries(value, file, (*path, key))
        elif isinstance(value, Entry):
            yield (*path, key), value
        else:
            raise ValueError(f'{file}: {"/".join((*path, key))} must be an array, got {value!r}')


def _value(f: BinaryIO, file: pathlib.Path) -> Any:
    """The next value; arrays as Entry and buffers as (offset, length), both skipped over."""
    kind = _uint(f, 1)
    if kind < 0x80:
        return kind
    if kind < 0x90 or kind in MAPS:
        size = _uint(f, MAPS[kind]) if kind in MAPS else kind & 0x0F
        return {_value(f, file): _value(f, file) for _ in range(size)}
    if kind < 0xA0 or kind in LISTS:
        size = _uint(f, LISTS[kind]) if kind in LISTS else kind & 0x0F
        return [_value(f, file) for _ in range(size)]
    if kind < 0xC0 or kind in TEXTS:
        size = _uint(f, TEXTS[kind]) if kind in TEXTS else kind & 0x1F
        return f.read(size).decode()
    if kind in BOOLEANS:
        return BOOLEANS[kind]
    if kind in INTEGERS:
        return _uint(f, INTEGERS[kind])
    if kind in BUFFERS:
        size = _uint(f, BUFFERS[kind])
        return f.seek(size, 1) - size, size
    if kind in EXTENSIONS:
        return _array(f, file, _uint(f, EXTENSIONS[kind]))
    if kind in FIXED_EXTENSIONS:
        return _array(f, file, FIXED_EXTENSIONS[kind])
    raise ValueError(f'{file} is no Flax parameter file: type byte 0x{kind:02x} at {f.tell() - 1}')


def _array(f: BinaryIO, file: pathlib.Path, size: int) -> Entry:
    code, end = _uint(f, 1), f.tell() + size
    if code != NDARRAY:
        raise ValueError(
            f'{file} holds an extension of type {code} at {f.tell()}; arrays are {NDARRAY}'
        )
    shape, dtype, (offset, length) = _value(f, file)
    entry = Entry(tuple(shape), np.dtype(dtype), offset)
    expected = int(np.prod(shape)) * entry.dtype.itemsize
    if f.tell() != end or length != expected:
        raise ValueError(
            f'{file} is damaged: an array of {expected} bytes has {length} at {offset}'
        )
    return entry


def _uint(f: BinaryIO, size: int) -> int:
    data = f.read(size)
    if len(data) < size:
        raise ValueError(f'{f.name} ends in the middle of a value: it is cut off')
    return int.from_bytes(data, 'big')
