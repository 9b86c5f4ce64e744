"""Which attention a forward pass runs: the plain one, or a kernel that its platform has for it.

    platform   kernel   what `attention='auto'` takes it for
    TPU        splash   rows of runs (below) of at least 128 tokens
    GPU        cudnn    rows that are one segment each, in bfloat16 or float16
    others     none; then `blocks` (`blocked.py`), rows of runs of at least 128 tokens in blocks

The plain path of `attention.py` is the reference. A kernel sees only which row of the batch a token
is in, its place there and its segment, so it is right where these say what positions say: where
every segment of a row is one RUN of tokens, whose positions count up by one. That is so of rows
without segments and positions, and of those whose caller promises it (`packed=True`, as training
does). A pass with a key/value cache, a bias on the scores, or an override that changed who sees
whom is always the plain one.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from jaxpeft.models.config import ModelConfig
from jaxpeft.models.sharding import ROWS
from jaxpeft.near import nearest

Array = jax.Array
NAMES = ('auto', 'plain', 'splash', 'cudnn')
PLATFORMS = {'tpu': 'splash', 'gpu': 'cudnn'}
DTYPES = {'splash': ('bfloat16', 'float32'), 'cudnn': ('bfloat16', 'float16')}
TILE = 128  # lanes of a TPU: a shorter row is mostly padding there
CAPABILITY = (8, 0)  # of an NVIDIA GPU; from Hopper (9, 0) on heads may be twice as wide
BLOCK = 64  # queries of a block, at least
BLOCKS = 4  # of a row, at most: they leave 5/8 of its scores, and more take longer to compile
INTERPRET = False  # the tests run the TPU's kernel in Pallas's interpreter


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Kernel:
    """The kernel of one forward pass; static, so that it goes through scan and remat as structure.

    Attributes:
      name: 'splash' or 'cudnn'; 'blocks' is no platform's.
      asked: by name, so that what it cannot do is an error.
      whole: every row is one segment without padding.
      windows: the distinct windows of the model's layers, None for global ones.
    """

    name: str
    asked: bool
    whole: bool
    windows: tuple[int | None, ...]


def choose(
    attention: str,
    config: ModelConfig,
    dtype: Any,
    shape: tuple[int, ...],
    *,
    packed: bool,
    whole: bool,
) -> Kernel | None:
    """The kernel of a forward pass without a cache; None for the plain path.

    Decided while tracing, from what is static: the platform is that of the mesh in sight, or where
    there is none JAX's default one.

    Args:
      attention: one of `NAMES`.
      config: the model's.
      dtype: of its activations.
      shape: (rows, tokens in each).
      packed: every segment of a row is one run of tokens whose positions count up by one.
      whole: there are neither segments nor positions.

    Raises:
      ValueError: an unknown name; a kernel asked for by name that cannot do this pass.
    """
    if attention not in NAMES:
        raise ValueError(
            f'attention must be one of {", ".join(NAMES)}, got {attention!r}; '
            f'{nearest(attention, NAMES)}'
        )
    asked = attention != 'auto'
    name = attention if asked else PLATFORMS.get(platform(), 'plain')
    if name == 'plain':
        return None
    refused = _refused(name, config, dtype, shape, packed or whole)
    if (
        not asked
        and name == 'cudnn'
        and not refused
        and not (whole and set(config.windows) == {None})
    ):
        refused = 'a mask'  # see `fused.cudnn`
    if not asked and name == 'splash' and not refused and shape[1] < TILE:
        refused = 'short rows'
    if not refused:
        return Kernel(name, asked, whole, tuple(dict.fromkeys(config.windows)))
    if asked:
        raise ValueError(
            f"attention={name!r} {refused}; the nearest that works is 'auto', which takes a "
            "kernel where it can, or 'plain'"
        )
    return None


def in_blocks(
    attention: str, config: ModelConfig, length: int, *, packed: bool, whole: bool
) -> Kernel | None:
    """Rows in blocks, where `choose` found no kernel; None where a row is too short.

    Args:
      attention, config, packed, whole: as for `choose`; 'plain' is the path in one piece.
      length: tokens of a row.
    """
    if attention != 'auto' or not (packed or whole) or len(edges(length)) == 2:
        return None
    return Kernel('blocks', False, whole, tuple(dict.fromkeys(config.windows)))


def edges(length: int) -> tuple[int, ...]:
    """Where a row's blocks begin, and where the last one ends.

    Example:
      >>> edges(200), edges(1024), edges(100)
      ((0, 67, 133, 200), (0, 256, 512, 768, 1024), (0, 100))
    """
    blocks = max(1, min(BLOCKS, length // BLOCK))
    return tuple(round(i * length / blocks) for i in range(blocks + 1))


def platform() -> str:
    """'tpu', 'gpu' or 'cpu': of the mesh in sight, else where JAX puts what is placed nowhere."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        return device.platform
    chosen = jax.config.values['jax_default_device']
    return getattr(chosen, 'platform', chosen) or jax.default_backend()


def _refused(name: str, config: ModelConfig, dtype: Any, shape: tuple, runs: bool) -> str:
    """The rule that this pass breaks, and what came; '' where it breaks none."""
    here = next((p for p, kernel in PLATFORMS.items() if kernel == name))
    if platform() != here:
        return f'runs on a {here.upper()} only, this is traced for a {platform()}'
    if jnp.dtype(dtype).name not in DTYPES[name]:
        return f'takes {" or ".join(DTYPES[name])}, the model has dtype {jnp.dtype(dtype).name}'
    if not runs:
        return (
            'needs rows in which every segment is one run of tokens and positions count up in it; '
            'positions or segment_ids were given without packed=True, which promises that'
        )
    if name == 'cudnn' and (wrong := _gpu_refuses(config, shape[1])):
        return wrong
    return _mesh_refuses(config, shape[0])


def _gpu_refuses(config: ModelConfig, length: int) -> str:
    device = jax.local_devices(backend='gpu')[0]
    has = tuple(int(n) for n in getattr(device, 'compute_capability', '0.0').split('.'))
    if 'cuda' not in device.client.platform_version or has < CAPABILITY:
        return f'needs an NVIDIA GPU of compute capability 8.0, this is {device.device_kind}'
    widest = 128 if has < (9, 0) else 256
    if config.head_dim % 8 or config.head_dim > widest:
        return f'needs heads of a multiple of 8, at most {widest}, the model has {config.head_dim}'
    return f'needs rows of even length, got {length}' if length % 2 else ''


def _mesh_refuses(config: ModelConfig, rows: int) -> str:
    """A kernel is nothing that the compiler could split: each device must have its own part."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        several = jax.device_count() > 1
        return 'on several devices needs their mesh in sight (use_abstract_mesh)' if several else ''
    if any(kind == AxisType.Explicit for kind in mesh.axis_types):
        return f'needs a mesh of Auto axes, got {mesh.axis_types}'
    ways, heads = math.prod(_size(axis) for axis in ROWS), _size('tensor')
    if rows % ways:
        return f'needs rows in a multiple of data * fsdp = {ways}, got {rows}'
    if config.num_kv_heads % heads:
        return f'needs key heads in a multiple of tensor = {heads}, got {config.num_kv_heads}'
    return ''


def _size(axis: str) -> int:
    """Parts that an Auto axis of the mesh in sight makes; 1 where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    auto = dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get(axis) == AxisType.Auto
    return mesh.shape[axis] if auto else 1


def run(
    kernel: Kernel, q: Array, k: Array, v: Array, seg: Array, window: Any, scale: float
) -> Array:
    """`attention.Attention` by the kernel, each device of the mesh in sight on its own part.

    Args:
      kernel: of `choose`.
      q: `[B, T, H, D]`.
      k: `[B, T, G, D]`.
      v: `[B, T, G, D]`.
      seg: `[B, T]` int32, 0 is padding.
      window: None, int, or an int32 scalar of which `kernel.windows` holds all values.
      scale: of the scores.

    Returns:
      `[B, T, H, D]` in v's dtype, zeros where `seg` is 0.
    """
    from jaxpeft.models import fused  # brings Pallas in, which takes half a second

    far = jnp.int32(q.shape[1]) if window is None else jnp.asarray(window, jnp.int32)

    def local(q: Array, k: Array, v: Array, seg: Array, far: Array) -> Array:
        seen = window if window is None or isinstance(window, int) else far
        if kernel.name == 'splash':
            return fused.splash(q, k, v, seg, seen, kernel, scale, INTERPRET)
        return fused.cudnn(q, k, v, seg, seen, kernel, scale)

    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Auto not in mesh.axis_types:
        return local(q, k, v, seg, far)
    rows = tuple(axis for axis in ROWS if axis in mesh.axis_names)
    heads = 'tensor' if 'tensor' in mesh.axis_names else None
    tokens, each = PartitionSpec(rows, None), PartitionSpec(rows, None, heads, None)
    specs = (each, each, each, tokens, PartitionSpec())
    mapped = jax.shard_map(local, in_specs=specs, out_specs=each, check_vma=False)
    return mapped(q, k, v, seg, far)
