"""Greedy and sampled generation: one jitted program a batch shape, prefill and loop together."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval import beam, finite
from eval.batches import Batch
from eval.prefill import Cache, prefill, ready, step
from eval.sampling import GREEDY, History, Sampling, check, draws, pick
from jaxpeft import models
from jaxpeft.models import cache as caches
from jaxpeft.models.config import ModelConfig


def ends(tokenizer: Any, config: ModelConfig) -> tuple[int, ...]:
    """The tokens that end a text: the tokenizer's, and those of the model's config.

    Raises:
      ValueError: neither names one.
    """
    own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    found = tuple(dict.fromkeys((*own, *config.eos_token_ids)))
    if not found:
        raise ValueError(
            'generation needs to know where to stop: neither the tokenizer nor the config of '
            f'{config.name or "the model"} names an EOS token'
        )
    return found


def generate(
    forward: Callable,
    state: Any,
    params: Any,
    model: Any,
    prompts: Sequence[np.ndarray],
    *,
    new_tokens: int,
    eos: int | Sequence[int],
    batch: int = 16,
    sampling: Sampling = GREEDY,
    beams: int = 1,
    seed: int = 0,
    advance: Callable[[int], Any] = lambda rows: None,
    loop: Any = None,
) -> list[np.ndarray]:
    """Continues every prompt until an end token, or for `new_tokens`.

    Args:
      forward: `jp.bind(plan, model.apply)`.
      state: the adapter.
      params: the base.
      model: the Linen module (for its cache).
      prompts: token arrays, in any order; results come in the same order.
      new_tokens: the most tokens a row gets.
      eos: the token that ends a row, or several (see `ends`).
      batch: rows a batch; changes speed only.
      sampling: greedy unless it says otherwise.
      beams: more than 1 is beam search, which excludes sampling.
      seed: of the samples; what a row draws depends on its number, not on its batch.
      advance: called with the rows done after each batch (a progress bar).
      loop: `jp.models.apart(params)` of a caller that has it already; it is made here otherwise.

    Returns:
      The new tokens of each prompt, int32, without the end token and what follows it.

    Raises:
      ValueError: settings out of range, or beams together with sampling.
      FloatingPointError: logits that are not finite.
    """
    parts = (forward, state, params, model)
    place, prefix, made = begin(parts, prompts, new_tokens, batch, sampling, seed, beams)
    loop = models.apart(params) if loop is None else loop
    last = np.atleast_1d(np.asarray(eos, np.int32))
    out: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
    for part in made:
        args = (forward, model, state, params, loop, prefix, *place(part.tokens, part.lengths))
        if beams > 1:
            found = beam.search(*args, beams=beams, new_tokens=new_tokens, eos=last)
        else:
            (drawn,) = place(np.stack([draws(seed, row, new_tokens) for row in part.rows]))
            found = decode(*args, drawn, new_tokens=new_tokens, eos=last, sampling=sampling)
        for i, row, lost in zip(part.numbers, *map(np.asarray, found), strict=False):
            finite.check(not lost, f'prompt {i}')
            out[i] = cut(row, last)
        advance(len(part.numbers))
    return out


def cut(row: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A row up to its first end token."""
    hit = np.isin(row, ends)
    return row[: int(hit.argmax())] if hit.any() else row


def begin(
    parts: tuple[Callable, Any, Any, Any],
    prompts: Sequence[np.ndarray],
    new_tokens: int,
    batch: int,
    sampling: Sampling,
    seed: int,
    beams: int = 1,
) -> tuple[Callable[..., tuple], Cache | None, list[Batch]]:
    """What `eval.prefill.ready` gives, after a look at what is asked for.

    Raises:
      ValueError: what `generate` says that it refuses.
    """
    check(sampling)
    if new_tokens < 1 or beams < 1 or seed < 0:
        raise ValueError(
            f'need new_tokens >= 1, beams >= 1 and seed >= 0, got {new_tokens}, {beams} and {seed}'
        )
    if beams > 1 and sampling != GREEDY:
        raise ValueError(f'beam search takes no sampling settings: beams={beams} with {sampling}')
    spare = new_tokens - 1  # the last token is never fed back
    longest = parts[-1].config.max_positions - spare
    for i, prompt in enumerate(prompts):
        if len(prompt) > longest:
            raise ValueError(
                f'prompt {i} has {len(prompt)} tokens; with {new_tokens} new ones the model has '
                f'positions for {longest}. Shorten it, generate less, or take another model'
            )
    share = not sampling.needs_history  # whose n-grams must not meet padding after the prefix
    return ready(parts, prompts, batch, spare=spare, share=share)


@functools.partial(jax.jit, static_argnames=('forward', 'model', 'new_tokens', 'sampling'))
def decode(
    forward, model, state, params, loop, prefix, tokens, lengths, drawn,
    *, new_tokens, eos, sampling,
):  # fmt: skip
    """One batch: prefill, then a loop that ends as soon as every row has ended.

    Args:
      forward: static, see `generate`.
      model: static.
      state: adapter.
      params: base.
      loop: the base for the loop, see `generate`.
      prefix: cache of the tokens that all rows begin with, or None.
      tokens: int32 [B, T], left-padded.
      lengths: int32 [B].
      drawn: float32 [B, N], what the rows sample by.
      new_tokens: static N.
      eos: int32 [E], the end tokens.
      sampling: static.

    Returns:
      (int32 [B, N]: the new tokens, an end token and after it `eos[0]`; bool [B], the rows whose
      logits were not finite).
    """
    run = functools.partial(forward, state, {'params': params})
    B = len(tokens)
    # the last token is never fed back, so that one slot less will do
    logits, cache, start = prefill(run, model, prefix, tokens, lengths, new_tokens - 1)
    history = history_of(tokens, lengths, new_tokens) if sampling.needs_history else None
    token, sane = pick(logits, sampling, drawn[:, 0], history)
    out = jnp.full((B, new_tokens), eos[0], jnp.int32).at[:, 0].set(token)

    def going(carry):
        at, _, _, done, _, _ = carry
        return (at < new_tokens) & ~jnp.all(done)

    def body(carry):
        at, cache, out, done, lost, history = carry
        last = jax.lax.dynamic_index_in_dim(out, at - 1, axis=1, keepdims=False)
        logits, cache = step(forward, state, loop, cache, last, start + at - 1)
        history = history.push(last) if history is not None else None
        token, sane = pick(logits, sampling, drawn[:, at], history)
        token = jnp.where(done, eos[0], token)
        lost = lost | ~(sane | done)
        done = done | lost | ended(token, eos)
        return at + 1, cache, out.at[:, at].set(token), done, lost, history

    carry = (jnp.int32(1), caches.apart(cache), out, ended(token, eos) | ~sane, ~sane, history)
    _, _, out, _, lost, _ = jax.lax.while_loop(going, body, carry)
    return out, lost


def ended(token: jax.Array, eos: jax.Array) -> jax.Array:
    """bool [B]: which of the tokens [B] are one of the end tokens [E]."""
    return (token[:, None] == eos[None, :]).any(axis=1)


def history_of(tokens: jax.Array, lengths: jax.Array, new_tokens: int) -> History:
    """The prompts as history, with room for the new tokens."""
    T = tokens.shape[1]
    valid = jnp.arange(T)[None, :] >= (T - lengths)[:, None]
    room = ((0, 0), (0, new_tokens))
    return History(jnp.pad(tokens, room), jnp.pad(valid, room), jnp.int32(T - 1))
