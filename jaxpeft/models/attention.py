"""The attention core: one module with one fixed signature, so that an override can replace it."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxpeft.models import blocked, kernels
from jaxpeft.models.heads import dot, swapped, visible
from jaxpeft.models.spread import Spread

Array = jax.Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Apart:
    """A mark, static, so that it goes through scan and remat as structure; remat traces a bool."""


class Context(NamedTuple):
    """What every layer of one forward pass shares.

    Attributes:
      q_pos, q_seg: [B, T] int32, position within its segment and segment (0 = padding) of every
        query.
      k_pos, k_seg: [B, S] int32, the same of every key; S = T without a cache.
      cos, sin: [B, T, D / 2] float32 rotation of the queries' positions, None for learned
        positions.
      slot: int32 scalar, where the new keys go in the cache; None without one.
      apart: where the cache has an array a layer (`cache.apart`); None elsewhere.
      kernel: what may run in place of the plain attention; static.
      spread: how tokens that stand once become the queries and keys; None where each has its own.
      places: [G, P] int32, then the positions of those tokens.
    """

    q_pos: Array
    q_seg: Array
    k_pos: Array
    k_seg: Array
    cos: Array | None = None
    sin: Array | None = None
    slot: Array | None = None
    apart: Apart | None = None
    kernel: kernels.Kernel | None = None
    spread: Spread | None = None
    places: Array | None = None

    @property
    def token_pos(self) -> Array:
        """The positions of the tokens that linear layers see: [B, T], or [G, P]."""
        return self.q_pos if self.places is None else self.places


class LayerInputs(NamedTuple):
    """What differs from layer to layer; a leading layer axis under a scan.

    Attributes:
      window: int32 scalar or int, width of local attention; None: global.
      k, v: [B, Hkv, S, D], this layer's cache (see `cache.apart`); None without one.
    """

    window: Array | int | None = None
    k: Array | None = None
    v: Array | None = None


class Attention(nn.Module):
    """softmax(scale * q k^T) v over the visible keys, grouped queries, softmax in float32.

    A query that sees nothing (padding) gives zeros, never NaN. The module has no parameters.

    Attributes:
      scale: multiplies the scores; 1 in GPT-Neo, 1 / sqrt(D) elsewhere.
      context, layer: what the model's layer was called with; with them a platform's kernel may take
        the plain path's place (see `kernels`).
    """

    scale: float
    context: Context | None = None
    layer: LayerInputs | None = None

    def __call__(
        self,
        q: Array,
        k: Array,
        v: Array,
        *,
        q_pos: Array,
        k_pos: Array,
        q_seg: Array,
        k_seg: Array,
        window: Array | int | None = None,
        bias: Array | None = None,
    ) -> Array:
        """q: [B, T, H, D]; k, v: [B, S, Hkv, D], Hkv divides H -> [B, T, H, D] in q's dtype.

        `bias`, float32 [B or 1, H, T, S], is added to the scaled scores; an override's way in.
        """
        kernel = self._kernel((q, k, v), (q_pos, k_pos, q_seg, k_seg, window, bias))
        if kernel is not None and kernel.name != 'blocks':
            return kernels.run(kernel, q, k, v, q_seg, window, self.scale)
        B, T, H, D = q.shape
        groups = k.shape[2]
        grouped = q.reshape(B, T, groups, H // groups, D)
        if kernel is not None:
            rows = blocked.Rows(q_pos, q_seg, window)
            out = blocked.attend(grouped, k, v, rows, self.scale, kernels.edges(T))
        else:
            mask = visible(q_pos, k_pos, q_seg, k_seg, window)[:, None, None]
            if bias is not None:
                bias = bias.reshape(-1, groups, H // groups, *bias.shape[2:])
            out = attend(grouped, k, v, bias, mask, self.scale)
        return out.reshape(B, T, H, D).astype(q.dtype)

    def _kernel(self, qkv: tuple[Array, ...], given: tuple) -> kernels.Kernel | None:
        """The kernel of this pass, unless an override changed what it does not look at.

        What the layer itself hands over are the very objects of `context` and `layer`.

        Raises:
          ValueError: then, where the kernel was asked for by name.
        """
        c = self.context
        if c is None or self.layer is None or c.kernel is None:
            return None
        chosen = c.kernel
        own = (c.q_pos, c.k_pos, c.q_seg, c.k_seg, self.layer.window, None)
        same = all(a is b for a, b in zip(given, own, strict=True))
        if same and len({x.dtype for x in qkv}) == 1:
            return chosen
        if chosen.asked:
            raise ValueError(
                f'attention={chosen.name!r} knows no bias on the scores and no keys but those of '
                "the row's tokens in their order, and an override of the core (daa, prefix, s2) "
                "brings such; the nearest that works is 'auto'"
            )
        return None


def with_kernel(
    model: Any, ctx: Context, positions: Array | None, segment_ids: Array | None, packed: bool
) -> Context:
    """The context with the kernel that `model.attention` and the platform choose; see `kernels`.

    Raises:
      ValueError: a kernel asked for by name that cannot do this pass.
    """
    if ctx.slot is not None or model.is_initializing():
        return ctx
    how, config, shape = model.attention, model.config, ctx.q_pos.shape
    whole = positions is None and segment_ids is None
    found = kernels.choose(how, config, model.dtype, shape, packed=packed, whole=whole)
    found = found or kernels.in_blocks(how, config, shape[1], packed=packed, whole=whole)
    return ctx._replace(kernel=found)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(q: Array, k: Array, v: Array, bias: Array | None, mask: Array, scale: float) -> Array:
    """`softmax(scale * q k^T + bias) v` over the keys of `mask`, its backward pass written out.

    Kept for it: q, k, v, the probabilities P and the result O. With dP = dO V^T,

        dS = P o (dP - rowsum(dO o O))      dq = scale dS K     dk = scale dS^T q     dV = P^T dO

    since `rowsum(dP o P) = rowsum(dO o O)`, a sum over D in place of one over S (Dao et al. 2022,
    arXiv 2205.14135). Autodiff keeps the mask and the unnormalised weights too, and its sums over
    S were a tenth of a step of GPT-Neo-125M on CPU.

    Args:
      q: `[B, T, G, R, D]`, R query heads to each of the G heads of the keys.
      k: `[B, S, G, D]`.
      v: `[B, S, G, D]`.
      bias: float32 `[B or 1, G, R, T, S]`, or None.
      mask: bool `[B, 1, 1, T, S]`.
      scale: a number.

    Returns:
      `[B, T, G, R, D]` in v's dtype; zeros where a query sees nothing.
    """
    return _attend_forward(q, k, v, bias, mask, scale)[0]


def _attend_forward(
    q: Array, k: Array, v: Array, bias: Array | None, mask: Array, scale: float
) -> tuple[Array, Any]:
    queries = _queries(q)
    scores = _split(dot(queries, swapped(k), 3, 3), q.shape) * scale
    scores = scores if bias is None else scores + bias
    probs = masked_softmax(scores, mask).astype(v.dtype)
    probs = probs.reshape(*queries.shape[:3], k.shape[1])
    out = dot(probs, swapped(v), 3, 2, v.dtype)
    like = None if bias is None else jnp.zeros((bias.shape[0], 0))  # its shape tells what to sum
    return _tokens_first(_split(out, q.shape)), (queries, k, v, probs, out, like)


def _attend_backward(scale: float, saved: Any, dout: Array) -> tuple:
    queries, k, v, probs, out, like = saved
    do, dbias = _queries(dout), None
    row = jnp.sum(do.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    dscores = probs.astype(jnp.float32) * (dot(do, swapped(v), 3, 3) - row)
    if like is not None:
        dbias = _split(dscores, dout.shape)
        dbias = dbias if like.shape[0] == dout.shape[0] else dbias.sum(axis=0, keepdims=True)
    narrow = (scale * dscores).astype(k.dtype)
    dq = _tokens_first(_split(dot(narrow, swapped(k), 3, 2), dout.shape)).astype(queries.dtype)
    dk, dv = dot(narrow, queries, 2, 2), dot(probs, do, 2, 2)
    return dq, swapped(dk).astype(k.dtype), swapped(dv).astype(k.dtype), dbias, None


def _queries(x: Array) -> Array:
    """`[B, T, G, R, D] -> [B, G, R T, D]`."""
    b, t, g, r, d = x.shape
    return jnp.transpose(x, (0, 2, 3, 1, 4)).reshape(b, g, r * t, d)


def _split(x: Array, shape: tuple[int, ...]) -> Array:
    """`[B, G, R T, N] -> [B, G, R, T, N]`; `shape` is that of the queries."""
    b, t, g, r, _ = shape
    return x.reshape(b, g, r, t, x.shape[-1])


def _tokens_first(x: Array) -> Array:
    """`[B, G, R, T, D] -> [B, T, G, R, D]`."""
    return jnp.transpose(x, (0, 3, 1, 2, 4))


attend.defvjp(_attend_forward, _attend_backward)


def masked_softmax(scores: Array, mask: Array) -> Array:
    """Softmax over the last axis where `mask`; a row without one is zeros, as is its gradient."""
    low = jnp.finfo(scores.dtype).min
    masked = jnp.where(mask, scores, low)
    top = jax.lax.stop_gradient(masked.max(axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(masked - top), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)
