"""Singular values of frozen kernels, in float32, under jit: exact, or block Krylov for large ones.

The randomized form finds the top k values of `w [n, m]` from a Krylov space
`K = [Q, (W^T W) Q, (W^T W)^2 Q, ...]` built from matmuls and QR only; its error falls like a
Chebyshev polynomial of the spectrum's gaps, where plain subspace iteration needs many more passes
over a flat spectrum (Musco & Musco 2015, arXiv 1504.05477). Cost a matrix: `4 n m c + 6 n c^2`
FLOPs for a space of `c` columns, against about `20 n^3` of a full SVD. For GPT-Neo-1.3B's
attention (96 kernels of 2048 x 2048, rank 32) on 2 CPU cores: 33 s for random kernels, 15 s for
decaying spectra.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxpeft.base import Array

TINY = float(jnp.finfo(jnp.float32).tiny)
EXACT_UP_TO = 1024  # the smaller side; above it 'auto' is randomized
METHODS = ('auto', 'exact', 'randomized')
WIDTH = 16  # columns of a block: narrow blocks give a polynomial of high degree for few columns
SETTLED = 2e-5  # relative change by the last quarter below which the shallow values are kept
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
        matrix; exact where the space would fill the kernel), or 'auto': randomized where the
        smaller side is above 1024 and twice the space's.
      key: draws the randomized form's first block; a fixed key when None.

    Raises:
      ValueError: for an unknown method or a k out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> top_singular_values(jnp.diag(jnp.array([3.0, 2.0, 1.0])), 2).tolist()
      [3.0, 2.0]
    """
    _check(w, k, method)
    w = w.astype(jnp.float32)
    if _randomized(min(w.shape), k, method):
        return _block_krylov(w, k, jax.random.key(0) if key is None else key)
    return jnp.linalg.svd(w, compute_uv=False)[:k]


def _randomized(small: int, k: int, method: str) -> bool:
    """Whether a kernel whose smaller side is this long goes through the Krylov space."""
    space = WIDTH * max(_depths(k))
    if method == 'auto':
        return small > EXACT_UP_TO and small > 2 * space
    return method == 'randomized' and small >= space


def _depths(k: int) -> tuple[int, int]:
    """Blocks of the shallow space, enough for pretrained kernels, and of the deep one.

    Measured on a 2048 x 2048 Gaussian matrix, the flattest spectrum there is: the deep space gives
    k = 8 to 64 values to 2e-5 of numpy's float64 ones.
    """
    shallow, deep = 6 * (k + 16), 256 + 4 * k  # in columns
    return -(-shallow // WIDTH), -(-deep // WIDTH)


def _block_krylov(w: Array, k: int, key: Array) -> Array:
    """Top-k values by Rayleigh-Ritz on a block Krylov space that deepens where it must.

    The spaces are nested, so the values only grow; where the last quarter still moved one of them
    the space is made deep (a flat spectrum, as of random weights).
    """
    w = w if w.shape[0] >= w.shape[1] else w.T  # iterate on the smaller side m
    shallow, deep = _depths(k)
    first = jnp.linalg.qr(jax.random.normal(key, (w.shape[1], WIDTH), jnp.float32))[0]
    # Transposed once: folded into each product, XLA's CPU matmul runs it several times slower.
    wt = jax.lax.optimization_barrier(w.T)
    space = _grow(w, wt, first, shallow)
    ritz = _mul(w, space)  # [n, WIDTH * shallow]
    r = jnp.linalg.qr(ritz, mode='r')  # its leading corner is that of the leading columns
    values = jnp.linalg.svd(r, compute_uv=False)[:k]
    if shallow >= deep:
        return values
    corner = WIDTH * (3 * shallow // 4)
    before = jnp.linalg.svd(r[:corner, :corner], compute_uv=False)[:k]
    settled = jnp.all(values - before <= SETTLED * values)
    deepen = lambda: _values(_mul(w, _grow(w, wt, space, deep - shallow + 1)), k)
    return jax.lax.cond(settled, lambda: values, deepen)


def _grow(w: Array, wt: Array, space: Array, depth: int) -> Array:
    """Appends `depth - 1` blocks `W^T W (last block)` to an orthonormal space, which stays so.

    Each block is freed from the earlier ones and made orthonormal, three times over: where W has
    fewer ranks than the space has columns, or a steep spectrum, what the first pass leaves is
    rounding noise, the second may leave it again, and with columns that are not orthonormal Ritz
    values exceed the largest singular value. One QR of all columns at the end costs more.
    """
    for _ in range(depth - 1):
        block = _mul(wt, _mul(w, space[:, -WIDTH:]))
        for _ in range(3):
            block = jnp.linalg.qr(block - _mul(space, _mul(space.T, block)))[0]
        space = jnp.concatenate([space, block], axis=1)
    return space


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


def top_singular_triplets(
    w: Array, k: int, *, method: str = 'auto', key: Array | None = None
) -> tuple[Array, Array, Array]:
    """The k largest singular values of `w [n, m]` with their vectors: the best rank-k part of it.

    Args:
      w: the kernel, any float dtype; it is cast to float32 first.
      k: how many, `1 <= k <= min(n, m)`.
      method: as for `top_singular_values`. The randomized form always takes the deep space: vectors
        converge like the square root of the values.
      key: draws the randomized form's first block; a fixed key when None.

    Returns:
      `u [n, k]`, `s [k]` descending, `vt [k, m]`, float32, with `(u * s) @ vt` the top part.

    Raises:
      ValueError: for an unknown method or a k out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> u, s, vt = top_singular_triplets(jnp.diag(jnp.array([3.0, 2.0, 1.0])), 2)
      >>> jnp.diag((u * s[None, :]) @ vt).round(4).tolist()
      [3.0, 2.0, 0.0]
    """
    _check(w, k, method)
    w = w.astype(jnp.float32)
    if not _randomized(min(w.shape), k, method):
        u, s, vt = jnp.linalg.svd(w, full_matrices=False)
        return u[:, :k], s[:k], vt[:k]
    key = jax.random.key(0) if key is None else key
    if w.shape[0] >= w.shape[1]:
        return _krylov_triplets(w, k, key)
    u, s, vt = _krylov_triplets(w.T, k, key)
    return vt.T, s, u.T


def _krylov_triplets(w: Array, k: int, key: Array) -> tuple[Array, Array, Array]:
    """Rayleigh-Ritz on the deep block Krylov space of a tall `w [n, m]`, with vectors."""
    first = jnp.linalg.qr(jax.random.normal(key, (w.shape[1], WIDTH), jnp.float32))[0]
    wt = jax.lax.optimization_barrier(w.T)  # as in _block_krylov
    space = _grow(w, wt, first, _depths(k)[1])
    q, r = jnp.linalg.qr(_mul(w, space))
    u, s, vt = jnp.linalg.svd(r)
    return _mul(q, u[:, :k]), s[:k], _mul(vt[:k], space.T)


def bottom_singular_triplets(w: Array, k: int) -> tuple[Array, Array, Array]:
    """The k smallest of the `min(n, m)` singular values of `w [n, m]`, with their vectors.

    Always a full SVD: the Gram matrix's eigenvectors cost less, but its small eigenvalues drown in
    the rounding of the large ones. Measured against numpy's float64 on kernels with sides of 384
    and 512 and decaying spectra, `|W - tail|_2` is off by 1e-5 to 2e-3 of `|W|_2` through the Gram
    matrix and by 3e-7 to 9e-5 through this.

    Args:
      w: the kernel, any float dtype; it is cast to float32 first.
      k: how many, `1 <= k <= min(n, m)`.

    Returns:
      `u [n, k]`, `s [k]` descending, `vt [k, m]`, float32.

    Raises:
      ValueError: for a k out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> bottom_singular_triplets(jnp.diag(jnp.array([3.0, 2.0, 1.0])), 2)[1].tolist()
      [2.0, 1.0]
    """
    _check(w, k, 'exact')
    u, s, vt = jnp.linalg.svd(w.astype(jnp.float32), full_matrices=False)
    return u[:, -k:], s[-k:], vt[-k:]


def _check(w: Array, k: int, method: str) -> None:
    if method not in METHODS:
        raise ValueError(f'svd must be one of {", ".join(METHODS)}, got {method!r}')
    if not 1 <= k <= min(w.shape):
        raise ValueError(
            f'k must be in [1, {min(w.shape)}] for a kernel of shape {w.shape}, got {k}'
        )


def column_norm(w: Array, a: Array, b: Array, norm: Array) -> Array:
    """The norms of the columns of `w + a @ b`, without forming that matrix: `[m]` float32.

        |w_j + (a b)_j|^2 = norm_j^2 + 2 sum_r (b o (a^T w))_rj + sum_r (b o ((a^T a) b))_rj

    Costs `2 n m r` FLOPs, whatever the number of tokens, and `[r, m]` of memory beside a float32
    cast of w. Source: DoRA (arXiv 2402.09353), section 4.3's norm.

    Args:
      w: the frozen kernel `[n, m]`, any float dtype.
      a: `[n, r]` float32.
      b: `[r, m]` float32, the update's scale in it.
      norm: `[m]` float32, the norms of w's own columns.

    Returns:
      `[m]`, at least 1e-6 of `norm`, and 1e-6 where that is 0: a column of zeros is divided by,
      and keeps a finite gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> w = jnp.array([[3.0, 0.0], [4.0, 2.0]])
      >>> a, b = jnp.zeros((2, 1)), jnp.zeros((1, 2))
      >>> column_norm(w, a, b, jnp.array([5.0, 2.0])).tolist()
      [5.0, 2.0]
    """
    cross = _mul(a.T, w.astype(jnp.float32))  # [r, m]
    square = norm**2 + jnp.sum(b * (2.0 * cross + _mul(_mul(a.T, a), b)), axis=0)
    return root(square, norm)


def root(square: Array, norm: Array) -> Array:
    """The norms of columns from their squares, with `column_norm`'s floor; all `[m]` float32."""
    # Rounding can leave a column that the update cancels slightly below zero.
    floor = jnp.maximum(1e-12 * jnp.where(norm > 0.0, norm, 1.0) ** 2, TINY)
    return jnp.sqrt(jnp.maximum(square, floor))
