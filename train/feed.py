"""From the data set's name to batches on the devices."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from train import data, sharing, texts
from train import mesh as meshes
from train.batching import Batcher
from train.config import Config

HOST = ('rows',)  # what stays behind: dataset row numbers, for messages


class Fed(NamedTuple):
    """One update's batch.

    Attributes:
      arrays: on the devices, micro-batches in front.
      rows: numbers of the data set's rows [G, batch].
      tokens, examples: how many there are, padding left out; a token that examples share in a row
        counts once for each of them, as in the data.
    """

    arrays: dict[str, jax.Array]
    rows: np.ndarray
    tokens: int
    examples: int


class Course(Protocol):
    """How far a run goes: what decides when to validate, log and save."""

    @property
    def steps(self) -> int:
        """Updates in the run."""

    def ends_epoch(self, step: int) -> bool:
        """Whether a pass over the rows ends with update number `step`."""


class Feed(NamedTuple):
    """The data of a run.

    Attributes:
      batcher: position in the data as a function of the step.
      mesh: where batches go.
      validation: the held-out batches, on the devices.
      steps: updates in the run.
      held_text: the held-out windows of plain text, as token ids; none of questions.
    """

    batcher: Batcher
    mesh: Mesh
    validation: list[dict[str, jax.Array]]
    steps: int
    held_text: Sequence[np.ndarray] = ()

    def at(self, step: int, least: int = 0) -> Fed | None:
        """The batch of the update that follows `step` updates; None at the end of the run.

        Args:
          step: which.
          least: see `Batcher.at`.
        """
        if step >= self.steps:
            return None
        batch = self.batcher.at(step, least)
        arrays = {name: x for name, x in batch.items() if name not in HOST}
        return Fed(
            arrays=meshes.put(self.mesh, arrays, axis=1),
            rows=batch['rows'],
            tokens=self.batcher.tokens(step),
            examples=int((batch['rows'] >= 0).sum()),
        )

    def ends_epoch(self, step: int) -> bool:
        """Whether a pass over the rows ends with update number `step` (counted from 1)."""
        rows, update = len(self.batcher.examples), self.batcher.update
        return step * update // rows > (step - 1) * update // rows


def make(config: Config, tokenizer: Any, mesh: Mesh, say: Callable[[str], None] = print) -> Feed:
    """Loads, encodes and splits the data set, and chooses the run's fixed shapes.

    Raises:
      ValueError: for a model without a tokenizer, or whatever is wrong with the data.
      FileNotFoundError: for a data set that is not there.
    """
    encoded = examples(config, tokenizer, say)
    found = from_examples(config, encoded, mesh)
    say(describe(found))
    if not data.is_text(config.data.dataset):
        return found
    _, held = data.split(encoded, config.data.val_size, config.optim.seed)
    return found._replace(held_text=[one.tokens for one in held])


def examples(
    config: Config, tokenizer: Any, say: Callable[[str], None] = print
) -> list[data.Example]:
    """The data set's rows, or its windows of text, as tokens: what every run on it shares.

    Raises:
      ValueError, FileNotFoundError: as `make`.
    """
    if tokenizer is None:
        raise ValueError(
            f'{config.model.model_name} has no tokenizer files, and --dataset holds text; put '
            "tokenizer.json and tokenizer_config.json beside the model's config.json"
        )
    if data.is_text(config.data.dataset):
        found = texts.load(config.data.dataset, config.data.skip_bad_rows, report=say)
        return texts.encode(found, tokenizer, max_length=config.data.max_length, report=say)
    rows = data.load(
        config.data.dataset,
        'train',
        config.data.data_dir or None,
        config.data.skip_bad_rows,
        report=say,
    )
    return data.encode(
        rows,
        tokenizer,
        max_length=config.data.max_length,
        style=config.data.template,
        train_on_inputs=config.data.train_on_inputs,
    )


def describe(feed: Feed) -> str:
    """One line on the amount of data and how it is batched."""
    batcher = feed.batcher
    places = ' x '.join(map(str, batcher.shape[:2]))
    if batcher.forests:
        trees = batcher.shape[0]
        places = ' or '.join(f'{one.tokens:,}' for one in batcher.forests)
        places = f'{trees} x ({places})' if trees > 1 else places
    once = '; what prompts begin with stands once' if batcher.forests else ''
    return (
        f'{len(batcher.examples):,} rows to train on; {feed.steps:,} updates of {batcher.update} '
        f'examples in micro-batches of {places} tokens, {100 * batcher.occupancy:.0f} % of them '
        f'used{once}'
    )


def from_examples(config: Config, examples: list, mesh: Mesh) -> Feed:
    """The same from encoded examples."""
    batcher, held = batchers(config, examples, mesh)
    validation = []
    for batch in held.eval_batches() if held else ():
        arrays = {name: x for name, x in batch.items() if name not in HOST}
        validation.append(meshes.put(mesh, arrays, axis=0))
    return Feed(batcher, mesh, validation, batcher.steps)


def batchers(config: Config, examples: list, mesh: Mesh) -> tuple[Batcher, Batcher | None]:
    """The training rows and the held-out ones, as the seed splits them; None without validation."""
    seed, optim = config.optim.seed, config.optim
    training, held = data.split(examples, config.data.val_size, seed, config.data.train_rows)
    shared: dict[str, Any] = {
        'packing': config.data.packing,
        'max_length': config.data.max_length,
        'row_multiple': meshes.row_multiple(mesh),
        **sharing.layout(config)._asdict(),
    }
    batcher = Batcher(
        training,
        optim.batch,
        seed,
        grad_acc=optim.grad_acc,
        epochs=optim.epoch,
        steps=optim.max_steps or None,
        **shared,
    )
    if not held or config.validation.eval_strategy == 'no':
        return batcher, None
    return batcher, Batcher(held, min(optim.batch, len(held)), seed, **shared)
