"""Singular values of frozen kernels, in float32, under jit: exact, or block Krylov for large ones.

The randomized form finds the top k values of `w [n, m]` from a Krylov space
`K = [Q, (W^T W) Q, (W^T W)^2 Q, ...]` built from matmuls and QR only; its error falls like a
Chebyshev polynomial of the spectrum's gaps, where plain subspace iteration needs many more passes
over a flat spectrum (Musco & Musco 2015, arXiv 1504.05477). Cost a matrix: `4 n m l q` FLOPs for
blocks of `l` columns and depth `q`, against about `20 n^3` of a full SVD.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxpeft.base import Array

EXACT_UP_TO = 1024  # the smaller side; above it 'auto' is randomized
METHODS = ('auto', 'exact', 'randomized')
OVERSAMPLE = 16  # columns of a block beyond k
SHALLOW, DEEP = 6, 14  # Krylov blocks: the first is enough for pretrained kernels, see below
DEEP_COLUMNS = 576  # a narrow block goes deeper, until the space has this many columns
SETTLED = 2e-5  # relative change by the last block below which the shallow values are kept
HIGHEST = (
    jax.lax.Precision.HIGHEST
)  # a TPU's default bf16 passes would cost the values' third digit


def top_singular_values(
    w: Array, k: int, *, method: str = 'auto', key: Array | None = None
) -> Array:
    """The k largest singular values of `w [n, m]`, descending: `[k]` float32.

    Args:
      w: the kernel, any float dtype; it is cast to float32 first.
      k: how many, `1 <= k <= min(n, m)`.
      method: 'exact' (LAPACK or its like), 'randomized' (block Krylov; relative error below 1e-4,
        measured for k 8 to 64 on a decaying spectrum and on the flat one of a 2048 x 2048 Gaussian
        matrix), or 'auto': randomized where the smaller side is above 1024 and twice the space's.
      key: draws the randomized form's first block; a fixed key when None.

    Raises:
      ValueError: for an unknown method or a k out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> top_singular_values(jnp.diag(jnp.array([3.0, 2.0, 1.0])), 2).tolist()
      [3.0, 2.0]
    """
    if method not in METHODS:
        raise ValueError(f'svd must be one of {", ".join(METHODS)}, got {method!r}')
    small = min(w.shape)
    if not 1 <= k <= small:
        raise ValueError(f'k must be in [1, {small}] for a kernel of shape {w.shape}, got {k}')
    w = w.astype(jnp.float32)
    fits = 2 * (k + OVERSAMPLE) * DEEP < small
    if method == 'randomized' or (method == 'auto' and small > EXACT_UP_TO and fits):
        return _block_krylov(w, k, jax.random.key(0) if key is None else key)
    return jnp.linalg.svd(w, compute_uv=False)[:k]


def _block_krylov(w: Array, k: int, key: Array) -> Array:
    """Top-k values by Rayleigh-Ritz on a block Krylov space that deepens where it must.

    The spaces are nested, so the values only grow; where the last block still moved one of them the
    space is doubled (a flat spectrum, as of random weights).
    """
    w = w if w.shape[0] >= w.shape[1] else w.T  # iterate on the smaller side m
    m = w.shape[1]
    width = min(k + OVERSAMPLE, m)
    most = m // width
    shallow = min(SHALLOW, most)
    deep = min(max(DEEP, -(-DEEP_COLUMNS // width)), most)
    first = jnp.linalg.qr(jax.random.normal(key, (m, width), jnp.float32))[0]
    space = _grow(w, first, width, shallow)
    ritz = _mul(w, space)  # [n, width * shallow]
    values = _values(ritz, k)
    if shallow == deep:
        return values
    before = _values(ritz[:, :-width], k)
    settled = jnp.all(values - before <= SETTLED * values)
    deepen = lambda: _values(_mul(w, _grow(w, space, width, deep - shallow + 1)), k)
    return jax.lax.cond(settled, lambda: values, deepen)


def _grow(w: Array, space: Array, width: int, depth: int) -> Array:
    """Appends `depth - 1` blocks `W^T W (last block)` and makes the whole space orthonormal.

    Where W has fewer ranks than the space has columns, or a steep spectrum, a block's tail is
    rounding noise along the earlier blocks: only the QR of all columns at the end is orthonormal
    then, and without it Ritz values exceed the largest singular value.
    """
    for _ in range(depth - 1):
        block = _mul(
            _mul(w, space[:, -width:]).T, w
        ).T  # as rows: x.T @ w is 4 times w.T @ x on CPU
        block = block - _mul(space, _mul(space.T, block))
        space = jnp.concatenate([space, jnp.linalg.qr(block)[0]], axis=1)
    return jnp.linalg.qr(space)[0]


def _values(ritz: Array, k: int) -> Array:
    """Singular values of a tall matrix, through its R: a Gram matrix would lose half the digits."""
    r = jnp.linalg.qr(ritz, mode='r')
    return jnp.linalg.svd(r, compute_uv=False)[:k]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gram_gap(a: Array, axis: int = 0) -> Array:
    """How far a factor is from orthonormal: `|G - I|_F^2` with the `[r, r]` Gram matrix G.

    The gradient `4 a (G - I)` (or `4 (G - I) a`) is written out: autodiff's keeps three copies of
    the factor, more than LoRA's whole step keeps for it.

    Args:
      a: `[n, r]` with axis 0, `[r, n]` with axis 1.
      axis: the long axis, over which the Gram matrix contracts.

    Returns:
      A float32 scalar.
    """
    return jnp.sum(_gap(a, axis) ** 2)


def _gap(a: Array, axis: int) -> Array:
    gram = jax.lax.dot_general(a, a, (((axis,), (axis,)), ((), ())), precision=HIGHEST)
    return gram - jnp.eye(gram.shape[0], dtype=gram.dtype)


def _gram_gap_backward(axis: int, a: Array, ct: Array) -> tuple[Array]:
    gap = _gap(a, axis)
    return (4.0 * ct * (_mul(a, gap) if axis == 0 else _mul(gap, a)),)


gram_gap.defvjp(lambda a, axis: (gram_gap(a, axis), a), _gram_gap_backward)


def _mul(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision=HIGHEST)
