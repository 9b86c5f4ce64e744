"""The language-model head: all positions, some positions, or only the loss of some positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array
CHUNK = 512  # positions whose logits exist at one time in the loss


class Embed(nn.Embed):
    """nn.Embed whose `attend` (a tied head) gives float32 logits for parameters of any dtype."""

    def attend(self, query: Array) -> Array:
        """query: [..., D] -> float32 [..., V]."""
        x, table = self.promote_dtype(query, self.embedding, dtype=self.dtype)
        return jnp.einsum('...d,vd->...v', x, table, preferred_element_type=jnp.float32)


def make_head(vocab_size: int, param_dtype: Any) -> nn.Dense:
    """The head of a model without tied embeddings; a plain Dense, so that it can be adapted.

    It multiplies in float32 whatever the parameters' dtype: logits near 30 rounded to bfloat16 are
    0.1 apart, as far as two answers may be. The price is a float32 copy of a bfloat16 kernel.
    """
    return nn.Dense(vocab_size, use_bias=False, dtype=jnp.float32, param_dtype=param_dtype)


def run_head(
    module: nn.Module,
    logits_of: Callable[[Any, Array], Array],
    hidden: Array,
    select: Array | None,
    labels: Array | None,
) -> Array:
    """Logits, or losses, from the last hidden states [B, T, D].

    Args:
      module: the model (bound), handed to the lifted loop over chunks.
      logits_of: (module, [..., D]) -> [..., V].
      select: [N] int32 flat indices into B * T; the head runs only there.
      labels: [N] int32; with `select`: the result is -log p(labels[n]) at position select[n].

    Returns:
      float32 [B, T, V]; [N, V] with `select`; [N] with `select` and `labels`.

    Raises:
      ValueError: labels without select, or of another shape.
    """
    if labels is not None and (select is None or select.shape != labels.shape):
        shape = None if select is None else select.shape
        raise ValueError(
            f'labels need select of the same shape [N], got {labels.shape} and select {shape}'
        )
    if select is None:
        return logits_of(module, hidden).astype(jnp.float32)
    picked = hidden.reshape(-1, hidden.shape[-1])[select]  # [N, D]
    if labels is None:
        return logits_of(module, picked).astype(jnp.float32)
    return _chunked_nll(module, logits_of, picked, labels)


def _chunked_nll(
    module: nn.Module, logits_of: Callable[[Any, Array], Array], hidden: Array, labels: Array
) -> Array:
    """-log softmax(logits)[label], [N] float32, over chunks rebuilt in the backward pass.

    Only one chunk's logits [<= 512, V] exist at a time, forward and backward.
    """

    def nll(mdl: nn.Module, carry: tuple[()], xs: tuple[Array, Array]) -> tuple[tuple[()], Array]:
        h, label = xs
        logits = logits_of(mdl, h).astype(jnp.float32)  # [chunk, V]
        picked = jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]
        return carry, jax.nn.logsumexp(logits, axis=-1) - picked

    n = labels.shape[0]
    chunks = -(-n // CHUNK)
    if chunks <= 1:
        return nll(module, (), (hidden, labels))[1]
    size = -(-n // chunks)  # even chunks: at most `chunks - 1` positions of padding
    pad = chunks * size - n
    hidden = jnp.pad(hidden, ((0, pad), (0, 0))).reshape(chunks, size, -1)
    labels = jnp.pad(labels, (0, pad)).reshape(chunks, size)
    loop = nn.scan(
        nn.remat(nll, prevent_cse=False),
        variable_broadcast='params',
        split_rngs={'params': False},
    )
    return loop(module, (), (hidden, labels))[1].reshape(-1)[:n]
