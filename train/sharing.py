"""Whether the examples of a run share what they begin with: the one place that decides it.

Prompts of one template begin alike: those of commonsense_170k with the same 27 tokens of GPT-2, and
each task's with some more, a third of all tokens. In a forest of prefixes they can stand once
(`train.forest`), with the same loss and the same gradients. It is so where a token's output depends
on no more than the tokens before it in its example; a method that reads the row as it is laid out
stands against it.
"""

from typing import NamedTuple

import jaxpeft as jp
from jaxpeft.models.hub import folder_of
from jaxpeft.models.load import read_config
from train.config import Config

EVEN = 3  # times hidden_size: the row width at which attention takes as long as the rest


class Layout(NamedTuple):
    """How packed rows are laid out, for `train.batching.Batcher`.

    Attributes:
      even: the row width at which attention takes as long as the rest of the model.
      share: what examples begin with may stand once.
    """

    even: int | None
    share: bool


def layout(config: Config) -> Layout:
    """The layout of a run's rows, training and validation alike.

    Per token and layer, with d = hidden_size and kernels of 12 d^2 numbers: 48 d^2 FLOPs forward
    and back to the layer's input (a frozen kernel has no gradient), 12 T d of attention in a row of
    T. So the two meet at T = 4 d; with the softmax, steps of GPT-Neo-125M on CPU say 3.2 d. It only
    has to be right enough to choose between row widths: no figure of a run depends on it.

    Args:
      config: the run's.
    """
    if not config.data.packing:
        return Layout(None, False)
    model = read_config(folder_of(config.model.model_name))
    return Layout(EVEN * model.hidden_size, not refusal(config))


def refusal(config: Config) -> str:
    """Why the examples of a run may not share what they begin with; '' where they may."""
    if not (config.data.packing and config.data.share_prefix):
        return 'it is switched off'
    for name in jp.plans.split(config.adapter.method):
        if hasattr(jp.methods.module(name), 'WHOLE_EXAMPLES'):
            return f'{name} reads the row as it is laid out'
    return ''
