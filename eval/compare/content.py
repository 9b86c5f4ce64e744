"""What a comparison's figures were made of: see `train.content`."""

import pathlib
from collections.abc import Mapping

from eval.compare.forget import Text
from train import content
from train.config import Config
from train.content import differences as differences

OF_TRAINING = ('base', 'training data')  # what a validation loss depends on


def of(config: Config, texts: Mapping[str, Text]) -> dict[str, str]:
    """What is there of the base, its data and the texts that are read beside them."""
    files = {name: pathlib.Path(text.file) for name, text in texts.items() if text.file}
    return content.of(config, files)
