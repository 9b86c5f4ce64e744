"""The language-model head: all positions, some positions, or only the loss of some positions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype

from jaxpeft.models import online, sharding
from jaxpeft.models.sharding import split_rows

Array = jax.Array
CHUNK = 512  # positions whose logits exist at one time in the loss


class Embed(nn.Embed):
    """nn.Embed whose `attend` (a tied head) gives float32 logits for parameters of any dtype."""

    def attend(self, query: Array) -> Array:
        """query: [..., D] -> float32 [..., V]."""
        x, table = self.promote_dtype(query, self.embedding, dtype=self.dtype)
        return jnp.einsum(EQUATIONS[Embed], x, table, preferred_element_type=jnp.float32)


def make_head(vocab_size: int, param_dtype: Any) -> nn.Dense:
    """The head of a model without tied embeddings; a plain Dense, so that it can be adapted.

    It multiplies in float32 whatever the parameters' dtype: logits near 30 rounded to bfloat16 are
    0.1 apart, as far as two answers may be. The price is a float32 copy of a bfloat16 kernel.
    """
    return nn.Dense(vocab_size, use_bias=False, dtype=jnp.float32, param_dtype=param_dtype)


EQUATIONS = {Embed: '...d,vd->...v', nn.Dense: '...d,dv->...v'}
WORDS = {Embed: 0, nn.Dense: 1}  # the vocabulary's axis of the head's matrix


def run_head(
    module: nn.Module,
    logits_of: Callable[[Any, Array], Array],
    hidden: Array,
    select: Array | None,
    labels: Array | None,
    head: nn.Module,
) -> Array:
    """Logits, or losses, from the last hidden states [B, T, D].

    Args:
      module: the model (bound), handed to the lifted loop over chunks.
      logits_of: (module, [..., D]) -> [..., V].
      select: [N] int32 flat indices into B * T; the head runs only there.
      labels: [N] int32; with `select`: the result is -log p(labels[n]) at position select[n].
      head: the submodule that makes the logits: an Embed, or the Dense of `make_head`.

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
    nll = lambda mdl, h, label: _nll(logits_of(mdl, split_rows(h)), label)
    table = _only_matrix(head)
    if table is None:
        return _over_chunks(nll, module, picked, labels)
    still = jax.lax.stop_gradient(picked)  # what flows back is `slope`'s, not the loop's
    if sharding.alone() and _untouched(logits_of, module, head, still[:1]):
        dtype = canonicalize_dtype(picked, table, dtype=head.dtype)
        matrix, axis = jax.lax.stop_gradient(table), WORDS[type(head)]
        value, slope = online.loss_and_slope(still, matrix, labels, axis=axis, dtype=dtype)
    else:  # pieces of a table that is split over devices would be gathered, each anew
        value, slope = _over_chunks(functools.partial(_with_slope, nll), module, still, labels)
    return _sloped(EQUATIONS[type(head)], picked, table, labels, value, slope)


def _only_matrix(head: nn.Module) -> Array | None:
    """The head's matrix; None where an adapter lies beside it, of which nothing is known here."""
    found = head.variables.get('params', {})
    if type(head) not in EQUATIONS or len(found) != 1:
        return None
    (leaf,) = found.values()
    return nn.unbox(leaf)


def _untouched(
    logits_of: Callable[[Any, Array], Array], module: nn.Module, head: nn.Module, row: Array
) -> bool:
    """Whether the head makes the logits of `row` [1, D] with no interceptor's change.

    An interceptor may read or replace what the head takes and gives. The innermost one, here, sees
    what reaches the head itself: the same arrays before and after say that nothing was changed. Of
    a head that is read only, interceptors see this one call, of a row that nobody uses.
    """
    calls = []

    def innermost(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        if context.module is head:
            calls.append((args, kwargs, out))
        return out

    with nn.intercept_methods(innermost):
        logits = logits_of(module, row)
    if len(calls) != 1:
        return False
    args, kwargs, out = calls[0]
    return len(args) == 1 and args[0] is row and not kwargs and out is logits


@jax.custom_vjp
def _nll(logits: Array, labels: Array) -> Array:
    """-log softmax(logits)[label]: [N, V], [N] -> [N] float32.

    Its gradient `softmax(logits) - onehot(label)` is one fused pass; autodiff scatters the ones
    into zeros of [N, V], which costs copies of them.
    """
    return _nll_forward(logits, labels)[0]


def _nll_forward(logits: Array, labels: Array) -> tuple[Array, tuple[Array, ...]]:
    wide = logits.astype(jnp.float32)
    top = wide.max(axis=-1, keepdims=True)
    picked = jnp.take_along_axis(wide, labels[:, None], axis=-1)
    # Changes no number, but orders the reads of the logits: the exponentials, now the last, take
    # their place. Without it XLA's CPU programs had a second array of that size beside them.
    top = jnp.maximum(top, picked)
    weights = jnp.exp(wide - top)  # one pass of exponentials, for the loss and its gradient
    total = weights.sum(axis=-1, keepdims=True)
    loss = (jnp.log(total) + top - picked)[:, 0]
    return loss, (weights, total, labels, jnp.zeros((), logits.dtype))


def _nll_backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, None]:
    weights, total, labels, like = saved
    ones = labels[:, None] == jnp.arange(weights.shape[1], dtype=labels.dtype)[None, :]
    slope = (weights / total - ones.astype(jnp.float32)) * dy[:, None]
    return slope.astype(like.dtype), None


_nll.defvjp(_nll_forward, _nll_backward)


def _with_slope(
    nll: Callable[..., Array], module: nn.Module, hidden: Array, labels: Array
) -> tuple[Array, Array]:
    """The loss [N] and its gradient by `hidden` [N, D]: a row's loss is of its own row alone."""
    one = lambda mdl, h: nll(mdl, h, labels)
    value, pull = nn.vjp(one, module, hidden, vjp_variables=False)
    return value, pull(jnp.ones_like(value))[-1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sloped(
    equation: str, hidden: Array, table: Array, labels: Array, value: Array, slope: Array
) -> Array:
    """`value`, whose gradient by `hidden` is `slope`, taken while each chunk's logits existed.

    To build the logits again in the backward pass is a third product with the table, 13 % of a step
    of GPT-Neo-125M. A table that is trained itself has it, for `dtable` needs the cotangent.
    """
    del equation, hidden, table, labels, slope
    return value


def _sloped_forward(
    equation: str, hidden: Any, table: Any, labels: Any, value: Any, slope: Any
) -> tuple[Array, Any]:
    del equation
    inputs = (hidden.value, table.value, labels.value) if table.perturbed else None
    return value.value, (slope.value, inputs)


def _sloped_backward(equation: str, saved: Any, dy: Array) -> tuple:
    slope, inputs = saved
    dh = (dy[:, None] * slope.astype(jnp.float32)).astype(slope.dtype)
    if inputs is None:
        return dh, None, None, None, None
    hidden, table, labels = inputs

    def add(total: Array, xs: tuple[Array, ...]) -> tuple[Array, None]:
        h, label, cotangent = xs

        def loss(table: Array) -> Array:
            logits = jnp.einsum(equation, h, table, preferred_element_type=jnp.float32)
            return jnp.sum(_nll(logits, label) * cotangent)

        return total + jax.grad(loss)(table).astype(jnp.float32), None

    chunks = tuple(online.chunked(x, CHUNK) for x in (hidden, labels, dy))
    total = jax.lax.scan(add, jnp.zeros(table.shape, jnp.float32), chunks)[0]
    return dh, total.astype(table.dtype), None, None, None


_sloped.defvjp(_sloped_forward, _sloped_backward, symbolic_zeros=True)


def _over_chunks(fn: Callable[..., Any], module: nn.Module, hidden: Array, labels: Array) -> Any:
    """`fn` over chunks, so that only one chunk's logits [<= CHUNK, V] exist at a time."""
    n = labels.shape[0]
    if n <= CHUNK:
        return fn(module, hidden, labels)

    def body(mdl: nn.Module, carry: tuple[()], xs: tuple[Array, Array]) -> tuple:
        return carry, fn(mdl, *xs)

    loop = nn.scan(
        nn.remat(body, prevent_cse=False),
        variable_broadcast='params',
        split_rngs={'params': False},
    )
    chunks = (online.chunked(hidden, CHUNK), online.chunked(labels, CHUNK))
    out = loop(module, (), chunks)[1]
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], out)
