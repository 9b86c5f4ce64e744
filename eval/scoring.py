"""Log-likelihood of each row's labels: one prefill a row, then only the tokens that differ.

The score of a label is the sum of the token log-probabilities of the output that training would
have shown ('the correct answer is answer2'), without the end token. Whatever tokens a row's labels
have in common at the front add the same number to each, so they join the prompt and are not
counted. With the tokenizers of GPT-2, SmolLM2 and Qwen one token is left, and the prefill's last
logits score all labels at once; longer remainders continue from the cache, all labels from the same
one. There is no length normalisation: the labels of a task differ in one word.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval import batches, placement
from eval.prefill import prefill, prefix_cache


def loglik(
    forward: Callable,
    state: Any,
    params: Any,
    model: Any,
    prompts: Sequence[np.ndarray],
    outputs: Sequence[Sequence[np.ndarray]],
    *,
    batch: int = 16,
    advance: Callable[[int], Any] = lambda rows: None,
) -> list[np.ndarray]:
    """Scores every candidate output of every prompt.

    Args:
      forward: `jp.bind(plan, model.apply)`.
      state: the adapter.
      params: the base.
      model: the Linen module (for its cache).
      prompts: token arrays.
      outputs: for each prompt, the tokens of each candidate (at least one token, any number).
      batch: rows a batch; changes speed only.
      advance: called with the rows done after each batch.

    Returns:
      For each prompt float32 [candidates]: log-probabilities up to a constant of the row.
    """
    split = [_split(p, o) for p, o in zip(prompts, outputs, strict=True)]
    contexts, tails = [s[0] for s in split], [s[1] for s in split]
    shape = max(map(len, tails)), max(len(t) for row in tails for t in row)
    place, size, multiple = placement.rows(params, batch)
    longest = model.config.max_positions - shape[1] + 1  # the last token is not fed
    price = batches.compile_price(params)
    start, made = batches.make(contexts, size, multiple=multiple, longest=longest, price=price)
    prefix = prefix_cache(forward, model, state, params, start)
    scores: list[np.ndarray] = [np.zeros(0, np.float32)] * len(prompts)
    for part in made:
        packed = _pack([tails[i] for i in part.rows], shape)
        arrays = place(part.tokens, part.lengths, *packed)
        found = np.asarray(score(forward, model, state, params, prefix, *arrays))
        for i, row in zip(part.numbers, found, strict=False):
            scores[i] = row[: len(tails[i])]
        advance(len(part.numbers))
    return scores


@functools.partial(jax.jit, static_argnames=('forward', 'model'))
def score(forward, model, state, params, prefix, tokens, lengths, tails, tail_lengths):
    """One batch of `loglik`.

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
      float32 [B, C].
    """
    run = functools.partial(forward, state, {'params': params})
    logits, cache, start = prefill(run, model, prefix, tokens, lengths, tails.shape[2] - 1)
    return continued(run, logits, cache, start, tails, tail_lengths)[0]


def continued(run, logits, cache, start, tails, tail_lengths):
    """The candidates that follow a batch of prompts whose prefill is done; traced, not jitted.

    Args:
      run: `forward` with its state and variables bound.
      logits: float32 [B, V], of what follows each prompt.
      cache: of the prompts, with M - 1 slots left.
      start: int32 [B], the next position.
      tails: int32 [B, C, M], right-padded.
      tail_lengths: int32 [B, C].

    Returns:
      (float32 [B, C] summed log-probabilities, bool [B, C] whether each token of a candidate was
      the most likely one; XLA drops it where it is not used).
    """
    M = tails.shape[2]
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


def _split(prompt: np.ndarray, outputs: Sequence[np.ndarray]):
    """(prompt and what all outputs begin with, what is left of each: at least one token)."""
    common = batches.shared_prefix(outputs)
    return np.concatenate([prompt, outputs[0][:common]]), [o[common:] for o in outputs]


def _pack(rows: Sequence[Sequence[np.ndarray]], shape: tuple[int, int]):
    """Candidates of a batch as (int32 [B, C, M], lengths int32 [B, C])."""
    tails = np.zeros((len(rows), *shape), np.int32)
    lengths = np.zeros((len(rows), shape[0]), np.int32)
    for b, row in enumerate(rows):
        for c, tail in enumerate(row):
            tails[b, c, : len(tail)] = tail
            lengths[b, c] = len(tail)
    return tails, lengths
