"""Attention over runs in blocks: about half of the scores, and no weights kept for the backward.

A row's queries see no key behind them. So its scores are taken in blocks, forward of queries over
the keys up to them, backward of keys over the queries from them on; the sums are those of
FlashAttention (Dao et al. 2022, arXiv 2205.14135):

    forward    S = scale Q K^T     m = rowmax S     E = exp(S - m)     O = E V / rowsum E
               kept: Q, K, V, O, and l = m + log(rowsum E)
    backward   P^T = exp(scale K Q^T - l)           dS^T = P^T o (V dO^T - rowsum(dO o O))
               dV = P^T dO         dK = scale dS^T Q                   dQ = scale dS K

Backward the keys are on the left because XLA's CPU products want them so: one that sums over the
left's first axis, as `P^T dO` does from P, packs it anew, and cost as much as the rest together.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxpeft.models.heads import dot, swapped, visible

Array = jax.Array
# Added to the score of a key that is not seen: finite, so that no row has only infinities.
UNSEEN = -1e30


class Rows(NamedTuple):
    """Who sees whom, in rows in which every segment is one run of tokens.

    Attributes:
      pos, seg: int32 `[B, T]`, a token's place in its segment, and its segment (0 = padding).
      window: int32 scalar or int, width of local attention; None: global.
    """

    pos: Array
    seg: Array
    window: Array | int | None

    def unseen(self, turned: bool) -> Array:
        """float32 `[B, T, T]`: 0 where a query sees a key, else UNSEEN; queries last if turned."""
        seen = visible(self.pos, self.pos, self.seg, self.seg, self.window, turned)
        return jnp.where(seen, 0.0, UNSEEN)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(q: Array, k: Array, v: Array, rows: Rows, scale: float, edges: tuple[int, ...]) -> Array:
    """`softmax(scale * q k^T) v` over the keys that a query sees, in blocks.

    Args:
      q: `[B, T, G, R, D]`, R query heads to each of the G heads of the keys.
      k: `[B, T, G, D]`.
      v: `[B, T, G, D]`.
      rows: who sees whom.
      scale: a number.
      edges: `(0, i, ..., T)`, where the blocks begin, and the end.

    Returns:
      `[B, T, G, R, D]` in v's dtype; zeros where a query sees nothing.

    Example:
      >>> x = jnp.arange(4.0).reshape(1, 4, 1, 1)
      >>> rows = Rows(jnp.array([[0, 1, 0, 0]]), jnp.array([[1, 1, 2, 0]]), None)
      >>> attend(x[..., None], x, x, rows, 100.0, (0, 2, 4)).ravel().tolist()
      [0.0, 1.0, 2.0, 0.0]
    """
    return _forward(q, k, v, rows, scale, edges)[0]


def _forward(
    q: Array, k: Array, v: Array, rows: Rows, scale: float, edges: tuple[int, ...]
) -> tuple[Array, Any]:
    queries = _kept(jnp.transpose(q, (0, 2, 3, 1, 4)))
    keys, values = _kept(swapped(k)), _kept(swapped(v))
    unseen, outs, logs = rows.unseen(turned=False)[:, None, None], [], []
    for i, j in itertools.pairwise(edges):
        block = queries[:, :, :, i:j]
        s = scale * _split(dot(_flat(block), keys[:, :, :j], 3, 3), block)
        s = s + unseen[..., i:j, :j]
        top = jnp.maximum(s.max(axis=-1, keepdims=True), UNSEEN / 2)
        e = jnp.exp(s - top)
        total = e.sum(axis=-1, keepdims=True)
        out = _split(dot(_flat(e.astype(v.dtype)), values[:, :, :j], 3, 2), block)
        outs.append((out / jnp.where(total > 0, total, 1.0)).astype(v.dtype))
        logs.append(jnp.where(total > 0, top + jnp.log(total), 0.0))
    out = _kept(jnp.transpose(jnp.concatenate(outs, axis=3), (0, 3, 1, 2, 4)))
    log = _kept(jnp.concatenate(logs, axis=3)[..., 0])
    return out, (queries, keys, values, out, log, rows)


def _backward(scale: float, edges: tuple[int, ...], saved: Any, dout: Array) -> tuple:
    q, k, v, out, log, rows = saved
    wide = partial(jnp.einsum, preferred_element_type=jnp.float32, precision='highest')
    row = jnp.transpose(wide('btgrd,btgrd->btgr', dout, out), (0, 2, 3, 1))
    do, unseen = jnp.transpose(dout, (0, 2, 3, 1, 4)), rows.unseen(turned=True)[:, None, :, None]
    dqs, dks, dvs = [], [], []
    for i, j in itertools.pairwise(edges):
        later, dlater = q[:, :, :, i:], do[:, :, :, i:]
        keys, shape = k[:, :, i:j], (*k.shape[:2], j - i, *later.shape[2:4])
        s = scale * dot(keys, _flat(later), 3, 3).reshape(shape) + unseen[:, :, i:j, :, i:]
        p = jnp.exp(s - log[:, :, None, :, i:])
        dp = dot(v[:, :, i:j], _flat(dlater), 3, 3).reshape(shape)
        ds = scale * p * (dp - row[:, :, None, :, i:])
        p, ds = (x.astype(k.dtype).reshape(*shape[:3], -1) for x in (p, ds))
        dvs.append(dot(p, _flat(dlater), 3, 2))
        dks.append(dot(ds, _flat(later), 3, 2))
        dqs.append(dot(ds, keys, 2, 2).reshape(later.shape))
    dq = dqs[0]
    for i, part in zip(edges[1:-1], dqs[1:], strict=True):
        dq = dq.at[:, :, :, i:].add(part)
    dk, dv = (swapped(jnp.concatenate(d, axis=2)).astype(k.dtype) for d in (dks, dvs))
    return jnp.transpose(dq, (0, 3, 1, 2, 4)).astype(q.dtype), dk, dv, None


attend.defvjp(_forward, _backward)


def _kept(x: Array) -> Array:
    """Kept by the policies that keep products (`jaxpeft.models.stack`), as it lies."""
    return checkpoint_name(x, 'attention')


def _flat(x: Array) -> Array:
    """`[B, G, R, t, N] -> [B, G, R t, N]`."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _split(x: Array, like: Array) -> Array:
    """`[B, G, R t, N] -> [B, G, R, t, N]`, with the R and t of `like`."""
    return x.reshape(*like.shape[:4], x.shape[-1])
