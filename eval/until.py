"""Generation until a text says stop: the loop returns to the host every few tokens to look.

A stop string is no token, so no compiled loop can see it. `eval.decode` would write all the tokens
allowed; here the rows of a batch are read after every CHUNK tokens, and the batch ends when each
has ended.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval import finite
from eval.decode import begin, cut, ended, history_of
from eval.prefill import prefill, step
from eval.sampling import GREEDY, Sampling, draws, pick
from jaxpeft import models
from jaxpeft.models import cache as caches

CHUNK = 16  # tokens between two looks at the text


def generate(
    forward: Callable,
    state: Any,
    params: Any,
    model: Any,
    prompts: Sequence[np.ndarray],
    *,
    new_tokens: int,
    eos: Sequence[int],
    stopped: Callable[[np.ndarray], bool],
    batch: int = 16,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    advance: Callable[[int], Any] = lambda rows: None,
    loop: Any = None,
) -> list[np.ndarray]:
    """Continues every prompt until an end token, until `stopped`, or for `new_tokens`.

    Args:
      forward: `jp.bind(plan, model.apply)`.
      state: the adapter.
      params: the base.
      model: the Linen module (for its cache).
      prompts: token arrays; with `new_tokens` more each fits the model's positions.
      new_tokens: the most tokens that a row gets.
      eos: the tokens that end a row, at least one.
      stopped: whether a row's new tokens hold a reason to stop; asked every CHUNK tokens.
      batch: rows a batch; changes speed only.
      sampling: greedy unless it says otherwise.
      seed: of the samples; what a row draws depends on its number, not on its batch.
      advance: called with the rows done after each batch.
      loop: see `eval.decode.generate`.

    Returns:
      The new tokens of each prompt, int32, without the end token and what follows it; a row that
      `stopped` may hold up to CHUNK - 1 tokens after the reason.

    Raises:
      ValueError: for settings out of range, or a prompt that does not fit.
      FloatingPointError: logits that are not finite.
    """
    parts = (forward, state, params, model)
    place, prefix, made = begin(parts, prompts, new_tokens, batch, sampling, seed)
    loop = models.apart(params) if loop is None else loop
    ends = np.asarray(eos, np.int32)
    out: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
    for part in made:
        drawn = np.stack([draws(seed, row, new_tokens) for row in part.rows])
        arrays = place(part.tokens, part.lengths, drawn[:, 0])
        begun = _begin(
            forward, model, state, params, prefix, *arrays, new_tokens=new_tokens, sampling=sampling
        )
        more = functools.partial(_more, forward, state, loop, ends=ends, sampling=sampling)
        found = _until(begun, more, place, drawn, ends, stopped, len(part.numbers))
        for i, row, lost in zip(part.numbers, *found, strict=False):
            finite.check(not lost, f'prompt {i}')
            out[i] = row
        advance(len(part.numbers))
    return out


def _until(begun, more, place, drawn, ends, stopped, real: int) -> tuple:
    """The host's loop over one batch; the rows after the first `real` only fill it.

    Returns:
      (the new tokens of each row, bool [B] whose logits were not finite).
    """
    (token, sane), carry = begun
    lost = ~np.asarray(sane)
    new_tokens = drawn.shape[1]
    out = np.asarray(token)[:, None]  # [B, tokens so far]
    done = np.isin(out[:, 0], ends) | lost
    done[real:] = True
    while out.shape[1] < new_tokens and not done.all():
        at = out.shape[1]
        steps = min(CHUNK, new_tokens - at)
        slots = np.zeros((len(drawn), CHUNK), np.float32)
        slots[:, :steps] = drawn[:, at : at + steps]
        last, where, flags = place(out[:, -1], slots, done)
        (written, bad), carry = more(carry, last, where, flags, np.int32(at), np.int32(steps))
        lost = lost | np.asarray(bad)
        done |= lost
        out = np.concatenate([out, np.asarray(written)[:, :steps]], axis=1)
        for b in np.flatnonzero(~done):
            row = cut(out[b], ends)
            done[b] = len(row) < out.shape[1] or stopped(row)
    return [cut(row, ends) for row in out], lost


@functools.partial(jax.jit, static_argnames=('forward', 'model', 'new_tokens', 'sampling'))
def _begin(forward, model, state, params, prefix, tokens, lengths, drawn, *, new_tokens, sampling):
    """Prefill and what `pick` gives first; then (cache, int32 [B] next position, history)."""
    run = functools.partial(forward, state, {'params': params})
    logits, cache, start = prefill(run, model, prefix, tokens, lengths, new_tokens - 1)
    history = history_of(tokens, lengths, new_tokens) if sampling.needs_history else None
    return pick(logits, sampling, drawn, history), (caches.apart(cache), start, history)


@functools.partial(jax.jit, static_argnames=('forward', 'sampling'))
def _more(forward, state, loop, carry, last, drawn, done, at, steps, *, ends, sampling):
    """At most `steps` tokens more: ((int32 [B, CHUNK], bool [B] not finite), carry).

    Args:
      forward: static.
      state: adapter.
      loop: the base for the loop.
      carry: (cache, start, history), what `_begin` or this gave.
      last: int32 [B], the token written last.
      drawn: float32 [B, CHUNK], what the rows sample by.
      done: bool [B], rows that have ended; they go on with `ends[0]`.
      at: int32, tokens written so far.
      steps: int32, how many more.
      ends: int32 [E], the end tokens.
      sampling: static.
    """
    cache, start, history = carry
    out = jnp.full(drawn.shape, ends[0], jnp.int32)

    def going(carry):
        i, _, _, _, done, _, _ = carry
        return (i < steps) & ~jnp.all(done)

    def body(carry):
        i, cache, last, out, done, lost, history = carry
        logits, cache = step(forward, state, loop, cache, last, start + at + i - 1)
        history = history.push(last) if history is not None else None
        token, sane = pick(logits, sampling, drawn[:, i], history)
        token = jnp.where(done, ends[0], token)
        lost = lost | ~(sane | done)
        done = done | lost | ended(token, ends)
        return i + 1, cache, token, out.at[:, i].set(token), done, lost, history

    begun = (jnp.int32(0), cache, last, out, done, jnp.zeros_like(done), history)
    _, cache, _, out, _, lost, history = jax.lax.while_loop(going, body, begun)
    return (out, lost), (cache, start, history)
