"""Greedy and sampled generation: one jitted program a batch shape, prefill and loop together."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval import batches, beam, placement
from eval.prefill import prefill, prefix_cache, step
from eval.sampling import GREEDY, History, Sampling, check, draws, pick
from jaxpeft.models import cache as caches


def generate(
    forward: Callable,
    state: Any,
    params: Any,
    model: Any,
    prompts: Sequence[np.ndarray],
    *,
    new_tokens: int,
    eos: int,
    batch: int = 16,
    sampling: Sampling = GREEDY,
    beams: int = 1,
    seed: int = 0,
    advance: Callable[[int], Any] = lambda rows: None,
) -> list[np.ndarray]:
    """Continues every prompt until `eos` or `new_tokens`.

    Args:
      forward: `jp.bind(plan, model.apply)`.
      state: the adapter.
      params: the base.
      model: the Linen module (for its cache).
      prompts: token arrays, in any order; results come in the same order.
      new_tokens: the most tokens a row gets.
      eos: the token that ends a row.
      batch: rows a batch; changes speed only.
      sampling: greedy unless it says otherwise.
      beams: more than 1 is beam search, which excludes sampling.
      seed: of the samples; what a row draws depends on its number, not on its batch.
      advance: called with the rows done after each batch (a progress bar).

    Returns:
      The new tokens of each prompt, int32, without `eos` and what follows it.

    Raises:
      ValueError: settings out of range, or beams together with sampling.
    """
    longest = _check(model, prompts, new_tokens, beams, seed, sampling)
    place, size, multiple = placement.rows(params, batch)
    share = not sampling.needs_history  # whose n-grams must not meet padding after the prefix
    price = batches.compile_price(params)
    start, made = batches.make(
        prompts, size, share=share, multiple=multiple, longest=longest, price=price
    )
    prefix = prefix_cache(forward, model, state, params, start)
    out: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
    for part in made:
        args = (forward, model, state, params, prefix, *place(part.tokens, part.lengths))
        if beams > 1:
            tokens = beam.search(*args, beams=beams, new_tokens=new_tokens, eos=eos)
        else:
            (drawn,) = place(np.stack([draws(seed, row, new_tokens) for row in part.rows]))
            tokens = decode(*args, drawn, new_tokens=new_tokens, eos=eos, sampling=sampling)
        for i, row in zip(part.numbers, np.asarray(tokens), strict=False):
            out[i] = row[: int(np.argmax(np.append(row, eos) == eos))]
        advance(len(part.numbers))
    return out


def _check(model, prompts, new_tokens: int, beams: int, seed: int, sampling: Sampling) -> int:
    """Refuses what `generate` says it refuses; returns the longest prompt there is room for."""
    check(sampling)
    if new_tokens < 1 or beams < 1 or seed < 0:
        raise ValueError(
            f'need new_tokens >= 1, beams >= 1 and seed >= 0, got {new_tokens}, {beams} and {seed}'
        )
    if beams > 1 and sampling != GREEDY:
        raise ValueError(f'beam search takes no sampling settings: beams={beams} with {sampling}')
    longest = model.config.max_positions - new_tokens + 1  # the last token is never fed back
    for i, prompt in enumerate(prompts):
        if len(prompt) > longest:
            raise ValueError(
                f'prompt {i} has {len(prompt)} tokens; with {new_tokens} new ones the model has '
                f'positions for {longest}. Shorten it, generate less, or take another model'
            )
    return longest


@functools.partial(jax.jit, static_argnames=('forward', 'model', 'new_tokens', 'sampling'))
def decode(
    forward, model, state, params, prefix, tokens, lengths, drawn, *, new_tokens, eos, sampling
):
    """One batch: prefill, then a loop that ends as soon as every row has ended.

    Args:
      forward: static, see `generate`.
      model: static.
      state: adapter.
      params: base.
      prefix: cache of the tokens that all rows begin with, or None.
      tokens: int32 [B, T], left-padded.
      lengths: int32 [B].
      drawn: float32 [B, N], what the rows sample by.
      new_tokens: static N.
      eos: int32, the end token.
      sampling: static.

    Returns:
      int32 [B, N]: the new tokens, `eos` and after it `eos` again.
    """
    run = functools.partial(forward, state, {'params': params})
    B = len(tokens)
    # the last token is never fed back, so that one slot less will do
    logits, cache, start = prefill(run, model, prefix, tokens, lengths, new_tokens - 1)
    history = history_of(tokens, lengths, new_tokens) if sampling.needs_history else None
    token = pick(logits, sampling, drawn[:, 0], history)
    out = jnp.full((B, new_tokens), eos, jnp.int32).at[:, 0].set(token)

    def going(carry):
        at, _, _, token_done, _ = carry
        return (at < new_tokens) & ~jnp.all(token_done)

    def body(carry):
        at, cache, out, done, history = carry
        last = jax.lax.dynamic_index_in_dim(out, at - 1, axis=1, keepdims=False)
        logits, cache = step(run, cache, last, start + at - 1)
        history = history.push(last) if history is not None else None
        token = pick(logits, sampling, drawn[:, at], history)
        token = jnp.where(done, eos, token)
        return at + 1, cache, out.at[:, at].set(token), done | (token == eos), history

    carry = (jnp.int32(1), caches.apart(cache), out, token == eos, history)
    return jax.lax.while_loop(going, body, carry)[2]


def history_of(tokens: jax.Array, lengths: jax.Array, new_tokens: int) -> History:
    """The prompts as history, with room for the new tokens."""
    T = tokens.shape[1]
    valid = jnp.arange(T)[None, :] >= (T - lengths)[:, None]
    room = ((0, 0), (0, new_tokens))
    return History(jnp.pad(tokens, room), jnp.pad(valid, room), jnp.int32(T - 1))
