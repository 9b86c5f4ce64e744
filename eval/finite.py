"""What a model of NaN weights answers is no result: an error that says so, in place of a table."""

from typing import Any

import numpy as np


def check(finite: Any, what: str) -> None:
    """Refuses figures that are not numbers.

    Args:
      finite: bool, or an array of them: whether the figures of each are finite.
      what: whose figures they are, 'prompt 3'.

    Raises:
      FloatingPointError: where one is not.
    """
    if not np.all(finite):
        raise FloatingPointError(
            f'{what} has a token whose likelihood is not a number or 0: the weights or the adapter '
            'overflow, or training has diverged; see --dtype float32'
        )
