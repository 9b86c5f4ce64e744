"""Attention over packed rows by a platform's kernel: splash on TPU, cuDNN's on GPU.

Both give what `attention.Attention` gives for rows of runs (see `kernels.py`), and keep [T] numbers
a head for the backward pass where the plain path keeps [T, T]. A query that is padding sees the
padding before it, since no row of a kernel's scores may be empty; its result is then set to zero,
and with it what flows back from it.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as sp

from jaxpeft.models.kernels import TILE, Kernel

Array = jax.Array
ONE_BLOCK = 512  # tokens; a longer row is cut into blocks


def splash(
    q: Array,
    k: Array,
    v: Array,
    seg: Array,
    window: Array | int | None,
    kernel: Kernel,
    scale: float,
    interpret: bool = False,
) -> Array:
    """JAX's splash attention: causal or local, by segments, grouped queries; skips empty blocks.

    Rows are filled up to a multiple of 128 tokens. The scores and the softmax are float32. `scale`
    goes into q, in q's dtype: exact where it is a power of two, else one more rounding of q.

    Args:
      q: `[B, T, H, D]`.
      k: `[B, T, G, D]`.
      v: `[B, T, G, D]`.
      seg: `[B, T]` int32.
      window: None, int, or a traced int32 scalar, one of `kernel.windows`: then one kernel for each
        of them is compiled, and a branch taken.
      kernel: as chosen.
      scale: of the scores.
      interpret: run it in Pallas's interpreter.
    """
    length = q.shape[1]
    padded, block = tiles(length)
    fill = [(0, 0), (0, padded - length), (0, 0), (0, 0)]
    scaled = q if scale == 1.0 else (q.astype(jnp.float32) * scale).astype(q.dtype)
    inputs = [jnp.moveaxis(jnp.pad(x, fill), 2, 1) for x in (scaled, k, v)]
    segments = None if kernel.whole else jnp.pad(seg, fill[:2])

    def of_width(width: int) -> Any:
        attend = _splash(q.shape[2], padded, width, block, interpret)

        def rows(q: Array, k: Array, v: Array, seg: Array | None) -> Array:
            each = lambda q, k, v, s: attend(q, k, v, None if s is None else sp.SegmentIds(s, s))
            return jax.vmap(each, in_axes=(0, 0, 0, None if seg is None else 0))(q, k, v, seg)

        return rows

    # A window that reaches over the whole row is none.
    wide = lambda width: padded if width is None or width >= length else width
    if window is None or isinstance(window, int):
        out = of_width(wide(window))(*inputs, segments)
    else:
        widths = sorted({wide(width) for width in kernel.windows})
        index = sum((window > width).astype(jnp.int32) for width in widths[:-1])
        branches = [of_width(width) for width in widths]
        out = jax.lax.switch(jnp.asarray(index, jnp.int32), branches, *inputs, segments)
    return _without_padding(jnp.moveaxis(out, 1, 2)[:, :length], seg, kernel)


def tiles(length: int) -> tuple[int, int]:
    """(length filled up, tokens a block): one block up to 512 tokens, then blocks of 512 or 256.

    Example:
      >>> tiles(200), tiles(384), tiles(600), tiles(2048)
      ((256, 256), (384, 384), (768, 256), (2048, 512))
    """
    if length <= ONE_BLOCK:
        padded = -(-length // TILE) * TILE
        return padded, padded
    half = ONE_BLOCK // 2
    padded = -(-length // half) * half
    return padded, ONE_BLOCK if padded % ONE_BLOCK == 0 else half


@functools.lru_cache(maxsize=64)
def _splash(heads: int, length: int, width: int, block: int, interpret: bool) -> Any:
    """The kernel of one row; its tables of blocks are numbers, whoever is tracing.

    Its backward pass is one kernel (scores once, not twice) where one block holds all keys: with
    several it writes a dq of each to memory.
    """
    causal = sp.CausalMask((length, length))
    one = causal if width >= length else sp.LocalMask((length, length), (width - 1, 0), 0)
    fused = block == length
    blocks = sp.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block,
        block_kv_dkv_compute=block, block_q_dq=None if fused else block,
        block_kv_dq=None if fused else block, use_fused_bwd_kernel=fused,
    )  # fmt: skip
    with jax.ensure_compile_time_eval():
        return sp.make_splash_mha(
            sp.MultiHeadMask([one] * heads), block_sizes=blocks, head_shards=1, q_seq_shards=1,
            interpret=interpret,
        )  # fmt: skip


def cudnn(
    q: Array,
    k: Array,
    v: Array,
    seg: Array,
    window: Array | int | None,
    kernel: Kernel,
    scale: float,
    implementation: Literal['xla', 'cudnn'] = 'cudnn',
) -> Array:
    """`jax.nn.dot_product_attention`: causal, with a mask where segments or a window ask for one.

    The mask `[B, 1, T, T]` is the one documented way to tell it of several segments in a row (its
    sequence lengths tell of one). JAX hands it to cuDNN as a bias, whose gradient nobody needs and
    which has had bugs of its own (jax-ml/jax issues 28974, 30593): hence not without being asked.

    Args:
      q: `[B, T, H, D]`.
      k: `[B, T, G, D]`.
      v: `[B, T, G, D]`.
      seg: `[B, T]` int32.
      window: None, int, or a traced int32 scalar.
      kernel: as chosen.
      scale: of the scores.
      implementation: of JAX; 'xla' runs anywhere.
    """
    mask = None
    if not kernel.whole:
        mask = (seg[:, :, None] == seg[:, None, :])[:, None]
    if window is not None:
        place = jnp.arange(q.shape[1], dtype=jnp.int32)
        near = (place[:, None] - place[None, :] < window)[None, None]
        mask = near if mask is None else mask & near
    out = jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=scale, is_causal=True, implementation=implementation
    )
    return _without_padding(out, seg, kernel)


def _without_padding(out: Array, seg: Array, kernel: Kernel) -> Array:
    if kernel.whole:
        return out
    return jnp.where((seg != 0)[:, :, None, None], out, jnp.zeros((), out.dtype))
