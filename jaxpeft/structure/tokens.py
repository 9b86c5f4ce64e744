"""Features of a token from its prefix: for language modelling, inside the compiled step.

What each vocabulary entry does to a reader's state (depth of brackets, indentation, quotes) is a
small function that composes with the next token's into one of the same form. So the states after
all prefixes are one associative scan over constant tables, `O(log T)` deep; nothing sees a later
token, padding is the identity, and a segment's first token forgets what was before it. A state of a
few numbers a row carries over to the next chunk, or to the next decoded token.
"""

import functools
import keyword
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft.base import Array

TAB = 4  # columns
# A reader of quotes is outside (there perhaps behind a word, or behind letters that may be a
# string's prefix), in ' or ", or behind a backslash in one.
OUT, WORD, PREFIX, ONE, TWO, ONE_ESCAPED, TWO_ESCAPED = range(7)
QUOTE = (0, 0, 0, 1, 2, 1, 2)  # as a feature: none, ', "
# The state before a segment's first token: at the open start of a line, outside of quotes.
FRESH = {'depth': 0, 'indent': 0, 'open': True, 'quote': 0, 'count': 0}


def token_tables(tokenizer: Any, size: int | None = None) -> dict[str, np.ndarray]:
    """What each vocabulary entry does, from a Hugging Face tokenizer: computed once, on the host.

    Args:
      tokenizer: byte-level or SentencePiece. Special tokens do nothing.
      size: rows, at least the vocabulary's: a model's embedding may be padded.

    Returns:
      `[V]` and `[V, 7]` arrays, to be given to `token_features`: `delta`, `floor` (a depth d
      becomes max(d + delta, floor)); `newline`, `lead`, `blank` (a line break in it, columns of
      white space in front of what follows the last one, and whether nothing else follows); `quote`
      (from each of a reader's seven states to the next); `keyword` (0, or 1 + the number in
      Python's sorted list).

    Raises:
      ValueError: for a size below the vocabulary's.

    Example:
      >>> import jaxpeft as jp
      >>> tokenizer = jp.models.load('embedded')[2]
      >>> tables = token_tables(tokenizer)
      >>> [int(tables['delta'][i]) for i in tokenizer('f(x)')['input_ids']]
      [0, 1, 0, -1]
    """
    total = len(tokenizer)
    size = total if size is None else size
    if size < total:
        raise ValueError(f'size must be at least the {total} tokens of the tokenizer, got {size}')
    # Behind an anchor: alone, SentencePiece's decoder strips the space in front of a word.
    anchor = tokenizer.encode('x', add_special_tokens=False)[-1:]
    decode = functools.partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    skip, special = len(decode(anchor)), set(tokenizer.all_special_ids)
    words = (decode([*anchor, i])[skip:] for i in range(total))
    rows = [_row('' if i in special else word) for i, word in enumerate(words)]
    rows += [_row('')] * (size - total)
    return {name: np.array([row[name] for row in rows], np.int32) for name in rows[0]}


def _row(text: str) -> dict[str, Any]:
    """One entry's functions."""
    delta = floor = 0
    for c in text:
        step = (c in '([{') - (c in ')]}')
        delta, floor = delta + step, max(floor + step, 0)
    tail = text.rpartition('\n')[2]
    white = tail[: len(tail) - len(tail.lstrip())]
    word = text.strip()
    return {
        'delta': delta,
        'floor': floor,
        'newline': '\n' in text,
        'lead': sum(TAB if c == '\t' else 1 for c in white),
        'blank': not tail.strip(),
        'quote': [functools.reduce(_after, text, state) for state in range(len(QUOTE))],
        'keyword': 1 + keyword.kwlist.index(word) if word in keyword.kwlist else 0,
    }


def _after(state: int, c: str) -> int:
    """The state of quotes behind one more character; a line's end closes what is open."""
    if c == '\n':
        return OUT
    if state in (ONE_ESCAPED, TWO_ESCAPED):
        return state - 2
    if state in (ONE, TWO):
        own = "'" if state == ONE else '"'
        return state + 2 if c == '\\' else OUT if c == own else state
    if c == '"':
        return TWO
    if c == "'":
        return OUT if state == WORD else ONE  # an apostrophe, as in "dog's"
    if c.isalnum() or c == '_':
        return PREFIX if c in 'fFrRbBuU' and state != WORD else WORD
    return OUT


def token_features(
    tables: Mapping[str, Any],
    tokens: Array,
    segment_ids: Array | None = None,
    carry: Mapping[str, Array] | None = None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Features of the kind 'tokens', of each token and what came before it in its segment.

    Columns of `ids`: depth of brackets behind the token, never below 0; indentation of its line in
    columns; 0 outside of quotes, 1 in ', 2 in "; the keyword that it is. A cheap reading, of prose
    as well: brackets count inside of quotes, a string ends with its line, a keyword of two tokens
    is none.

    Args:
      tables: of `token_tables`, numpy or jax.
      tokens: `[B, T]` int.
      segment_ids: `[B, T]` int, 0 is padding; one segment when None.
      carry: what the call for the tokens before returned; None at the start.

    Returns:
      `{'positions': [B, T], 'ids': [B, T, 4]}` int32, zeros at padding; and the carry. Chunk by
      chunk gives what one call gives for the whole.

    Raises:
      ValueError: for segments of another shape.

    Example:
      >>> import jaxpeft as jp, numpy as np
      >>> tokenizer = jp.models.load('embedded')[2]
      >>> tokens = np.array([tokenizer('f(x)')['input_ids']])
      >>> token_features(token_tables(tokenizer), tokens)[0]['ids'][0, :, 0].tolist()
      [0, 1, 1, 0]
    """
    tokens = jnp.asarray(tokens)
    seg = jnp.ones_like(tokens) if segment_ids is None else jnp.asarray(segment_ids)
    if tokens.ndim != 2 or seg.shape != tokens.shape:
        raise ValueError(f'tokens and segment_ids are [B, T], got {tokens.shape} and {seg.shape}')
    fresh = {k: jnp.full(len(tokens), v) for k, v in FRESH.items()}
    state = {**fresh, 'segment': jnp.zeros(len(tokens), seg.dtype)} if carry is None else carry
    # The segment of the last token that is no padding, behind each token.
    known = jnp.concatenate([state['segment'][:, None], seg], axis=1)
    known = jax.lax.associative_scan(lambda a, b: jnp.where(b == 0, a, b), known, axis=1)
    real = seg != 0
    steps = _steps(tables, tokens, real, real & (seg != known[:, :-1]))
    done = jax.lax.associative_scan(_then, steps, axis=1)
    before = {k: jnp.where(done['reset'], v, state[k][:, None]) for k, v in FRESH.items()}
    after = _run(done, before)
    quote = jnp.asarray(QUOTE)[after['quote']]
    ids = jnp.stack([after['depth'], after['indent'], quote, steps['keyword']], axis=-1)
    ids, positions = jnp.where(real[..., None], ids, 0), jnp.where(real, after['count'] - 1, 0)
    last = {k: v[:, -1] for k, v in after.items()}
    return {'positions': positions, 'ids': ids}, {**last, 'segment': known[:, -1]}


def _steps(tables: Mapping[str, Any], tokens: Array, real: Array, reset: Array) -> dict[str, Array]:
    """Each token's functions; padding does nothing."""
    row = {k: jnp.asarray(table)[tokens] for k, table in tables.items()}
    nothing: dict[str, Any] = {'blank': 1, 'quote': jnp.arange(len(QUOTE))[None, None, :]}
    steps = {
        k: jnp.where(real.reshape(*real.shape, *([1] * (v.ndim - 2))), v, nothing.get(k, 0))
        for k, v in row.items()
    }
    flags = {k: steps[k] != 0 for k in ('newline', 'blank')}
    return {**steps, **flags, 'reset': reset, 'count': real.astype(jnp.int32)}


def _then(f: dict[str, Array], g: dict[str, Array]) -> dict[str, Array]:
    """First f, then g, as one function of the same form."""
    both = {
        'delta': f['delta'] + g['delta'],
        'floor': jnp.maximum(f['floor'] + g['delta'], g['floor']),
        'newline': f['newline'] | g['newline'],
        'lead': jnp.where(g['newline'], 0, f['lead'])
        + jnp.where(g['newline'] | f['blank'], g['lead'], 0),
        'blank': jnp.where(g['newline'], g['blank'], f['blank'] & g['blank']),
        'quote': jnp.take_along_axis(g['quote'], f['quote'], axis=-1),
        'count': f['count'] + g['count'],
        'keyword': g['keyword'],
    }
    anew = lambda x: g['reset'].reshape(*g['reset'].shape, *([1] * (x.ndim - 2)))
    chosen = {k: jnp.where(anew(v), g[k], v) for k, v in both.items()}
    return {**chosen, 'reset': f['reset'] | g['reset']}


def _run(f: dict[str, Array], state: Mapping[str, Array]) -> dict[str, Array]:
    """The states behind functions: `[B, T]` each."""
    lead = jnp.where(f['newline'] | state['open'], f['lead'], 0)
    return {
        'depth': jnp.maximum(state['depth'] + f['delta'], f['floor']),
        'indent': jnp.where(f['newline'], 0, state['indent']) + lead,
        'open': jnp.where(f['newline'], f['blank'], state['open'] & f['blank']),
        'quote': jnp.take_along_axis(f['quote'], state['quote'][..., None], axis=-1)[..., 0],
        'count': state['count'] + f['count'],
    }
