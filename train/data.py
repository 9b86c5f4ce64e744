"""The data path: name -> rows -> examples -> (train, validation); train.batching makes the batches.

  rows = load('common_170k', 'train', data_dir)
  examples = encode(rows, tokenizer, max_length=256)
  training, validation = split(examples, 120, seed=0)

Nothing here imports `datasets` or `transformers` before a file or tokenizer needs them.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from train.encoding import Example, encode, prompt_tokens
from train.files import SUFFIXES
from train.rows import COLUMNS, Row
from train.sources import ASSETS, JOINED, load

__all__ = [
    'ASSETS',
    'COLUMNS',
    'JOINED',
    'SUFFIXES',
    'Example',
    'Row',
    'encode',
    'load',
    'prompt_tokens',
    'split',
]

T = TypeVar('T')
VALIDATION_ROWS = 120  # as LLM-Adapters and HiRA hold out


def split(items: Sequence[T], n: int = VALIDATION_ROWS, seed: int = 0) -> tuple[list[T], list[T]]:
    """(training, validation): `n` items drawn by `seed`, and the others, in the order they came.

    Give it examples (each keeps its row number) or rows.

    Raises:
      ValueError: `n` is negative, or leaves nothing to train on.
    """
    if n < 0:
        raise ValueError(f'the number of validation rows must be 0 or more, got {n}')
    if len(items) <= n:
        raise ValueError(
            f'{n} validation rows of {len(items)} leave nothing to train on: '
            f'ask for at most {max(len(items) - 1, 0)}, or bring more data'
        )
    held = np.zeros(len(items), bool)
    held[np.random.default_rng(seed).permutation(len(items))[:n]] = True
    return (
        [item for item, out in zip(items, held, strict=True) if not out],
        [item for item, out in zip(items, held, strict=True) if out],
    )
