"""A long text as windows of tokens, each token but the first labelled exactly once.

Training (`train.text`) and perplexity (`eval.perplexity`) cut by this one rule.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from train.encoding import Example


def cut(tokens: Sequence[int] | np.ndarray, window: int, stride: int) -> Iterator[Example]:
    """Windows of at most `window` tokens, `stride` apart.

    Window k holds the tokens from `k * stride` on; its targets are the tokens that no earlier
    window has seen, so a larger overlap (window - stride) gives each target more context. The last
    window ends with the text and may be shorter; nothing is dropped and nothing padded. The first
    token of a text has no context and is no target. At `stride == window` windows overlap by one
    token all the same, the context of their first target.

    Args:
      tokens: int [n]; a text of fewer than two tokens has no target and gives no window.
      window: tokens of a window, at least 2.
      stride: 1 <= stride <= window.

    Yields:
      Example(tokens, labelled, row): `row` is the window's number, k.

    Raises:
      ValueError: window or stride out of range.

    Example:
      >>> for one in cut([7, 8, 9, 10, 11, 12], window=4, stride=2):
      ...     print(one.tokens.tolist(), one.labelled.astype(int).tolist())
      [7, 8, 9, 10] [0, 1, 1, 1]
      [9, 10, 11, 12] [0, 0, 1, 1]
    """
    check(window, stride)
    tokens = np.asarray(tokens, np.int32)
    seen, step = 1, min(stride, window - 1)
    for number, begin in enumerate(range(0, max(len(tokens) - 1, 0), step)):
        end = min(begin + window, len(tokens))
        yield Example(tokens[begin:end], np.arange(begin, end) >= seen, number)
        if end == len(tokens):
            return
        seen = end


def check(window: int, stride: int) -> None:
    """Refuses what `cut` cannot do.

    Raises:
      ValueError: naming the rule and the nearest choice.
    """
    if window < 2:
        raise ValueError(
            f'a window must have at least 2 tokens, a context and a target, got {window}'
        )
    if not 1 <= stride <= window:
        raise ValueError(
            f'the stride must be from 1 to the window, {window}, or tokens would go unscored: '
            f'got {stride}; nearest: {min(max(stride, 1), window)}'
        )
