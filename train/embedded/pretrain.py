"""Pretraining of the tiny GPT-Neo: packed rows of text, Muon for the kernels, Adam for the rest.

Rows are cut from one stream of documents, each ended by the end-of-text token. A row starts at a
random position, so that all learned positions are trained though rows are shorter. Position in the
data is a function of the step: a run that was stopped goes on from its last checkpoint as if it had
not been.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import platform
import random
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization

from jaxpeft import models
from train.embedded import corpus, facts, questions, stdlib, tokenizer

Tree = Any


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that fixes the base model; kept in the model card."""

    seed: int = 0
    vocabulary: int = 2048
    """Tokens, at most."""
    positions: int = 512
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    window: int = 256
    """Width of the local layers' attention."""
    activation: str = 'relu'
    """A fifth cheaper on a CPU than GELU."""
    million_tokens: float = 8.0
    library_share: float = 0.1
    """Share of the tokens that come from Python's standard library."""
    plain_weight: float = 0.25
    """Weight in the loss of tokens that a reader cannot work out (answers weigh 1)."""
    row: int = 128
    """Tokens a training row."""
    batch: int = 16
    steps: int = 4000
    learning_rate: float = 4e-3
    warmup: int = 100


def config(setup: Setup) -> models.ModelConfig:
    """Returns the model's configuration: global and local attention in turn, tied embeddings."""
    kinds = ['global', 'local']
    return models.from_hf(
        {
            'model_type': 'gpt_neo',
            'vocab_size': setup.vocabulary,
            'hidden_size': setup.hidden,
            'num_layers': setup.layers,
            'num_heads': setup.heads,
            'attention_types': [[kinds, setup.layers // 2]],
            'window_size': setup.window,
            'max_position_embeddings': setup.positions,
            'activation_function': setup.activation,
            'bos_token_id': 0,
            'eos_token_id': 0,
            'pad_token_id': 0,
        },
        'embedded',
    )


def texts(setup: Setup) -> tuple[list[str], list[str]]:
    """Returns (documents about facts to train the tokenizer on, pieces of the standard library)."""
    rng = random.Random(f'{setup.seed} tokenizer')
    characters = int(setup.million_tokens * 1e6 * setup.library_share * 2.9)
    library = stdlib.documents(setup.seed, characters)
    return [corpus.document(rng, 1.0).replace(corpus.MARK, '') for _ in range(15_000)], library


def stream(setup: Setup, bpe, library: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the text as (tokens int32 [N], weights float32 [N]), N about million_tokens * 1e6."""
    rng = random.Random(f'{setup.seed} corpus')
    wanted, made = setup.million_tokens * 1e6 * (1 - setup.library_share), 0
    packed = []
    while made < wanted:
        batch = [corpus.document(rng, made / wanted) for _ in range(2000)]
        packed += tokenizer.weighted(bpe, batch, corpus.MARK, setup.plain_weight)
        made += sum(len(ids) for ids, _ in packed[-len(batch) :])
    pieces = tokenizer.weighted(bpe, library, corpus.MARK, setup.plain_weight)
    places = sorted(rng.sample(range(len(packed) + len(pieces)), len(pieces)))
    for place, piece in zip(places, pieces, strict=True):
        packed.insert(place, piece)
    tokens, weights = zip(*packed, strict=True)
    return np.concatenate(tokens), np.concatenate(weights)


def initial(setup: Setup, model) -> Tree:
    """Returns parameters: kernels N(0, 1/in), outputs of a block smaller, sinusoids for positions.

    Sinusoids make "the token before" a rotation from the first step on; they are then trained as
    any other parameter.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
    keys = iter(jax.random.split(jax.random.key(setup.seed), 64))

    def leaf(path, shape):
        names = [each.key for each in path]
        if names[-1] in ('scale', 'bias'):
            return jnp.full(shape.shape, float(names[-1] == 'scale'))
        if 'wpe' in names:
            return jnp.asarray(_sinusoids(*shape.shape))
        std = 0.02 if names[-1] == 'embedding' else 1 / math.sqrt(shape.shape[-2])
        if names[-2] in ('q_proj', 'k_proj'):  # scores are not divided by sqrt(head_dim)
            std *= (setup.hidden // setup.heads) ** -0.25
        if names[-2] in ('out_proj', 'c_proj'):
            std /= math.sqrt(2 * setup.layers)
        return std * jax.random.normal(next(keys), shape.shape)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def _sinusoids(positions: int, hidden: int) -> np.ndarray:
    rates = np.exp(-math.log(10000.0) * np.arange(hidden // 2) / (hidden // 2))
    angles = np.arange(positions)[:, None] * rates
    return 0.1 * np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)


def optimizer(setup: Setup) -> optax.GradientTransformation:
    """Muon (orthogonal updates) for the stacked kernels, AdamW for the rest, cosine to 5 %.

    Muon was tried because a short scratch run fell faster with it than one with AdamW; learning
    rate and activation differed too, so that is no comparison of the two.
    """
    rate = optax.warmup_cosine_decay_schedule(
        0.0, setup.learning_rate, setup.warmup, setup.steps, 0.05 * setup.learning_rate
    )
    axes = optax.contrib.MuonDimensionNumbers((1,), (2,))
    muon = optax.contrib.muon(
        rate,
        weight_decay=0.1,
        adam_b2=0.98,
        adam_weight_decay=0.01,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(
            lambda leaf: axes if leaf.ndim == 3 else None, params
        ),
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def make_step(model, transform: optax.GradientTransformation):
    """Returns the jitted update `(params, moments, rows, weights [B, T + 1], starts [B])`."""

    def loss(params, rows, weights, starts):
        tokens, labels = rows[:, :-1], rows[:, 1:]
        positions = starts[:, None] + jnp.arange(tokens.shape[1])[None]
        segments = jnp.ones_like(tokens)
        logits = model.apply({'params': params}, tokens, positions, segments)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()

    @jax.jit
    def step(params, moments, *batch):
        value, gradient = jax.value_and_grad(loss)(params, *batch)
        updates, moments = transform.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, value

    return step


def batches(setup: Setup, text: tuple[np.ndarray, np.ndarray], start: int) -> Iterator[tuple]:
    """Yields (rows, weights [B, T + 1], first positions [B]) of the updates from `start` on."""
    count = len(text[0]) // (setup.row + 1)
    rows, weights = (each[: count * (setup.row + 1)].reshape(count, -1) for each in text)
    for step in range(start, setup.steps):
        taken = np.arange(step * setup.batch, (step + 1) * setup.batch) * count
        taken //= setup.steps * setup.batch  # from the first row to the last, in order
        rng = np.random.default_rng((setup.seed, step))
        starts = rng.integers(0, setup.positions - setup.row + 1, setup.batch)
        yield rows[taken], weights[taken], starts


def train(
    setup: Setup, text: tuple[np.ndarray, np.ndarray], checkpoint: pathlib.Path, every: int = 250
):
    """Trains, or goes on from `checkpoint`; returns (model, params, mean loss of the last 100)."""
    model = models.build(config(setup), remat='dots_no_batch')
    transform = optimizer(setup)
    params = initial(setup, model)
    empty = np.zeros(0)
    state = {'step': 0, 'params': params, 'moments': transform.init(params), 'losses': empty}
    if checkpoint.exists():
        state = serialization.from_bytes(state, checkpoint.read_bytes())
        print(f'going on from step {state["step"]} of {checkpoint}', flush=True)
    params, moments = state['params'], state['moments']
    losses = list(state['losses'])
    step, begun = make_step(model, transform), time.time()
    first = int(state['step'])
    for number, batch in enumerate(batches(setup, text, first), first + 1):
        params, moments, value = step(params, moments, *batch)
        losses = [*losses[-99:], float(value)]
        if number % 50 == 0 or number == setup.steps:
            speed = (number - first) * setup.batch * setup.row / (time.time() - begun)
            print(f'step {number}/{setup.steps} loss {np.mean(losses[-50:]):.4f} '
                  f'{speed:.0f} tokens/s', flush=True)  # fmt: skip
        if number % every == 0 or number == setup.steps:
            kept = {'step': number, 'params': params, 'moments': moments}
            kept['losses'] = np.asarray(losses)
            _write(checkpoint, serialization.to_bytes(kept))
    return model, params, float(np.mean(losses))


def _write(file: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix('.tmp')
    temporary.write_bytes(content)
    os.replace(temporary, file)


def tokenizer_for(setup: Setup, documents: list[str], library: list[str]):
    """Trains the tokenizer on both kinds of text, and on the words of the question template.

    The template's words become whole tokens so that prompts are short. The model never reads it.
    """
    return tokenizer.train([*documents, *library, *questions.prompts()], setup.vocabulary)


def run(setup: Setup, folder: pathlib.Path, work: pathlib.Path) -> dict[str, Any]:
    """Builds tokenizer and model in `folder`; returns the numbers of the model card.

    Raises:
      ValueError: `work` holds the checkpoint of another setup.
    """
    begun = time.time()
    stamp = work / 'setup.json'
    wanted = json.dumps(dataclasses.asdict(setup), indent=2)
    if stamp.exists() and stamp.read_text() != wanted:
        raise ValueError(f'{work} holds a pretraining with other settings: choose another --work')
    _write(stamp, wanted.encode())
    documents, library = texts(setup)
    bpe = tokenizer_for(setup, documents, library)
    text = stream(setup, bpe, library)
    print(f'{len(text[0])} tokens, {bpe.get_vocab_size()} in the vocabulary', flush=True)
    model, params, loss = train(setup, text, work / 'checkpoint.msgpack')
    folder.mkdir(parents=True, exist_ok=True)
    models.save_pretrained(folder, model, jax.tree.map(lambda x: x.astype(jnp.float16), params))
    tokenizer.save(bpe, folder, setup.positions)
    return {
        'command': 'python -m train.embedded',
        'setup': dataclasses.asdict(setup),
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
        'tokens': len(text[0]),
        'text_sha256': hashlib.sha256(text[0].tobytes()).hexdigest(),
        'things': len(facts.things()),
        'facts': sum(bool(facts.value(t, r)) for t in facts.things() for r in facts.RELATIONS),
        'loss': loss,
        'seconds': time.time() - begun,
        'cpus': os.cpu_count(),
        'python': platform.python_version(),
        'jax': jax.__version__,
    }
