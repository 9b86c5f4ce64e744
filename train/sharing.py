"""Whether and what the examples of a run share: the one place that decides it.

Prompts of one template begin alike: those of commonsense_170k with the same 27 tokens of GPT-2, a
quarter of all, unless one was too long and lost its beginning. In a packed row they can stand once,
seen by every example behind them, with the same loss and the same gradients (that of the shared
tokens is the sum over the examples). It is so
where a token's output depends on no more than the tokens before it in its example, their positions
and its own, and where attention can be told; `refusal` lists what stands against it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jaxpeft as jp
from jaxpeft.models import kernels
from jaxpeft.models.config import ModelConfig
from jaxpeft.models.hub import folder_of
from jaxpeft.models.load import read_config
from train import mesh as meshes
from train.config import Config
from train.encoding import Example
from train.packing import LEAST, NOTHING, round_up

SAMPLE = 1024  # examples by which the prefix is found; all are asked how much of it they have
EVEN = 3  # times hidden_size: the row width at which attention takes as long as the rest


class Layout(NamedTuple):
    """How packed rows are laid out, for `train.batching.Batcher`.

    Attributes:
      prefix: tokens that can stand once a row; none where nothing is shared.
      even: the row width at which attention takes as long as the rest of the model.
    """

    prefix: np.ndarray
    even: int | None


def layout(config: Config, examples: Sequence[Example], mesh: Mesh) -> Layout:
    """The layout of a run's rows, training and validation alike.

    Per token and layer, with d = hidden_size and kernels of 12 d^2 numbers: 48 d^2 FLOPs forward
    and back to the layer's input (a frozen kernel has no gradient), 12 T d of attention in a row of
    T. So the two meet at T = 4 d; with the softmax, steps of GPT-Neo-125M on CPU say 3.2 d. It only
    has to be right enough to choose between row widths: no figure of a run depends on it.

    Args:
      config: the run's.
      examples: all of them, before the split, so that every seed has the same prefix.
      mesh: the devices.
    """
    if not config.data.packing:
        return Layout(NOTHING, None)
    model = read_config(folder_of(config.model.model_name))
    prefix = NOTHING if refusal(config, model, examples, mesh) else common_prefix(examples)
    return Layout(prefix, EVEN * model.hidden_size)


def refusal(config: Config, model: ModelConfig, examples: Sequence[Example], mesh: Mesh) -> str:
    """Why the examples of a run may not share a prefix; '' where they may.

    Args:
      config: the run's.
      model: the base's.
      examples: all of them.
      mesh: the devices.
    """
    if not (config.data.packing and config.data.share_prefix):
        return 'it is switched off'
    for name in jp.plans.split(config.adapter.method):
        if hasattr(jp.methods.module(name), 'WHOLE_EXAMPLES'):
            return f'{name} reads the row as it is laid out'
    longest = max(len(example.tokens) for example in examples)
    narrowest = min((w for w in model.windows if w is not None), default=longest)
    if narrowest < longest:  # a shared token is seen at any distance
        return f'layers see {narrowest} tokens, an example has {longest}'
    kernel = _kernel(config, model, mesh)
    return f'the kernel {kernel.name} knows no shared tokens' if kernel else ''


def _kernel(config: Config, model: ModelConfig, mesh: Mesh) -> kernels.Kernel | None:
    """The attention kernel that rows without a shared prefix would have."""
    shape = (meshes.row_multiple(mesh), round_up(config.data.max_length, 8))
    choose = meshes.within(
        mesh,
        lambda: kernels.choose(
            config.model.attention,
            model,
            jnp.dtype(config.model.dtype),
            shape,
            packed=True,
            whole=False,
        ),
    )
    return choose()


def common_prefix(examples: Sequence[Example]) -> np.ndarray:
    """The longest tokens that half of the examples can share, int32; none below LEAST.

    The commonest token at each place, as long as half of a sample follow it without a label there
    or right behind. How many of them are shared is decided with the shape of the rows, which knows
    that a longer prefix is shared by fewer. Examples that lost their beginning share nothing, and
    do not hinder the others.

    Example:
      >>> tokens = np.arange(12, dtype=np.int32)
      >>> last = tokens > 10
      >>> common_prefix([Example(tokens, last, 0), Example(tokens + 1, last, 1)]).tolist()
      [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    sample = [examples[i] for i in range(0, len(examples), -(-len(examples) // SAMPLE))]
    found: list[int] = []
    alive = list(sample)
    while True:
        here = len(found)
        alive = [e for e in alive if len(e.tokens) > here + 1 and not e.labelled[here + 1]]
        values, counts = np.unique([e.tokens[here] for e in alive], return_counts=True)
        if not len(alive) or 2 * counts.max() < len(sample):
            break
        found.append(values[np.argmax(counts)])
        alive = [e for e in alive if e.tokens[here] == found[-1]]
    return np.asarray(found, np.int32) if len(found) >= LEAST else NOTHING
