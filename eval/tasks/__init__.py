"""How each benchmark is scored: one file a task, named as its file in `train/benchmarks/`.

A task file exports

    NAME         the data set's name
    LABELS       the labels that its rows can have
    parse(text)  the label that a generated text gives, '' when it gives none

so a new benchmark is one file there and one here.
"""

import importlib
import types

from train import benchmarks


def get(name: str) -> types.ModuleType:
    """The task file of a benchmark, by name or alias.

    Raises:
      ValueError: the name is no benchmark's; lists the nearest.

    Example:
      >>> get('obqa').NAME
      'openbookqa'
    """
    file = benchmarks.get(name).__name__.rpartition('.')[2]
    return importlib.import_module(f'{__name__}.{file}')
