"""Likelihood of texts in sliding windows, and their perplexity under three honest names.

    nll_i = -log p(x_i | the tokens before it in its window)          i = 2 .. n of each text

    corpus_ppl         = exp(sum of nll over all texts / number of tokens scored)
    mean_text_ppl      = mean over texts of exp(mean of the text's nll)
    positional_ppl[d]  = exp(mean over texts of the mean nll in the d-th tenth of the text)

The first is what papers report. The second is what a loop over paragraphs gives (short odd texts
dominate it); the third was called 'lost in the middle' by one reference, which it does not measure:
see eval.retrieval for that.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from eval import finite, placement
from eval.bar import rows_bar
from train import packing
from train.encoding import Example
from train.packing import Shape
from train.shapes import Block, choose_shape
from train.windows import check, cut

TENTHS = 10
LARGEST = 700.0  # nats of a token; exp of a little more is no float64


def measure(
    forward: Callable,
    state: Any,
    params: Any,
    model: Any,
    ids_by_text: Sequence[np.ndarray],
    *,
    window: int,
    stride: int,
    batch: int = 8,
    progress: bool = False,
) -> dict[str, Any]:
    """Perplexity of texts, in a sliding window (see `train.windows.cut`).

    Every token of a text but the very first is scored exactly once. Texts never see each other. No
    figure depends on `batch`. Called again with the same `forward` and texts it compiles nothing.

    Args:
      forward: `jp.bind(plan, model.apply)`; of the bare base `jp.bind({}, model.apply)`.
      state: the adapter; of the bare base `jp.State({}, {})`.
      params: the base.
      model: the Linen module (for its number of positions).
      ids_by_text: the token ids of each text.
      window: tokens of a window, at most the model's positions.
      stride: new tokens a window; the smaller, the more context and the more work.
      batch: windows at once.
      progress: show a bar.

    Returns:
      {"corpus_ppl", "mean_text_ppl", "positional_ppl": [10], "positional_mean_ppl": its mean,
      "tokens": scored, "nll": their sum in nats, "texts": scored, "texts_unscored": of fewer than
      two tokens, "texts_in_positional": of more than ten}. The positional figures are None where no
      text is long enough.

    Raises:
      ValueError: a window, stride or batch out of range, or no text of two tokens.
      FloatingPointError: see `summarise`.

    Example:
      >>> import jaxpeft as jp
      >>> model, params, tokenizer = jp.models.load('embedded')
      >>> ids = [tokenizer(text)['input_ids'] for text in ('A dog is an animal.', 'A cat too.')]
      >>> bare = jp.bind({}, model.apply), jp.State({}, {})
      >>> found = measure(*bare, params, model, ids, window=8, stride=4)
      >>> found['tokens'] == sum(map(len, ids)) - 2
      True
    """
    check(window, stride)
    check_window(window, model)
    per_text = [list(cut(ids, window, stride)) for ids in ids_by_text]
    examples: list[Example] = [one for own in per_text for one in own]
    if not examples:
        raise ValueError(f'none of the {len(per_text)} texts has two tokens, so nothing to score')
    with rows_bar('perplexity', len(examples), progress, 'windows') as advance:
        found = token_nll(forward, state, params, examples, batch=batch, advance=advance)
    nll_by_text, at = [], 0
    for own in per_text:
        nll_by_text.append(np.concatenate(found[at : at + len(own)] or [np.zeros(0)]))
        at += len(own)
    return summarise(nll_by_text)


def check_window(window: int, model: Any) -> None:
    """Refuses a window that the model has no positions for.

    Raises:
      ValueError: naming both.
    """
    positions = model.config.max_positions
    if window > positions:
        raise ValueError(
            f'a window of {window} tokens: the model has {positions} positions; '
            f'nearest: {positions}'
        )


def summarise(nll_by_text: Sequence[np.ndarray]) -> dict[str, Any]:
    """The figures of `measure` from the texts' token losses, float64 [n - 1] each.

    A text's tenths are its tokens in ten equal parts, the last with the remainder.

    Raises:
      FloatingPointError: a loss that is not finite or above LARGEST, naming the text.

    Example:
      >>> found = summarise([np.log([2.0, 8.0]), np.log([4.0])])
      >>> round(found['corpus_ppl'], 6), round(found['mean_text_ppl'], 6), found['positional_ppl']
      (4.0, 4.0, None)
    """
    for number, own in enumerate(nll_by_text):
        finite.check(own <= LARGEST, f'text {number}')
    scored = [own for own in nll_by_text if len(own)]
    total, tokens = float(sum(own.sum() for own in scored)), sum(map(len, scored))
    long = [own for own in scored if len(own) >= TENTHS]
    tenths = _tenths(long)
    return {
        'corpus_ppl': math.exp(total / tokens),
        'mean_text_ppl': float(np.mean([math.exp(own.mean()) for own in scored])),
        'positional_ppl': tenths,
        'positional_mean_ppl': None if tenths is None else float(np.mean(tenths)),
        'tokens': tokens,
        'nll': total,
        'texts': len(scored),
        'texts_unscored': len(nll_by_text) - len(scored),
        'texts_in_positional': len(long),
    }


def _tenths(texts: Sequence[np.ndarray]) -> list[float] | None:
    if not texts:
        return None
    means = np.zeros((len(texts), TENTHS))
    for out, own in zip(means, texts, strict=True):
        size = len(own) // TENTHS
        bounds = [*range(0, size * TENTHS, size), len(own)]
        out[:] = [own[a:b].mean() for a, b in itertools.pairwise(bounds)]
    return np.exp(means.mean(axis=0)).tolist()


@functools.partial(jax.jit, static_argnames='forward')
def nll(forward, state, params, tokens, positions, segment_ids, select, labels):
    """-log p of `labels` [N] at the flat positions `select` [N]: float32 [N], one batch."""
    return forward(
        state,
        {'params': params},
        tokens,
        positions=positions,
        segment_ids=segment_ids,
        select=select,
        labels=labels,
    )


def token_nll(
    forward: Callable,
    state: Any,
    params: Any,
    examples: Sequence[Example],
    *,
    batch: int = 8,
    advance: Callable[[int], Any] = lambda windows: None,
) -> list[np.ndarray]:
    """-log p of every labelled token given the tokens before it in its window.

    Windows are packed: short ones share a row, each blind to the others. All batches have one
    shape, so one program is compiled for a set of windows, and found again the next time that this
    `forward` is asked about them. The head runs at the labelled positions only.

    Args:
      forward: `jp.bind(plan, model.apply)`.
      state: the adapter.
      params: the base.
      examples: the windows.
      batch: windows in a batch; changes speed and memory only.
      advance: called with the windows done after each batch.

    Returns:
      For each window float64 [its labelled tokens], in order.
    """
    if not examples:
        return []
    place, size, multiple = placement.rows(params, min(batch, len(examples)))
    shape = _shape(examples, size, multiple)
    found: list[np.ndarray] = []
    for part in _parts(examples, size):
        made = packing.fill(part, shape, packing=True)
        arrays = place(*(made[n] for n in ('tokens', 'positions', 'segment_ids')))
        picked = place(made['select'], made['labels'])
        flat = np.asarray(nll(forward, state, params, *arrays, *picked), np.float64)
        ends = np.cumsum([int(e.labelled.sum()) for e in part])
        found += np.split(flat[: ends[-1]], ends[:-1])
        advance(len(part))
    return found


def _parts(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    for first in range(0, len(examples), size):
        yield examples[first : first + size]


def _shape(examples: Sequence[Example], size: int, multiple: int) -> Shape:
    """The one shape that holds every batch."""
    lengths, labels = (np.zeros((-(-len(examples) // size), size), np.int64) for _ in range(2))
    lengths.flat[: len(examples)] = [len(e.tokens) for e in examples]
    labels.flat[: len(examples)] = [int(e.labelled.sum()) for e in examples]
    longest = int(lengths.max())
    return choose_shape(
        [Block(lengths, labels)],
        longest,
        packing=True,
        max_length=longest,
        row_multiple=multiple,
    )
