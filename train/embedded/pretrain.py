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
from flax import linen as nn
from flax import serialization

from jaxpeft import models
from train.embedded import corpus, facts, guide, marks, questions, stdlib, tokenizer
from train.embedded.marks import Encoded

Tree = Any


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that fixes the base model; kept in the model card."""

    seed: int = 0
    vocabulary: int = 1024
    """Tokens, at most."""
    tokenizer_documents: int = 15_000
    """Documents that the tokenizer is trained on, beside the standard library's text."""
    positions: int = 512
    hidden: int = 128
    layers: int = 4
    inner: int = 384
    """Width of the MLPs."""
    heads: int = 2
    """Few and wide: heads of 64 found matching words sooner than heads of 32."""
    window: int = 256
    """Width of the local layers' attention; at least `row`."""
    activation: str = 'relu'
    """A fifth cheaper on a CPU than GELU."""
    million_tokens: float = 6.0
    library_share: float = 0.04
    """Share of the tokens that come from Python's standard library."""
    plain_weight: float = 0.15
    """Weight in the loss of tokens that a reader cannot work out (answers weigh 1)."""
    guide: float = 0.5
    """Weight of the loss that tells heads where to look, see `train.embedded.guide`."""
    row: int = 128
    """Tokens a training row."""
    batch: int = 8
    steps: int = 5800
    learning_rate: float = 3e-3
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
            'intermediate_size': setup.inner,
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
    documents = [marks.plain(corpus.document(rng, 1.0)) for _ in range(setup.tokenizer_documents)]
    return documents, library


def stream(setup: Setup, bpe, library: list[str]) -> Encoded:
    """Returns the text as arrays [N], N about million_tokens * 1e6."""
    rng = random.Random(f'{setup.seed} corpus')
    wanted, made = setup.million_tokens * 1e6 * (1 - setup.library_share), 0
    packed: list[Encoded] = []
    while made < wanted:
        batch = [corpus.document(rng, min(made / wanted, 1.0)) for _ in range(2000)]
        packed += marks.encode(bpe, batch, setup.plain_weight, len(packed))
        made += sum(len(each.tokens) for each in packed[-len(batch) :])
    pieces = marks.encode(bpe, library, setup.plain_weight)
    places = sorted(rng.sample(range(len(packed) + len(pieces)), len(pieces)))
    for place, piece in zip(places, pieces, strict=True):
        packed.insert(place, piece)
    return Encoded(*map(np.concatenate, zip(*packed, strict=True)))


def initial(setup: Setup, model) -> Tree:
    """Returns parameters: kernels N(0, 1/in), outputs of a block smaller, sinusoids for positions.

    Three things are less random, so that looking up starts near to what it becomes (compare
    Trockman and Kolter, 2023, https://arxiv.org/abs/2305.09828). Sinusoids make "the token before"
    a rotation from the first step on; layer 1's output is its values' transpose, which copies what
    it attends to; from layer 2 on queries are keys, which look for what is alike.
    """
    shapes = models.param_shapes(model)
    keys = iter(jax.random.split(jax.random.key(setup.seed), 64))

    def leaf(path, shape):
        names = [each.key for each in path]
        if names[-1] in ('scale', 'bias'):
            return jnp.full(shape.shape, float(names[-1] == 'scale'))
        if 'wpe' in names:
            return jnp.asarray(_sinusoids(*shape.shape))
        std = 0.1 if names[-1] == 'embedding' else 1 / math.sqrt(shape.shape[-2])
        if names[-2] in ('q_proj', 'k_proj'):  # scores are not divided by sqrt(head_dim)
            std *= (setup.hidden // setup.heads) ** -0.25
        if names[-2] in ('out_proj', 'c_proj'):
            std /= math.sqrt(2 * setup.layers)
        return std * jax.random.normal(next(keys), shape.shape)

    params = jax.tree_util.tree_map_with_path(leaf, shapes)
    for i, block in params['transformer']['h'].items():
        attention = block['attn']['attention']
        if int(i) == 1:
            attention['out_proj']['kernel'] = 0.15 * attention['v_proj']['kernel'].T
        elif int(i) > 1:
            attention['q_proj']['kernel'] = attention['k_proj']['kernel']
    return params


def _sinusoids(positions: int, hidden: int) -> np.ndarray:
    rates = 3 * np.exp(-math.log(3000.0) * np.arange(hidden // 2) / (hidden // 2))
    angles = np.arange(positions)[:, None] * rates
    return 0.07 * np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)


def optimizer(setup: Setup) -> optax.GradientTransformation:
    """Muon (orthogonal updates) for the kernels, AdamW for the rest, cosine to 5 %.

    Muon because the guided lookup of 48 words formed within 200 steps of 16 x 64 tokens with it,
    and not within 350 with AdamW (rates 2e-3 and 6e-3): a scratch comparison, one seed.
    """
    rate = optax.warmup_cosine_decay_schedule(
        0.0, setup.learning_rate, setup.warmup, setup.steps, 0.05 * setup.learning_rate
    )
    axes = optax.contrib.MuonDimensionNumbers(0, 1)
    muon = optax.contrib.muon(
        rate,
        weight_decay=0.1,
        adam_b2=0.98,
        adam_weight_decay=0.01,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(
            lambda path, leaf: axes if path[-1].key == 'kernel' else None, params
        ),
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def make_step(setup: Setup, model, transform: optax.GradientTransformation):
    """Returns the jitted update `(params, moments, rows, first positions [B])`.

    It gives back (params, moments, figures [5]): the loss and the four guides' probabilities.
    """

    def loss(params, rows, starts):
        tokens, labels = rows.tokens[:, :-1], rows.tokens[:, 1:]
        positions = starts[:, None] + jnp.arange(tokens.shape[1])[None]
        seen: list[jax.Array] = []
        with nn.intercept_methods(guide.spy(seen)):
            logits = model.apply({'params': params}, tokens, positions, jnp.ones_like(tokens))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        value = (losses * rows.weights[:, 1:]).sum() / rows.weights[:, 1:].sum()
        guided, masses = guide.loss(seen, Encoded(*(each[:, :-1] for each in rows)))
        return value + setup.guide * guided, jnp.append(value, masses)

    @jax.jit
    def step(params, moments, rows, starts):
        (_, figures), gradient = jax.value_and_grad(loss, has_aux=True)(params, rows, starts)
        updates, moments = transform.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, figures

    return step


def batches(setup: Setup, text: Encoded, start: int) -> Iterator[tuple[Encoded, np.ndarray]]:
    """Yields (rows [B, T + 1], first positions [B]) of the updates from `start` on."""
    count = len(text.tokens) // (setup.row + 1)
    rows = [each[: count * (setup.row + 1)].reshape(count, -1) for each in text]
    for step in range(start, setup.steps):
        taken = np.arange(step * setup.batch, (step + 1) * setup.batch) * count
        taken //= setup.steps * setup.batch  # from the first row to the last, in order
        rng = np.random.default_rng((setup.seed, step))
        starts = rng.integers(0, setup.positions - setup.row + 1, setup.batch)
        yield Encoded(*(each[taken] for each in rows)), starts


def train(setup: Setup, text: Encoded, checkpoint: pathlib.Path, every: int = 250):
    """Trains, or goes on from `checkpoint`; returns (model, params, figures over 100 steps).

    The figures are the loss and the guides' probabilities, see `make_step`.
    """
    model = models.build(config(setup), scan=False)  # unrolled: the guides read each layer
    transform = optimizer(setup)
    params = initial(setup, model)
    state = {'step': 0, 'params': params, 'moments': transform.init(params)}
    state['figures'] = np.zeros((0, 5))
    if checkpoint.exists():
        state = serialization.from_bytes(state, checkpoint.read_bytes())
        print(f'going on from step {state["step"]} of {checkpoint}', flush=True)
    params, moments = state['params'], state['moments']
    figures = list(state['figures'])
    step, begun = make_step(setup, model, transform), time.time()
    first = int(state['step'])
    for number, batch in enumerate(batches(setup, text, first), first + 1):
        params, moments, found = step(params, moments, *batch)
        figures = [*figures[-99:], np.asarray(found)]
        if number % 50 == 0 or number == setup.steps:
            speed = (number - first) * setup.batch * setup.row / (time.time() - begun)
            loss, *masses = np.mean(figures[-50:], 0)
            shown = ' '.join(f'{mass:.2f}' for mass in masses)
            print(f'step {number}/{setup.steps} loss {loss:.4f} guides {shown} '
                  f'{speed:.0f} tokens/s', flush=True)  # fmt: skip
        if number % every == 0 or number == setup.steps:
            kept = {'step': number, 'params': params, 'moments': moments}
            kept['figures'] = np.stack(figures)
            _write(checkpoint, serialization.to_bytes(kept))
    return model, params, np.mean(figures, 0)


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
    print(f'{len(text.tokens)} tokens, {bpe.get_vocab_size()} in the vocabulary', flush=True)
    model, params, (loss, *masses) = train(setup, text, work / 'checkpoint.msgpack')
    folder.mkdir(parents=True, exist_ok=True)
    models.save_pretrained(folder, model, jax.tree.map(lambda x: x.astype(jnp.float16), params))
    tokenizer.save(bpe, folder, setup.positions)
    return {
        'command': 'python -m train.embedded',
        'setup': dataclasses.asdict(setup),
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
        'tokens': len(text.tokens),
        'text_sha256': hashlib.sha256(text.tokens.tobytes()).hexdigest(),
        'things': len(facts.things()),
        'facts': len(facts.things()) * len(facts.RELATIONS),
        'loss': float(loss),
        'guided': [float(mass) for mass in masses],
        'seconds': time.time() - begun,
        'cpus': os.cpu_count(),
        'python': platform.python_version(),
        'jax': jax.__version__,
    }
