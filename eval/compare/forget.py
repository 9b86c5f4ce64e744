"""Forgetting: the perplexity of text like the base's own, which no method is trained on."""

import gzip
import pathlib
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import jaxpeft as jp
from eval import perplexity
from train import texts

DOCUMENTS = 200  # of the embedded base's corpus
SEED = 'eval.compare: held out'  # of no document that the embedded base was trained on


class Text(NamedTuple):
    """The text, as the worker is told of it.

    Attributes:
      file: '' for none, 'embedded' for new documents of the embedded base's corpus, or a file.
      tokens: how many are read at most; 0 for all.
      window, stride: of the perplexity.
    """

    file: str
    tokens: int
    window: int
    stride: int

    @property
    def identity(self) -> dict[str, Any]:
        """What a perplexity of it depends on, as JSON; the file by its name alone."""
        return self._asdict() | {'file': pathlib.PurePath(self.file).name}


NO_TEXT = Text('', 0, 0, 0)


def documents(file: str) -> list[str]:
    """The text's documents.

    The embedded base saw documents that a seeded generator wrote (`train.embedded.corpus`); another
    seed gives documents of the same kind that it never saw.
    """
    if file != 'embedded':
        if file.endswith((*texts.SUFFIXES, *texts.RECORDS)):
            return texts.load(file)
        read = gzip.open if file.endswith('.gz') else open
        with read(file, 'rt', encoding='utf-8') as lines:
            return [lines.read()]
    from train.embedded import corpus, marks

    draw = random.Random(SEED)
    return [marks.plain(corpus.document(draw, 1.0)) for _ in range(DOCUMENTS)]


def tokens(text: Text, tokenizer: Any) -> list[np.ndarray]:
    """The first `text.tokens` tokens, document by document; none where there is no text."""
    found: list[np.ndarray] = []
    for one in documents(text.file) if text.file else ():
        left = text.tokens - sum(map(len, found)) if text.tokens else None
        if left == 0:
            break
        ids = tokenizer(one, verbose=False)['input_ids'][:left]
        found.append(np.asarray(ids, np.int32))
    return found


def measure(
    text: Text,
    ids: Sequence[np.ndarray],
    forward: Callable,
    state: jp.State,
    params: Any,
    model: Any,
) -> dict[str, Any] | None:
    """{'corpus_ppl', 'tokens'} of the text under a model; None where there is no text."""
    if not ids:
        return None
    window = min(text.window, model.config.max_positions)
    stride = min(text.stride, window)
    found = perplexity.measure(forward, state, params, model, ids, window=window, stride=stride)
    return {name: found[name] for name in ('corpus_ppl', 'tokens', 'nll')}
