"""The device mesh (data, fsdp, tensor), and where a batch lies on it.

Rows of a batch are split over data and fsdp; the base's kernels over fsdp and tensor
(`jaxpeft.models.base_shardings`); the adapter follows the kernels (`jaxpeft.shardings`).
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpeft.models.sharding import ROWS

AXES = ('data', 'fsdp', 'tensor')


def make(text: str, devices: Sequence[Any] | None = None) -> Mesh:
    """'2,2,2' or '-1,1,1' -> a mesh of devices, this machine's by default; -1 takes all left.

    Raises:
      ValueError: for text of another form, more devices than there are, or a -1 that would leave
        some of them idle.

    Example:
      >>> make('1,1,1').shape['data']
      1
    """
    devices = jax.devices() if devices is None else devices
    try:
        sizes = [int(part) for part in text.split(',')]
    except ValueError:
        sizes = []
    if len(sizes) != 3 or sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
        raise ValueError(
            f'--mesh takes three sizes data,fsdp,tensor, one of them -1 at most, got {text!r}'
        )
    known = math.prod(n for n in sizes if n != -1)
    if -1 in sizes:
        if known < len(devices) and len(devices) % known:
            fits = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
            raise ValueError(
                f'--mesh {text}: {len(devices)} devices are no multiple of {known}, so -1 would '
                f'leave {len(devices) % known} idle; the other two sizes may multiply to '
                f'{", ".join(map(str, fits))}, or give all three to use fewer devices'
            )
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    needed = math.prod(sizes)
    if needed > len(devices):
        raise ValueError(
            f'--mesh {text} needs {needed} devices, but {len(devices)} '
            f'({devices[0].device_kind}) can be seen; the nearest that fits is '
            f'--mesh {len(devices)},1,1'
        )
    kinds = (AxisType.Auto,) * 3
    return jax.make_mesh(tuple(sizes), AXES, axis_types=kinds, devices=devices[:needed])


def within(mesh: Mesh, function: Callable) -> Callable:
    """The function traced with the mesh in sight, for `jaxpeft.models.sharding.split_rows`."""

    @functools.wraps(function)
    def traced(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def row_multiple(mesh: Mesh) -> int:
    """The number that a batch's rows must be a multiple of."""
    return mesh.shape['data'] * mesh.shape['fsdp']


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def placed(shapes: Any, layout: Any) -> Any:
    """A tree of shapes with the shardings of another."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout
    )


def put(mesh: Mesh, batch: Mapping[str, np.ndarray], axis: int) -> dict[str, jax.Array]:
    """Sends a batch to the devices, split along `axis` (its rows) where the size allows.

    Args:
      mesh: the mesh.
      batch: arrays whose `axis` counts rows (or labelled positions).
      axis: 1 for a batch with micro-batches in front, 0 without.
    """
    return {name: jax.device_put(x, split(mesh, x.shape, axis)) for name, x in batch.items()}


def split(mesh: Mesh, shape: tuple[int, ...], axis: int) -> NamedSharding:
    """How `put` lays an array of this shape out."""
    if shape[axis] % row_multiple(mesh):
        return replicated(mesh)
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, ROWS))
