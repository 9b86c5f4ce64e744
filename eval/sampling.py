"""From logits to the next token: greedy, or sampled with the usual filters.

The filters are applied in transformers' order (repetition penalty, n-gram ban, temperature,
top-k, top-p), so that settings mean here what they mean there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Sampling(NamedTuple):
    """How the next token is picked. `temperature` 0 is greedy and needs no key.

    `top_k` 0, `top_p` 1, `repetition_penalty` 1 and `no_repeat_ngram` 0 switch their filter off.
    The last two look at the PROMPT's tokens as well as at the generated ones.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0

    @property
    def needs_history(self) -> bool:
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram > 0


GREEDY = Sampling()


class History(NamedTuple):
    """What each row has seen: `tokens` int32 [B, S], `valid` bool [B, S], `end` the newest slot.

    Rows are left-padded, so that `end` is one number for all of them.
    """

    tokens: jax.Array
    valid: jax.Array
    end: jax.Array

    def push(self, token: jax.Array) -> 'History':
        """The history with `token` [B] in the next slot."""
        end = self.end + 1
        return History(self.tokens.at[:, end].set(token), self.valid.at[:, end].set(True), end)


def check(sampling: Sampling) -> Sampling:
    """Returns `sampling` or raises ValueError with the rule and the value that broke it."""
    rules = {
        'temperature': (sampling.temperature >= 0, 'must be >= 0 (0 is greedy)'),
        'top_k': (sampling.top_k >= 0, 'must be >= 0 (0 keeps every token)'),
        'top_p': (0 < sampling.top_p <= 1, 'must be in (0, 1] (1 keeps every token)'),
        'repetition_penalty': (sampling.repetition_penalty > 0, 'must be > 0 (1 is none)'),
        'no_repeat_ngram': (sampling.no_repeat_ngram >= 0, 'must be >= 0 (0 bans nothing)'),
    }
    for name, (holds, rule) in rules.items():
        if not holds:
            raise ValueError(f'{name} {rule}, got {getattr(sampling, name)}')
    return sampling


def pick(logits: jax.Array, sampling: Sampling, draw: jax.Array, history: History | None):
    """The next token of each row.

    Args:
      logits: float32 [B, V].
      sampling: static settings.
      draw: float32 [B] in [0, 1), one for each row; not looked at when greedy.
      history: what the rows have seen; None unless `sampling.needs_history`.

    Returns:
      (int32 [B], bool [B] whether the logits that it was picked from are finite).
    """
    sane = jnp.isfinite(logits.max(axis=-1))  # a maximum is NaN where any is
    return _pick(logits, sampling, draw, history), sane


def _pick(logits: jax.Array, sampling: Sampling, draw: jax.Array, history: History | None):
    if history is not None:
        logits = penalise(logits, history, sampling.repetition_penalty)
        logits = ban_ngrams(logits, history, sampling.no_repeat_ngram)
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    logits = keep_top_p(keep_top_k(logits, sampling.top_k), sampling.top_p)
    below = jnp.cumsum(jax.nn.softmax(logits, axis=-1), axis=-1)  # the inverse of this at `draw`
    return jnp.argmax(below > draw[:, None] * below[:, -1:], axis=-1).astype(jnp.int32)


def draws(seed: int, row: int, steps: int) -> np.ndarray:
    """The numbers that row `row` samples by, float32 [steps]: whatever its batch."""
    return np.random.default_rng((seed, row)).random(steps, dtype=np.float32)


def penalise(logits: jax.Array, history: History, penalty: float) -> jax.Array:
    """Divides the positive and multiplies the negative logits of tokens already seen."""
    if penalty == 1:
        return logits
    rows, vocab = logits.shape
    # unseen slots write to a column that is cut off
    where = jnp.where(history.valid, history.tokens, vocab)
    seen = jnp.zeros((rows, vocab + 1), bool)
    seen = seen.at[jnp.arange(rows)[:, None], where].set(True)[:, :vocab]
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def ban_ngrams(logits: jax.Array, history: History, n: int) -> jax.Array:
    """Sets to -inf every token that would complete an n-gram the row has already seen."""
    if n == 0:
        return logits
    rows, vocab = logits.shape
    before = n - 1
    tokens, valid = history.tokens, history.valid
    starts = tokens.shape[1] - before
    recent = jax.lax.dynamic_slice_in_dim(tokens, history.end - before + 1, before, axis=1)
    match = valid[:, before:]
    for j in range(before):
        match &= (tokens[:, j : j + starts] == recent[:, j : j + 1]) & valid[:, j : j + starts]
    where = jnp.where(match, tokens[:, before:], vocab)
    banned = jnp.zeros((rows, vocab + 1), bool)
    banned = banned.at[jnp.arange(rows)[:, None], where].set(True)[:, :vocab]
    return jnp.where(banned, -jnp.inf, logits)


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
    """Keeps the k largest logits of each row (and ties with the k-th); k 0 keeps all."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    least = jax.lax.top_k(logits, k)[0][:, -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def keep_top_p(logits: jax.Array, p: float) -> jax.Array:
    """Keeps the fewest tokens whose probability reaches p: those with less than p before them."""
    if p == 1:
        return logits
    descending = -jnp.sort(-logits, axis=-1)
    mass = jax.nn.softmax(descending, axis=-1)
    kept = jnp.cumsum(mass, axis=-1) - mass < p
    least = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < least, -jnp.inf, logits)
