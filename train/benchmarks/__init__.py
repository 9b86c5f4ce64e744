"""The eight commonsense benchmarks, one file each; a new file is a new benchmark.

A benchmark's module has
  NAME      as the local files and the tables call it,
  ALIASES   names of the reference programs (siqa, hellas, winog, arce, arcc, obqa),
  HUB       where it lives on the hub (`base.Hub`),
  ROWS      how many its owners published, by split,
  LABELS    every answer its rows can have, in order,
  fields    hub row -> (raw, choices, label),
  convert   (raw, choices, label) -> Row with the LLM-Adapters text.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from train.near import nearest
from train.rows import Row

EIGHT = (
    'boolq',
    'piqa',
    'social_i_qa',
    'hellaswag',
    'winogrande',
    'ARC-Easy',
    'ARC-Challenge',
    'openbookqa',
)  # the order of every table and of every joined set

_ALL: dict[str, ModuleType] = {}
_NAMED: dict[str, ModuleType] = {}
for _info in pkgutil.iter_modules(__path__):
    if _info.name != 'base':
        _module = importlib.import_module(f'{__name__}.{_info.name}')
        _ALL[_module.NAME] = _module
        _NAMED.update({name.lower(): _module for name in (_module.NAME, *_module.ALIASES)})


def names() -> list[str]:
    """The names of all benchmarks: the eight in their order, then any other."""
    return [*EIGHT, *sorted(set(_ALL) - set(EIGHT))]


def known(name: str) -> bool:
    """Whether `name` is a benchmark or an alias of one (case does not matter)."""
    return name.lower() in _NAMED


def all_names() -> list[str]:
    """Names and aliases, for error messages."""
    return [name for module in _ALL.values() for name in (module.NAME, *module.ALIASES)]


def get(name: str) -> ModuleType:
    """The benchmark of a name or alias, e.g. get('siqa').NAME == 'social_i_qa'.

    Raises:
      ValueError: no such benchmark; lists the nearest names.
    """
    if not known(name):
        raise ValueError(f'no benchmark {name!r}; {nearest(name, all_names())}')
    return _NAMED[name.lower()]


def from_hub(name: str, hub_row: Mapping[str, Any]) -> Row:
    """One row as the hub has it, as a Row with the LLM-Adapters text.

    Raises:
      ValueError: a column is missing or of another type, or the row has no label.
    """
    benchmark = get(name)
    return benchmark.convert(*benchmark.fields(hub_row))


def options(row: Row) -> tuple[str, ...]:
    """The answers that this row offers, read off its 'Answer format:' (some ARC rows have 3 or 5).

    Raises:
      ValueError: the row has no answer format, so it is not a benchmark's.
    """
    _, mark, last = row.instruction.rpartition('Answer format: ')
    if not mark:
        raise ValueError(
            f'no "Answer format:" in the row of {row.task!r}: {row.instruction[-80:]!r}'
        )
    return tuple(last.strip().split('/'))
