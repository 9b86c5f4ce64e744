"""Rebuilds the embedded default: `python -m train.embedded`.

Writes `data/<task>.{train,test}.jsonl.gz` and `tiny_gpt_neo/` under `jaxpeft/assets/`. The data
take seconds, the pretraining far longer. Nothing is downloaded. Everything is seeded.

    python -m train.embedded                    # all
    python -m train.embedded --what data        # the questions only
    python -m train.embedded --setup.steps 200  # a quick look, worse
"""

import dataclasses
import pathlib
from typing import Literal

import tyro

from train import sources
from train.embedded import card, pretrain, questions


@dataclasses.dataclass(frozen=True)
class Command:
    """Builds the embedded model and data set from the standard library's text and own facts."""

    what: Literal['all', 'data', 'model'] = 'all'
    """What to rebuild."""
    out: pathlib.Path = sources.ASSETS.parent
    """Folder that gets `data` and `tiny_gpt_neo`."""
    work: pathlib.Path = pathlib.Path('runs/embedded')
    """Folder of the checkpoint, from which a stopped pretraining goes on."""
    setup: pretrain.Setup = dataclasses.field(default_factory=pretrain.Setup)
    """The base model and its pretraining."""


def main(command: Command) -> None:
    """Runs the command."""
    if command.what in ('all', 'data'):
        questions.write(command.out / 'data')
        print(command.out / 'data')
    if command.what in ('all', 'model'):
        folder = command.out / 'tiny_gpt_neo'
        card.write(folder, pretrain.run(command.setup, folder, command.work))
        print(folder)


if __name__ == '__main__':
    main(tyro.cli(Command))
