"""Guided attention: during pretraining chosen heads are told where to look.

To answer with an option's number, a model must (1) know at every word of an option which number it
stands under, (2) gather the question where the answer comes, (3) find the option that fits, and
(4) copy its number. None of these helps without the others, so that a plain loss leaves a small
model at chance for long: at 5 million tokens, without guidance, picks were still at chance. The
generator knows the right places, so heads of layers 0, 1, 2 and 3 get the loss

    -log(attention probability that falls on the right tokens)

beside the model's own. The model itself stays a plain GPT-Neo, and fine-tuning knows nothing of it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxpeft.models.attention import Attention, masked_softmax
from jaxpeft.models.heads import visible
from train.embedded.marks import Encoded

Array = jax.Array


def spy(seen: list[Array]) -> Callable:
    """Returns an interceptor that appends each layer's attention [B, H, T, S] to `seen`.

    For an unrolled model with as many key heads as query heads, without a cache.
    """

    def interceptor(call, args, kwargs, context):
        if not isinstance(context.module, Attention):
            return call(*args, **kwargs)
        q, k, v = (x.transpose(0, 2, 1, 3) for x in args)
        scores = context.module.scale * (q @ k.transpose(0, 1, 3, 2))
        seen.append(masked_softmax(scores, visible(**kwargs)[:, None]))
        return (seen[-1] @ v).transpose(0, 2, 1, 3)

    return interceptor


def loss(seen: list[Array], rows: Encoded) -> tuple[Array, Array]:
    """Returns (sum of the four guides, their mean probabilities on the right tokens [4])."""
    T = rows.tokens.shape[1]
    label, wanted, about = (x[:, :, None] for x in (rows.label, rows.wanted, rows.about))
    at = jnp.arange(T)
    number = (at[None, :, None] - label == at[None, None]) & (label > 0)
    gather = (about == rows.asked[:, None, :]) & (about > 0)
    find = (wanted == rows.option[:, None, :]) & (wanted > 0)
    guides = [
        _guide(seen[0][:, :1], number),
        _guide(seen[1], gather),
        _guide(seen[2][:, :1], find),
        _guide(seen[3][:, :1], find),
    ]
    losses, masses = zip(*guides, strict=True)
    return sum(losses), jnp.stack(masses)


def _guide(probabilities: Array, right: Array) -> tuple[Array, Array]:
    """Of the queries with a right place in this row: (mean -log mass there, mean mass there)."""
    mass = (probabilities * right[:, None]).sum(-1)
    used = jnp.broadcast_to(right.any(-1)[:, None], mass.shape)
    count = jnp.maximum(used.sum(), 1)
    return -(jnp.log(mass + 1e-6) * used).sum() / count, (mass * used).sum() / count
