"""Beam search, with the rules of transformers' generate (num_beams, early_stopping=False).

Every row keeps K running beams and K finished ones. A step looks at the best continuations of all
beams, K for each end token and K more: those among the best K that end are offered to the finished
list, at

    score = log-probability / length

and the best K that do not end run on. A row is settled when all K finished beams are there and the
best running beam, scored at its present length, is no better than the worst of them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from eval.prefill import Cache, carried, prefill, spread, step, used
from jaxpeft.models import cache as caches

_NEVER = -1e9  # a score that no sequence reaches, finite so that sums of it compare


class Beams(NamedTuple):
    """K running and K finished beams of B rows, the finished ones best first.

    tokens, done_tokens: int32 [B, K, N]. scores, done_scores: float32 [B, K]. done: bool [B, K],
    which finished slots are filled. open: bool [B], rows that may still get better. lost: bool [B],
    rows whose logits were not finite.
    """

    tokens: jax.Array
    scores: jax.Array
    done_tokens: jax.Array
    done_scores: jax.Array
    done: jax.Array
    open: jax.Array
    lost: jax.Array


@functools.partial(jax.jit, static_argnames=('forward', 'model', 'beams', 'new_tokens'))
def search(forward, model, state, params, loop, prefix, tokens, lengths, *, beams, new_tokens, eos):
    """The best sequence of each row.

    Args:
      forward: static, see `eval.decode.generate`.
      model: static.
      state: adapter.
      params: base.
      loop: the base for the loop.
      prefix: cache of the tokens that all rows begin with, or None.
      tokens: int32 [B, T], left-padded.
      lengths: int32 [B].
      beams: static K.
      new_tokens: static N.
      eos: int32 [E], the end tokens.

    Returns:
      (int32 [B, N], an end token at the end of a row and `eos[0]` after it; bool [B], the rows
      whose logits were not finite).
    """
    run = functools.partial(forward, state, {'params': params})
    extend = functools.partial(_extend, eos=eos)
    logits, cache, start = prefill(run, model, prefix, tokens, lengths, new_tokens - 1)
    prompt = used(prefix) + tokens.shape[1]
    cache, start = caches.apart(spread(cache, beams)), jnp.repeat(start, beams)
    first, _ = extend(
        0, jnp.repeat(logits, beams, axis=0), _empty(len(tokens), beams, new_tokens, eos)
    )

    def going(carry):
        at, _, found = carry
        return (at < new_tokens) & jnp.any(found.open)

    def body(carry):
        at, cache, found = carry
        last = jax.lax.dynamic_index_in_dim(found.tokens, at - 1, axis=2, keepdims=False)
        logits, cache = step(forward, state, loop, cache, last.reshape(-1), start + at - 1)
        found, source = extend(at, logits, found)
        return at + 1, _reorder(cache, source, prompt), found

    _, _, found = jax.lax.while_loop(going, body, (jnp.int32(1), cache, first))
    return found.done_tokens[:, 0], found.lost


def _empty(rows: int, beams: int, new_tokens: int, eos: jax.Array) -> Beams:
    """Before the first token: one live beam a row, so that the first step spreads."""
    blank = jnp.full((rows, beams, new_tokens), eos[0], jnp.int32)
    never = jnp.full((rows, beams), _NEVER)
    nothing, gone = jnp.zeros((rows, beams), bool), jnp.zeros(rows, bool)
    return Beams(blank, never.at[:, 0].set(0.0), blank, never, nothing, ~gone, gone)


def _extend(at, logits: jax.Array, found: Beams, *, eos: jax.Array):
    """Every beam's token number `at`: (Beams, the beam each running beam came from [B, K])."""
    B, K, N = found.tokens.shape
    vocab = logits.shape[-1]
    logp = jax.nn.log_softmax(logits).reshape(B, K, vocab) + found.scores[:, :, None]
    wide = K * (1 + len(eos))  # so that K of them do not end
    scores, flat = jax.lax.top_k(logp.reshape(B, K * vocab), wide)  # [B, wide]
    source, token = flat // vocab, (flat % vocab).astype(jnp.int32)
    tokens = _take(found.tokens, source).at[:, :, at].set(token)
    length = jnp.float32(at + 1)
    ends = (token[:, :, None] == eos[None, None, :]).any(axis=2) | (at + 1 == N)
    among_best = jnp.arange(wide)[None, :] < K

    offered = jnp.where(ends & among_best & found.open[:, None], scores / length, _NEVER)
    merged = jnp.concatenate([found.done_scores, offered], axis=1)
    done_scores, best = jax.lax.top_k(merged, K)
    done_tokens = _take(jnp.concatenate([found.done_tokens, tokens], axis=1), best)
    done = done_scores > _NEVER

    running, on = jax.lax.top_k(jnp.where(ends, scores + _NEVER, scores), K)
    settled = done.all(axis=1) & (running[:, 0] / length <= done_scores.min(axis=1))
    sane = jnp.isfinite(logits.max(axis=-1)).reshape(B, K).all(axis=1)
    flags = found.open & ~settled & sane, found.lost | (found.open & ~sane)
    after = Beams(_take(tokens, on), running, done_tokens, done_scores, done, *flags)
    return after, _take(source, on)


def _take(values: jax.Array, index: jax.Array) -> jax.Array:
    """values [B, M, ...] by index [B, K] along axis 1."""
    return jax.vmap(lambda v, i: v[i])(values, index)


def _reorder(cache: Cache, source: jax.Array, prompt: int) -> Cache:
    """Each running beam gets the generated keys and values of the beam it came from.

    The first `prompt` slots are the same for all beams of a row, as are positions and
    segments, so that they stay where they are.
    """
    B, K = source.shape
    rows = (jnp.arange(B)[:, None] * K + source).reshape(-1)

    def move(leaf: jax.Array) -> jax.Array:  # [..., B K, Hkv, S, D]
        new = jnp.take(leaf[..., prompt:, :], rows, axis=leaf.ndim - 4)
        return leaf.at[..., prompt:, :].set(new)

    moved = {name: jax.tree.map(move, cache[name]) for name in ('k', 'v')}
    return {**cache, **moved, **carried(cache, lambda leaf: leaf[rows])}
