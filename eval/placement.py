"""Where a batch lives: its rows are split over the mesh that the base's parameters live on."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxpeft.models.sharding import ROWS


def rows(params: Any, batch: int) -> tuple[Callable[..., tuple], int, int]:
    """The function that places arrays by rows, and the batch size it needs.

    Args:
      params: the base; a leaf on a mesh of several devices decides.
      batch: rows a batch, as asked for.

    Returns:
      (place, size, multiple): `place(*arrays)` gives each array [B, ...] split over the mesh's data
      and fsdp axes (unchanged when there is one device); `size` is `batch` rounded up to the
      `multiple` of rows that divides evenly.

    Raises:
      ValueError: batch < 1.
    """
    if batch < 1:
        raise ValueError(f'batch must be at least 1, got {batch}')
    meshes = [
        leaf.sharding.mesh
        for leaf in jax.tree.leaves(params)
        if isinstance(getattr(leaf, 'sharding', None), NamedSharding)
    ]
    axes = tuple(a for a in ROWS if meshes and a in meshes[0].axis_names)
    parts = int(np.prod([meshes[0].shape[a] for a in axes])) if axes else 1
    if parts == 1:
        return lambda *arrays: arrays, batch, 1
    where = NamedSharding(meshes[0], PartitionSpec(axes))
    size = -(-batch // parts) * parts
    return lambda *arrays: tuple(jax.device_put(a, where) for a in arrays), size, parts
