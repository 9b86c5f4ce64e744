"""Absolute log-likelihoods of continuations, and whether greedy decoding would write them.

For requests of any shape: contexts that several continuations share run once, and the continuations
go on from their cache. Where the cache would not fit the model's positions (a text cut to their
number) and for the windows of a long text, whole sequences run instead.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eval import batches, finite, placement
from eval.prefill import prefill, ready

LOGITS = 1 << 26  # floats of logits that exist at one time at most: 256 MiB


class Pair(NamedTuple):
    """A context and what is to follow it: int32 [n] and [m], each at least one token.

    The model reads n + m - 1 tokens, which must be at most its positions.
    """

    context: np.ndarray
    continuation: np.ndarray


class Shape(NamedTuple):
    """How a batch's continuations are padded: C of them a context, M tokens each."""

    candidates: int
    tokens: int


def loglik(
    forward: Callable,
    state: Any,
    params: Any,
    model: Any,
    pairs: Sequence[Pair],
    *,
    batch: int = 16,
    advance: Callable[[int], Any] = lambda rows: None,
) -> list[tuple[float, bool]]:
    """log p(continuation | context) of every pair, and whether each of its tokens was likeliest.

    Args:
      forward: `jp.bind(plan, model.apply)`.
      state: the adapter.
      params: the base.
      model: the Linen module (for its cache).
      pairs: the requests, in any order; results come in the same order.
      batch: contexts a batch at most; changes speed only.
      advance: called with the pairs done after each batch.

    Returns:
      For each pair (sum of the token log-probabilities, is it what greedy decoding gives).

    Raises:
      ValueError: batch < 1, or a pair beyond the model's positions.
      FloatingPointError: a log-probability that is not finite.
    """
    shapes = _shapes_of(_by_context(pairs), pairs, batches.compile_price(params))
    return grouped((forward, state, params, model), pairs, shapes, batch, advance)


def grouped(
    parts: tuple[Callable, Any, Any, Any],
    pairs: Sequence[Pair],
    shapes: Mapping[Shape, Sequence[list[int]]],
    batch: int,
    advance: Callable[[int], Any],
) -> list[tuple[float, bool]]:
    """`loglik` of pairs whose batches' shapes are chosen.

    Args:
      parts: forward, state, params and model.
      pairs: the requests.
      shapes: of each shape the groups of pairs, by their numbers, that share a context.
      batch: see `loglik`.
      advance: see `loglik`.
    """
    max_positions = parts[-1].config.max_positions
    found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    tight: list[int] = []
    for shape, own in shapes.items():
        fits = max_positions - shape.tokens + 1  # the last token is not fed
        roomy = [g for g in own if len(pairs[g[0]].context) <= fits]
        tight += [i for g in own if len(pairs[g[0]].context) > fits for i in g]
        if roomy:
            _grouped(parts, pairs, roomy, shape, batch, found, advance)
    if tight:
        whole = sequences(
            *parts, [pairs[i] for i in tight], batch=batch, greedy=True, advance=advance
        )
        for i, one in zip(tight, whole, strict=True):
            found[i] = one
    return found


def _by_context(pairs: Sequence[Pair]) -> list[list[int]]:
    """The numbers of the pairs that share a context, a list a context."""
    groups: dict[bytes, list[int]] = {}
    for i, pair in enumerate(pairs):
        groups.setdefault(np.asarray(pair.context, np.int32).tobytes(), []).append(i)
    return list(groups.values())


def _shapes_of(
    groups: Sequence[list[int]], pairs: Sequence[Pair], price: float
) -> dict[Shape, list[list[int]]]:
    """The groups of each shape that a batch takes: few shapes, little padding."""
    own = [Shape(len(g), max(len(pairs[i].continuation) for i in g)) for g in groups]
    rough = [Shape(_power(s.candidates), 1 + _power(s.tokens - 1)) for s in own]
    counts = {shape: rough.count(shape) for shape in dict.fromkeys(rough)}
    merged = merge(counts, price)
    joined: dict[Shape, list[list[int]]] = {}
    for group, shape in zip(groups, rough, strict=True):
        joined.setdefault(merged[shape], []).append(group)
    exact = {}
    for members in joined.values():
        lengths = [len(pairs[i].continuation) for g in members for i in g]
        exact[Shape(max(map(len, members)), max(lengths))] = members
    return exact


def _power(n: int) -> int:
    """The least power of two from n on; 0 for 0."""
    return 1 << (n - 1).bit_length() if n > 0 else 0


def merge(counts: Mapping[Shape, int], price: float) -> dict[Shape, Shape]:
    """Where a shape's rows go: into a larger shape if that pads less than a compilation costs.

    Args:
      counts: rows of each shape.
      price: padded tokens that cost as much as one more program, see `batches.compile_price`.

    Returns:
      For each shape the one that its rows take, itself or a larger one.

    Example:
      >>> counts = {Shape(1, 2): 10, Shape(1, 3): 10, Shape(4, 9): 10}
      >>> {tuple(k): tuple(v) for k, v in merge(counts, price=50).items()}
      {(1, 2): (1, 3), (1, 3): (1, 3), (4, 9): (4, 9)}
    """
    rows = dict(counts)
    into = {shape: shape for shape in counts}
    for small in sorted(counts, key=lambda s: (s.candidates * s.tokens, s)):
        size = small.candidates * small.tokens
        larger = [
            s for s in rows
            if s != small and s.candidates >= small.candidates and s.tokens >= small.tokens
        ]  # fmt: skip
        if not larger:
            continue
        best = min(larger, key=lambda s: s.candidates * s.tokens)
        if rows[small] * (best.candidates * best.tokens - size) < price:
            rows[best] += rows.pop(small)
            into = {k: best if v == small else v for k, v in into.items()}
    return into


def _grouped(parts, pairs, groups, shape, batch, found, advance) -> None:
    """Scores groups of one shape, each context once."""
    forward, state, params, model = parts
    contexts = [pairs[g[0]].context for g in groups]
    wide = max(1, LOGITS // (shape.tokens * model.config.vocab_size))
    place, prefix, made = ready(parts, contexts, min(batch, wide), spare=shape.tokens - 1)
    for part in made:
        tails, lengths = _pack(
            [[pairs[i].continuation for i in groups[r]] for r in part.rows], shape
        )
        arrays = place(part.tokens, part.lengths, tails, lengths)
        logp, hit = map(np.asarray, _score(forward, model, state, params, prefix, *arrays))
        finite.check(np.isfinite(logp[lengths > 0]), 'a continuation')
        for r, sums, hits in zip(part.numbers, logp, hit, strict=False):
            for i, total, greedy in zip(groups[r], sums, hits, strict=False):
                found[i] = (float(total), bool(greedy))
        advance(sum(len(groups[r]) for r in part.numbers))


def _pack(rows: Sequence[Sequence[np.ndarray]], shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [B, C, M] right-padded, lengths int32 [B, C])."""
    tails = np.zeros((len(rows), *shape), np.int32)
    lengths = np.zeros((len(rows), shape.candidates), np.int32)
    for b, row in enumerate(rows):
        for c, tail in enumerate(row):
            tails[b, c, : len(tail)] = tail
            lengths[b, c] = len(tail)
    return tails, lengths


@functools.partial(jax.jit, static_argnames=('forward', 'model'))
def _score(forward, model, state, params, prefix, tokens, lengths, tails, tail_lengths):
    """One batch of `_grouped`.

    Args:
      forward: static.
      model: static.
      state: adapter.
      params: base.
      prefix: cache of the tokens that all rows begin with, or None.
      tokens: int32 [B, T], left-padded.
      lengths: int32 [B].
      tails: int32 [B, C, M], right-padded.
      tail_lengths: int32 [B, C], 0 where a row has fewer than C candidates.

    Returns:
      (float32 [B, C] summed log-probabilities, bool [B, C] whether each token of a candidate was
      the most likely one).
    """
    run = functools.partial(forward, state, {'params': params})
    M = tails.shape[2]
    logits, cache, start = prefill(run, model, prefix, tokens, lengths, M - 1)
    total = jnp.take_along_axis(jax.nn.log_softmax(logits), tails[:, :, 0], axis=1)  # [B, C]
    likeliest = jnp.argmax(logits, axis=1)[:, None] == tails[:, :, 0]
    if M == 1:
        return total, likeliest
    slots = jnp.arange(M - 1, dtype=jnp.int32)[None, :]
    positions = start[:, None] + slots

    def rest(candidate):
        tail, length = candidate  # [B, M], [B]
        logits, _ = run(
            tail[:, :-1],
            positions=positions,
            segment_ids=(slots < length[:, None]).astype(jnp.int32),
            cache=cache,
        )
        counted = slots + 1 < length[:, None]
        logp = jax.nn.log_softmax(logits)  # [B, M - 1, V]
        logp = jnp.take_along_axis(logp, tail[:, 1:, None], axis=2)[:, :, 0]
        hit = (jnp.argmax(logits, axis=2) == tail[:, 1:]) | ~counted
        return jnp.where(counted, logp, 0.0).sum(axis=1), hit.all(axis=1)

    # one candidate after the other: the cache is shared, not copied C times
    more, hits = jax.lax.map(rest, (jnp.moveaxis(tails, 1, 0), jnp.moveaxis(tail_lengths, 1, 0)))
    return total + more.T, likeliest & hits.T


def sequences(
    forward: Callable,
    state: Any,
    params: Any,
    model: Any,
    pairs: Sequence[Pair],
    *,
    batch: int = 16,
    greedy: bool = False,
    advance: Callable[[int], Any] = lambda rows: None,
) -> list[tuple[float, bool]]:
    """As `loglik`, each pair as one sequence without a cache.

    Args:
      forward: see `loglik`.
      state: see `loglik`.
      params: see `loglik`.
      model: see `loglik`.
      pairs: the requests.
      batch: rows a batch at most.
      greedy: also compare with the likeliest tokens, which needs all logits of the continuations;
        without, the head runs in chunks and the second entries are False.
      advance: called with the pairs done after each batch.

    Raises:
      ValueError: batch < 1, or a pair beyond the model's positions.
      FloatingPointError: a log-probability that is not finite.
    """
    if not pairs:
        return []
    texts = [np.concatenate([p.context, p.continuation])[:-1].astype(np.int32) for p in pairs]
    order = sorted(range(len(pairs)), key=lambda i: (-len(texts[i]), i))
    M = max(len(p.continuation) for p in pairs)
    wide = max(1, LOGITS // (M * model.config.vocab_size)) if greedy else batch
    place, size, _ = placement.rows(params, min(batch, wide, len(pairs)))
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    longest, price = [len(texts[g[0]]) for g in groups], batches.compile_price(params)
    sizes = [min(w, model.config.max_positions) for w in batches.widths(longest, size, price)]
    found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    for group in groups:
        rows = group + group[-1:] * (size - len(group))
        width = batches.least(sizes, len(texts[group[0]]))
        arrays = place(*_rows([texts[i] for i in rows], [pairs[i] for i in rows], width, M))
        logp, hit = map(np.asarray, _whole(forward, state, params, *arrays, greedy=greedy))
        finite.check(np.isfinite(logp), 'a continuation')
        for i, total, likeliest in zip(group, logp, hit, strict=False):
            found[i] = (float(total), bool(likeliest))
        advance(len(group))
    return found


def _rows(texts: Sequence[np.ndarray], pairs: Sequence[Pair], width: int, M: int) -> tuple:
    """(tokens [B, T], their lengths [B], labels [B, M], theirs [B]), all padded on the right."""
    tokens = np.zeros((len(texts), width), np.int32)
    labels = np.zeros((len(texts), M), np.int32)
    for b, (text, pair) in enumerate(zip(texts, pairs, strict=True)):
        tokens[b, : len(text)] = text
        labels[b, : len(pair.continuation)] = pair.continuation
    count = lambda seqs: np.array([len(s) for s in seqs], np.int32)
    return tokens, count(texts), labels, count([p.continuation for p in pairs])


@functools.partial(jax.jit, static_argnames=('forward', 'greedy'))
def _whole(forward, state, params, tokens, lengths, labels, counts, *, greedy):
    """One batch of whole sequences; the labels of a row belong to its last `counts` positions."""
    (B, T), M = tokens.shape, labels.shape[1]
    slots = jnp.arange(T, dtype=jnp.int32)[None, :]
    real = slots < lengths[:, None]
    at = jnp.arange(M, dtype=jnp.int32)[None, :]
    counted = at < counts[:, None]
    where = jnp.where(counted, (lengths - counts)[:, None] + at, 0)
    select = (where + jnp.arange(B, dtype=jnp.int32)[:, None] * T).reshape(-1)
    run = functools.partial(
        forward, state, {'params': params}, tokens,
        positions=jnp.where(real, slots, 0), segment_ids=real.astype(jnp.int32), select=select,
    )  # fmt: skip
    if not greedy:
        nll = run(labels=labels.reshape(-1)).reshape(B, M)
        return -jnp.where(counted, nll, 0.0).sum(axis=1), jnp.zeros(B, bool)
    logits = run()  # [B * M, V]
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), labels.reshape(-1, 1), axis=1)
    hit = (jnp.argmax(logits, axis=1).reshape(B, M) == labels) | ~counted
    return jnp.where(counted, logp.reshape(B, M), 0.0).sum(axis=1), hit.all(axis=1)
