"""A toy task for the tests of eval.structured: what to say stands in the features alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxpeft as jp
from eval.structured.runs import Settings
from eval.structured.task import Hidden, Part, Task, part
from tests import models_tiny

LENGTH = 16


@functools.cache
def base():
    """(model, params): a random GPT-Neo of 4 layers of 16."""
    model = jp.models.build(models_tiny.config('gpt_neo'))
    params = models_tiny.random_params(model)
    # The head is tied: with small embeddings no hidden state could be sure of a token.
    params['transformer']['wte']['embedding'] *= 4
    return model, jax.tree.map(jnp.asarray, params)


def rows(count, seed):
    """Random tokens at even places, behind each 10 + the first feature of that place."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 40, (count, LENGTH))
    ids = np.zeros((count, LENGTH, 4), np.int32)
    ids[:, ::2, 0] = rng.integers(0, 2, (count, LENGTH // 2))
    tokens[:, 1::2] = 10 + ids[:, ::2, 0]
    return tokens, ids


def part_of(tokens, ids):
    count = len(tokens)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (count, 1))
    labelled = np.tile(np.arange(LENGTH) % 2 == 1, (count, 1))
    return part(list(tokens), list(labelled), {'positions': positions, 'ids': ids})


def hide(count, seed, shift=0):
    """Hidden; `shift` tells each place the features of one so much later (2: a leak)."""
    tokens, ids = rows(count, 100)
    others, other_ids = rows(count, 101)
    cuts = np.random.default_rng(seed).integers(2, LENGTH, count)
    behind = np.arange(LENGTH)[None] >= cuts[:, None]
    replaced = np.where(behind, others, tokens)
    replaced_ids = np.where(behind[..., None], other_ids, ids)
    turned = lambda x: np.roll(x, -shift, axis=1)
    return Hidden(part_of(tokens, turned(ids)), part_of(replaced, turned(replaced_ids)), cuts)


def task(train=1600) -> Task:
    parts: list[Part] = [part_of(*rows(n, seed)) for seed, n in enumerate((train, 24, 40))]
    encoder = {'kind': 'tokens', 'max_len': 32, 'num_buckets': 8, 'width': 8}
    return Task('toy', encoder, *parts, shuffled=('ids',), hide=hide, accuracy=True)


SETTINGS = Settings(
    methods=('lora', 'hylorada_v2', 'hylorada_v2_shuffled'),
    rank=8,
    seeds=2,
    steps=80,
    batch=32,
    eval_batch=16,
    lrs=(1e-2,),
    extend=0,
    progress=False,
)
