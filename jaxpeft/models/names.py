"""Parameter paths: jaxpeft's (as in Hugging Face's Flax classes) and those of torch checkpoints.

A path is a tuple of names. The layers sit under `h` (GPT-Neo) or `layers` (decoders): one subtree
with a leading layer axis when scanned, one numbered subtree a layer when unrolled. `stack` and
`unstack` go from one to the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

Path = tuple[str, ...]
Tree = Any
CONTAINERS = (('transformer', 'h'), ('model', 'layers'))

# Buffers that torch checkpoints carry and no parameter corresponds to.
IGNORABLE = re.compile(r'(.*\.)?(attn\.attention\.(bias|masked_bias)|rotary_emb\.inv_freq)')


def flatten(tree: Tree, prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, leaf) of a nested dict, in its own order."""
    for key, value in tree.items():
        path = (*prefix, key)
        if isinstance(value, Mapping):
            yield from flatten(value, path)
        else:
            yield path, value


def unflatten(items: Mapping[Path, Any]) -> Tree:
    """The nested dict of a {path: leaf} mapping."""
    tree: dict[str, Any] = {}
    for path, value in items.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree


def torch_name(path: Path) -> str:
    """('model', 'layers', '3', 'mlp', 'up_proj', 'kernel') -> model.layers.3.mlp.up_proj.weight."""
    last = 'bias' if path[-1] == 'bias' else 'weight'
    return '.'.join((*path[:-1], last))


def is_kernel(path: Path) -> bool:
    """Kernels are [in, out] here and [out, in] in torch."""
    return path[-1] == 'kernel'


def split_layer(path: Path) -> tuple[Path, Path] | None:
    """(container, rest) of a path inside the layers, else None; rest[0] is a number if unrolled."""
    for container in CONTAINERS:
        if path[:2] == container:
            return container, path[2:]
    return None


def layer_path(path: Path, layer: int) -> Path:
    """The unrolled path of one layer's slice of a scanned leaf."""
    return (*path[:2], str(layer), *path[2:])


def is_stacked(path: Path) -> bool:
    """True for a leaf with a leading layer axis."""
    parts = split_layer(path)
    return parts is not None and not parts[1][0].isdigit()


def unstack(params: Tree) -> Tree:
    """The unrolled tree of a scanned one: leaf [L, ...] -> L leaves [...] under '0' .. 'L-1'.

    A tree that is unrolled already comes back equal. Any tree that mirrors the parameters will do.
    """
    out: dict[Path, Any] = {}
    for path, leaf in flatten(params):
        if not is_stacked(path):
            out[path] = leaf
            continue
        for layer in range(leaf.shape[0]):
            out[layer_path(path, layer)] = leaf[layer]
    return unflatten(out)


def stack(params: Tree) -> Tree:
    """The scanned tree of an unrolled one; the inverse of `unstack`.

    Raises:
      ValueError: the layers of one leaf are not numbered 0 .. L-1, or differ in shape.
    """
    out: dict[Path, Any] = {}
    layers: dict[Path, dict[int, Any]] = {}
    for path, leaf in flatten(params):
        if split_layer(path) is None or is_stacked(path):
            out[path] = leaf
        else:
            layers.setdefault((*path[:2], *path[3:]), {})[int(path[2])] = leaf
    for path, found in layers.items():
        shapes = {tuple(leaf.shape) for leaf in found.values()}
        if sorted(found) != list(range(len(found))) or len(shapes) > 1:
            raise ValueError(
                f'{"/".join(path)} must have one shape in layers 0..L-1 to be stacked, '
                f'got layers {sorted(found)} with shapes {sorted(shapes)}'
            )
        leaves = [found[layer] for layer in range(len(found))]
        join = np.stack if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp.stack
        out[path] = join(leaves)
    return unflatten(out)
