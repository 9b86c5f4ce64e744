"""The data path: name -> rows -> examples -> (train, validation); train.batching makes the batches.

  rows = load('common_170k', 'train', data_dir)
  examples = encode(rows, tokenizer, max_length=256)
  training, validation = split(examples, 120, seed=0)

Plain text goes name -> texts -> windows, which are examples too: see `train.texts`.

Nothing here imports `datasets` or `transformers` before a file or tokenizer needs them.
`python -m train.data` downloads data sets: see `train.download`.
"""

import sys
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from train.encoding import Example, encode, prompt_tokens
from train.files import SUFFIXES
from train.rows import COLUMNS, Row
from train.sources import ASSETS, JOINED, is_text, load

__all__ = [
    'ASSETS',
    'COLUMNS',
    'JOINED',
    'SUFFIXES',
    'Example',
    'Row',
    'encode',
    'is_text',
    'load',
    'prompt_tokens',
    'split',
]

T = TypeVar('T')
VALIDATION_ROWS = 120  # as LLM-Adapters and HiRA hold out


def split(
    items: Sequence[T], n: int = VALIDATION_ROWS, seed: int = 0, train: int = 0
) -> tuple[list[T], list[T]]:
    """(training, validation): `n` items drawn by `seed`, and the others, in the order they came.

    Give it examples (each keeps its row number) or rows.

    Args:
      items: all of them.
      n: how many are held out.
      seed: draws an order: its first `n` items are held out, the next ones train.
      train: how many train; 0 for all that are left.

    Raises:
      ValueError: `n` is negative, or leaves nothing, or less than `train`, to train on.
    """
    if n < 0:
        raise ValueError(f'the number of validation rows must be 0 or more, got {n}')
    if len(items) <= n:
        raise ValueError(
            f'{n} validation rows of {len(items)} leave nothing to train on: '
            f'ask for at most {max(len(items) - 1, 0)}, or bring more data'
        )
    if not 0 <= train <= len(items) - n:
        raise ValueError(
            f'--train_rows {train} of {len(items)} rows, {n} of them held out for validation: '
            f'at most {len(items) - n} are left'
        )
    order = np.random.default_rng(seed).permutation(len(items))
    parts = order[n : n + train] if train else order[n:], order[:n]
    training, held = ([items[i] for i in np.sort(part)] for part in parts)
    return training, held


if __name__ == '__main__':
    from train import download

    sys.exit(download.main())
