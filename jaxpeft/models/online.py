"""The loss through a bare head, piece by piece of the vocabulary: an online softmax.

For a row h with label y, a table E and logits z_v = h . E_v, over the words v of piece after piece:

    top'   = max(top, max z_v)                    top starts at z_y, the others at 0
    others = others exp(top - top') + sum exp(z_v - top')                 v != y
    mean   = mean   exp(top - top') + sum exp(z_v - top') E_v             v != y

    own = exp(z_y - top)      loss = log(own + others) + top - z_y
                              dloss/dh = (mean - others E_y) / (own + others)

Each word is multiplied with twice, as where all logits exist at one time, but of `[N, V]` only
`[N, piece]` does, and the table is read twice for up to `ROWS` rows. The label stands apart from
the others, so that neither the loss nor its gradient is a difference of two numbers near 1 where
the model is sure. The recurrence: Milakov and Gimelshein, 2018 (arXiv 1805.02867).
"""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
ROWS = 2048  # of the hidden states, at one time: each piece rescales [rows, D]
CELLS = 2**22  # logits at one time, 16 MB


def loss_and_slope(
    hidden: Array, table: Array, labels: Array, *, axis: int, dtype: Any
) -> tuple[Array, Array]:
    """-log softmax(hidden . table)[label] of each row, and its gradient by the row.

    Args:
      hidden: [N, D].
      table: [V, D] with `axis` 0, [D, V] with 1.
      labels: [N] int32, below V.
      axis: the words' axis of `table`.
      dtype: of the products' inputs; they are summed in float32.

    Returns:
      (float32 [N], [N, D] of hidden's dtype).

    Example:
      >>> import jax.numpy as jnp
      >>> one = jnp.ones((1, 2))
      >>> loss, slope = loss_and_slope(one, jnp.eye(2), jnp.array([1]), axis=0, dtype=one.dtype)
      >>> loss.tolist(), slope.tolist()
      ([0.6931471824645996], [[0.5, -0.5]])
    """
    n, width = hidden.shape
    if n <= ROWS:
        return _rows(hidden, table, labels, axis, dtype)
    chunks = (chunked(hidden, ROWS), chunked(labels, ROWS))
    out = jax.lax.map(lambda xs: _rows(xs[0], table, xs[1], axis, dtype), chunks)
    return out[0].reshape(-1)[:n], out[1].reshape(-1, width)[:n]


def chunked(x: Array, most: int) -> Array:
    """[N, ..] as [chunks, size, ..]: even chunks of at most `most` rows, padded with zeros."""
    chunks = max(-(-x.shape[0] // most), 1)
    size = -(-x.shape[0] // chunks)
    pad = [(0, chunks * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, pad).reshape(chunks, size, *x.shape[1:])


def _rows(hidden: Array, table: Array, labels: Array, axis: int, dtype: Any) -> tuple[Array, Array]:
    words = table.shape[axis]
    pieces = max(-(-labels.size * words // CELLS), 1)
    size = -(-words // pieces)
    h = hidden.astype(dtype)
    label_rows = jnp.take(table, labels, axis).astype(dtype).astype(jnp.float32)
    label_rows = label_rows if axis == 0 else label_rows.T
    own = jnp.sum(h.astype(jnp.float32) * label_rows, axis=1)

    def add(number: Array | int, before: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, others, mean = before
        first = number * size
        start = jnp.minimum(first, words - size)  # the last piece may begin in the one before it
        piece = jax.lax.dynamic_slice_in_dim(table, start, size, axis).astype(dtype)
        piece = piece if axis == 0 else piece.T
        word = (start + jnp.arange(size))[None, :]
        logits = jnp.einsum('nd,vd->nv', h, piece, preferred_element_type=jnp.float32)
        higher = jnp.maximum(top, logits.max(axis=1))  # of all of them: it need not be the least
        new = (word >= first) & (word != labels[:, None])
        weights = jnp.where(new, jnp.exp(logits - higher[:, None]), 0.0)
        shrink = jnp.exp(top - higher)
        more = jnp.einsum(
            'nv,vd->nd', weights.astype(dtype), piece, preferred_element_type=jnp.float32
        )
        others = others * shrink + weights.sum(axis=1)
        return higher, others, mean * shrink[:, None] + more

    none = (own, jnp.zeros_like(own), jnp.zeros(hidden.shape, jnp.float32))
    top, others, mean = add(0, none) if pieces == 1 else jax.lax.fori_loop(0, pieces, add, none)
    less = own - top
    loss = jnp.log1p(others + jnp.expm1(less)) - less
    slope = (mean - others[:, None] * label_rows) / (others + jnp.exp(less))[:, None]
    return loss, slope.astype(hidden.dtype)
