"""What is compared: methods as the command line spells them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import jaxpeft as jp
from jaxpeft.near import nearest
from train import config as configs
from train import options

BASE = 'none'  # the untrained base
GRID = (1 / 3, 1.0, 3.0)  # times the method's usual learning rate
FULL_RATE = 1e-5  # full fine-tuning's usual one: each number moves, not a product of two
EMBEDDED = 10.0  # times the usual rate, as train.cli has it: a tiny base and a short run


class Entry(NamedTuple):
    """One line of the table.

    Attributes:
      label: as the user wrote it: 'lora', 'knowhira:adaptive_gating=false'.
      method: its name for train.run, 'none' for the untrained base.
      flags: flags of train.run that only this entry has.
      seeds: how many runs.
      rates: learning rates to choose from; one is taken as it is.
    """

    label: str
    method: str
    flags: tuple[str, ...]
    seeds: int
    rates: tuple[float, ...]

    @property
    def slug(self) -> str:
        """The label as a file's name."""
        return re.sub(r'[^\w.+=-]+', '_', self.label)


def parse(
    methods: Sequence[str],
    seeds: int,
    seeds_of: Sequence[str],
    rates: Sequence[float],
    rates_of: Sequence[str],
    embedded: bool,
) -> list[Entry]:
    """Reads the entries of a comparison.

    Args:
      methods: 'lora', 'none', 'hylorada+daa', or a method with options, 'hylorada:init=kaiming'; an
        option is one of the method's or a flag of train.run, several are joined by commas.
      seeds: runs an entry.
      seeds_of: 'lora=3,hira=3': other numbers for some.
      rates: learning rates for all; empty takes the method's own grid.
      rates_of: 'hira=1e-3,3e-3': others for some.
      embedded: the base is the package's own, which wants larger rates.

    Raises:
      ValueError: for an unknown method or option, an entry given twice, a number that is none.

    Example:
      >>> found = parse(['none', 'lora:alpha=8'], 2, ['lora:alpha=8=3'], [1e-3], [], False)
      >>> [(e.label, e.flags, e.seeds) for e in found]
      [('none', (), 1), ('lora:alpha=8', ('--set=lora.alpha=8',), 3)]
    """
    labels = list(methods)
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f'--methods names {label!r} twice')
    own_seeds = {k: _count(k, v) for k, v in _assigned('seeds_of', seeds_of, labels).items()}
    own_rates = {k: _rates(k, v) for k, v in _assigned('lrs_of', rates_of, labels).items()}
    _count('--seeds', str(seeds))
    found = []
    for label in labels:
        name, _, text = label.partition(':')
        if name == BASE:
            found.append(Entry(label, BASE, (), 1, ()))
            continue
        jp.plans.split(name)
        given = own_rates.get(label) or tuple(rates) or grid(name, embedded)
        found.append(Entry(label, name, flags(name, text), own_seeds.get(label, seeds), given))
    if all(entry.method == BASE for entry in found):
        raise ValueError(f'--methods names nothing to train; there are {", ".join(_names())}')
    return found


def grid(method: str, embedded: bool) -> tuple[float, ...]:
    """A third, once and three times the usual learning rate of the (first) method.

    Example:
      >>> grid('lora', embedded=False)
      (3.33e-05, 0.0001, 0.0003)
    """
    first = jp.plans.split(method)[0]
    usual = FULL_RATE if first == 'full' else jp.methods.usual_rate(first)
    factor = EMBEDDED if embedded else 1.0
    return tuple(float(f'{factor * usual * share:.3g}') for share in GRID)


def flags(method: str, text: str) -> tuple[str, ...]:
    """'alpha=8,init_ab=kaiming,zero,epoch=2' -> the flags of train.run that say so.

    Raises:
      ValueError: for a key that is neither an option of the method nor a flag.
    """
    found = []
    for part in re.split(r',(?=\w+=)', text) if text else []:
        key, equals, value = part.partition('=')
        takers = [n for n in jp.plans.split(method) if key in options.settable(n)]
        if not equals:
            raise ValueError(f'{method}:{text}: options are key=value, got {part!r}')
        if takers:
            found += [f'--set={name}.{key}={value}' for name in takers]
        elif key in configs.flags():
            no = value.lower() in ('false', 'no')
            yes = value.lower() in ('true', 'yes')
            found.append(f'--no_{key}' if no else f'--{key}' if yes else f'--{key}={value}')
        else:
            known = [o for n in jp.plans.split(method) for o in options.settable(n)]
            raise ValueError(
                f'{method} takes no {key!r}; {nearest(key, [*known, *configs.flags()])}'
            )
    return tuple(found)


def _names() -> list[str]:
    return [BASE, *jp.methods.names()]


def _assigned(flag: str, items: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """'lora=3,hira=3' and 'hira=1e-3,3e-3' -> {'lora': '3', 'hira': ...}; a label may hold '='."""
    found: dict[str, str] = {}
    for item in items:
        for part in re.split(r',(?=[A-Za-z])', item):
            label, equals, value = part.rpartition('=')
            if not equals or label not in labels:
                raise ValueError(
                    f'--{flag} takes METHOD=value with a method of --methods, got {part!r}; '
                    f'{nearest(label, labels)}'
                )
            found[label] = value
    return found


def _count(what: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f'{what}: a number of seeds is 1 or more, got {text!r}')
    return int(text)


def _rates(what: str, text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(','))
    except ValueError:
        raise ValueError(f'--lrs_of {what}: learning rates are numbers, got {text!r}') from None
    return found
