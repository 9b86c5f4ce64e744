"""How a base model lies on a (data, fsdp, tensor) mesh: one table of regex rules over paths.

Column-parallel kernels (their outputs split over `tensor`) feed row-parallel ones (their inputs
split), so that a layer needs one sum over `tensor` for attention and one for the feed-forward;
`fsdp` splits the other axis. Leading stack axes stay whole.

What a model computes lies where the compiler puts it, with one word from here: `split_rows`.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpeft.models import names

Tree = Any
Axes = tuple[str | None, ...]
ROWS = ('data', 'fsdp')  # the mesh axes over which the rows of a batch are split

# Full match on the path, first rule wins; the axes belong to the last dimensions.
RULES: tuple[tuple[str, Axes], ...] = (
    (r'.*/(q_proj|k_proj|v_proj|gate_proj|up_proj|c_fc)/kernel', ('fsdp', 'tensor')),
    (r'.*/(o_proj|out_proj|down_proj|c_proj)/kernel', ('tensor', 'fsdp')),
    (r'(.*/)?lm_head/kernel', ('fsdp', 'tensor')),
    (r'.*/embedding', ('tensor', 'fsdp')),
    (r'.*', ()),
)


def base_shardings(params_shape: Tree, mesh: Mesh) -> Tree:
    """The NamedSharding of every parameter.

    Args:
      params_shape: parameters, or their jax.ShapeDtypeStruct; scanned or unrolled.
      mesh: with any of the axes 'data', 'fsdp', 'tensor'; one that is absent, or that does not
        divide a dimension, leaves that dimension whole.

    Raises:
      ValueError: an axis of the mesh is not of AxisType.Auto (jax.make_mesh makes explicit ones).

    Example:
      >>> import jax
      >>> auto = (jax.sharding.AxisType.Auto,) * 3
      >>> mesh = jax.make_mesh((1, 4, 2), ('data', 'fsdp', 'tensor'), axis_types=auto)
      >>> shapes = {'lm_head': {'kernel': jax.ShapeDtypeStruct((64, 512), 'float32')}}
      >>> tuple(base_shardings(shapes, mesh)['lm_head']['kernel'].spec)
      ('fsdp', 'tensor')
    """
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            'the mesh must have axes of AxisType.Auto: the models leave the placing of what they '
            f'compute to the compiler; got {mesh.axis_types}'
        )
    out = {
        path: NamedSharding(mesh, _spec('/'.join(path), tuple(leaf.shape), mesh))
        for path, leaf in names.flatten(params_shape)
    }
    return names.unflatten(out)


def split_rows(x: jax.Array) -> jax.Array:
    """Keeps the first axis of activations over data and fsdp, the others whole.

    Kernels and rows are both split over fsdp, and a product of the two can keep only one. Left to
    itself the compiler keeps the kernels': every device then computes all rows of a part of the
    features, and sums partial products over all devices after each layer. With this the kernels
    are gathered, layer by layer.

    Acts under `jax.sharding.use_abstract_mesh` with a mesh of Auto axes, as `train.step` traces
    the models; elsewhere, and where the axes do not divide the rows, it returns `x`.
    """
    ways = _ways(*ROWS)
    if ways == 1 or x.shape[0] % ways:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS, *[None] * (x.ndim - 1)))


def split_looked_up(x: jax.Array) -> jax.Array:
    """`split_rows` for what a lookup gives, in a table whose features are split over fsdp.

    Where data and fsdp both split, the compiler finds no way from the one to the other but to
    gather everything first; by way of rows over data, features over fsdp, it is one exchange.
    """
    if min(_ways('data'), _ways('fsdp')) > 1 and not (
        x.shape[0] % _ways(*ROWS) or x.shape[-1] % _ways('fsdp')
    ):
        halfway = PartitionSpec('data', *[None] * (x.ndim - 2), 'fsdp')
        x = jax.lax.with_sharding_constraint(x, halfway)
    return split_rows(x)


def alone() -> bool:
    """Whether no mesh of several devices is in sight, as `split_rows` sees one."""
    return jax.sharding.get_abstract_mesh().size <= 1


def _ways(*axes: str) -> int:
    """How many parts these axes of the mesh in sight make; 1 where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if any(kinds.get(axis) != AxisType.Auto for axis in axes):
        return 1
    return math.prod(mesh.shape[axis] for axis in axes)


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    axes = next(axes for pattern, axes in RULES if re.fullmatch(pattern, path))
    if not axes:
        return PartitionSpec()
    lead = (None,) * (len(shape) - len(axes))
    kept = [_fits(axis, size, mesh) for axis, size in zip(axes, shape[len(lead) :], strict=True)]
    return PartitionSpec(*lead, *kept)


def _fits(axis: str | None, size: int, mesh: Mesh) -> str | None:
    if axis is None or axis not in mesh.axis_names:
        return None
    return axis if size % mesh.shape[axis] == 0 else None
