"""The language-model loss: a sum over labelled tokens and their number, never a mean of means."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import jaxpeft as jp
from jaxpeft.base import Tree
from jaxpeft.models.spread import Spread


def lm_loss(
    forward: Callable,
    state: jp.State,
    params: Tree,
    batch: Mapping[str, jax.Array],
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Summed negative log-likelihood of the labelled tokens, and the sum of their weights.

    The head runs at the labelled positions only, so no [B, T, V] array exists. Sums of several
    batches, divided once, are the loss of one batch that holds them all.

    Args:
      forward: `jp.bind(plan, model.apply)`.
      state: the adapter.
      params: the base's parameters.
      batch: `tokens`, `positions`, `segment_ids` [R, T] int32; `select`, `labels` [N] int32 (flat
        positions before the labelled tokens); `weights` [N] float32, 0 for padding; of a forest
        also `take` and `back` (see `train.forest.fill`); and `side` where the adapters are told
        more than the tokens, as `forward` takes it.
      dropout_key: None means no dropout.

    Returns:
      Two float32 scalars.
    """
    more: dict[str, Any] = {'side': batch['side']} if 'side' in batch else {}
    if 'take' in batch:
        more['spread'] = Spread(batch['take'], batch['back'])
    nll = forward(
        state,
        {'params': params},
        batch['tokens'],
        positions=batch['positions'],
        segment_ids=batch['segment_ids'],
        select=batch['select'],
        labels=batch['labels'],
        packed=True,  # attention's rows hold every example as one run
        dropout_key=dropout_key,
        **more,
    )
    return jnp.sum(nll * batch['weights']), jnp.sum(batch['weights'])
