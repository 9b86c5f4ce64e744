"""What the tests of eval share: a tiny model whose adapter acts, bytes as tokens, rows."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxpeft as jp
from tests import models_tiny
from train import benchmarks

EOS = 256


class Tiny(NamedTuple):
    """The first four are what every function of eval takes, in this order."""

    forward: object
    state: object
    params: object
    model: object

    def logits(self, tokens):
        """Plain forward pass of one row, no cache, no padding: [T, V]."""
        return np.asarray(_plain(self.forward, self.state, self.params, jnp.asarray(tokens)[None]))[
            0
        ]


@functools.partial(jax.jit, static_argnums=0)
def _plain(forward, state, params, tokens):
    return forward(state, {'params': params}, tokens)


def padded_logits(tiny, rows, width):
    """Plain forward pass of several rows, right-padded to `width`: a [T, V] a row."""
    tokens = np.zeros((len(rows), width), np.int32)
    for out, row in zip(tokens, rows, strict=True):
        out[: len(row)] = row  # causal: what follows a row's end changes nothing before it
    logits = np.asarray(_plain(tiny.forward, tiny.state, tiny.params, tokens))
    return [one[: len(row)] for one, row in zip(logits, rows, strict=True)]


@functools.cache
def make(kind='gpt_neo', vocab=61, positions=64):
    """A random model with a LoRA whose b is not zero."""
    config = models_tiny.config(kind, vocab_size=vocab, max_position_embeddings=positions)
    model = jp.models.build(config)
    params = jax.tree.map(jnp.asarray, models_tiny.random_params(model))
    plan = {jp.targets(params, ['q_proj', 'v_proj']): jp.methods.lora(rank=2)}
    state = jp.init(plan, jax.random.key(0), params)
    rng = np.random.default_rng(5)
    noisy = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), state.params
    )
    return Tiny(jp.bind(plan, model.apply), state._replace(params=noisy), params, model)


def broken(tiny):
    """The same with weights that are no numbers."""
    return tiny._replace(params=jax.tree.map(lambda x: x * jnp.nan, tiny.params))


def prompts(count=10, vocab=61, shared=5, longest=25, seed=3):
    """Token arrays of different lengths that begin alike."""
    rng = np.random.default_rng(seed)
    head = rng.integers(4, vocab, shared)
    lengths = rng.integers(1, longest - shared + 1, count)
    return [np.concatenate([head, rng.integers(4, vocab, n)]).astype(np.int32) for n in lengths]


def tokenizer():
    """Bytes as tokens, and an end token: 257 in all."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token='<end>', pad_token='<end>')


def rows(*tasks, count=3):
    """A few rows a task, of different lengths, with real label sets (ARC rows with 3 to 5)."""
    names = {'boolq': ('true', 'false'), 'piqa': ('solution1', 'solution2')}
    made = {}
    for task in tasks:
        made[task] = []
        for i in range(count):
            five = [f'answer{k}' for k in range(1, 4 + i % 3)]
            labels = names.get(task, five if task.startswith('ARC') else five[:3])
            question = f'{task} {"why " * (2 * i)}?\n\n'
            made[task].append(benchmarks.base.row(task, question, labels, i % len(labels)))
    return made
