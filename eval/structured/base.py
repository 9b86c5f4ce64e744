"""A base for the generated tasks: a tiny GPT-Neo, pretrained a little on rows without structure.

It reads the same kind of rows of another world, all tokens labelled and nothing beside them: what
it knows is the form, and whatever of the structure it could work out of the tokens alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jaxpeft as jp
from eval.structured.arms import Arm, Fitted
from eval.structured.engine import Engine, batcher
from eval.structured.task import Part
from train.batching import shared_shapes
from train.config import Optim

HIDDEN, LAYERS, HEADS = 64, 4, 4
RATE = 3e-3


def model_of(vocabulary: int, length: int) -> Any:
    """The module, global attention throughout."""
    config = jp.models.ModelConfig(
        model_type='gpt_neo',
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_layers=LAYERS,
        num_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=HIDDEN // HEADS,
        max_positions=length,
        activation='gelu_new',
        norm_eps=1e-5,
        tie_embeddings=True,
        windows=(None,) * LAYERS,
    )
    return jp.models.build(config)


def pretrain(
    model: Any,
    rows: Part,
    steps: int,
    batch: int,
    seed: int,
    advance: Callable[[int], None] = lambda steps: None,
) -> tuple[Any, float]:
    """Trains all weights, with the engine that trains adapters, and merges.

    Returns:
      (params, the mean loss of the last tenth of the updates).
    """
    params = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 8), jnp.int32))['params']
    plan = jp.compose(model, params, 'full')
    fitted = Fitted(Arm('full', 'full'), plan, {}, sum(x.size for x in jax.tree.leaves(params)))
    engine = Engine(model, params, fitted, Optim(batch=batch, warmup=0.05), steps)
    (shape,), _ = shared_shapes([batcher(rows, batch, seed, steps)])
    found = engine.train(rows, shape, RATE, seed, advance)
    last = found.losses[-max(steps // 10, 1) :]
    return jp.merge(plan, found.state, params), float(last.mean())
