"""What is compared: methods as the command line spells them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import jaxpeft as jp
from jaxpeft.near import nearest
from train import config as configs
from train import options
from train.config import Config

BASE = 'none'  # the untrained base
GRID = (1 / 3, 1.0, 3.0)  # times the method's usual learning rate
FULL_RATE = 1e-5  # full fine-tuning's usual one: each number moves, not a product of two
EMBEDDED = 10.0  # times the usual rate, as train.cli has it: a tiny base and a short run
OWN = {
    'method': 'give --methods',
    'seed': 'give --seeds N',
    'lr': 'give --lrs, or --lrs_of',
    'run_dir': 'give --out_dir',
    'resume': 'what is finished is always kept',
    'out': 'give --out_dir',
    'wandb': 'start that run with train.run',
}  # flags of train.run that a comparison sets for each run


class Entry(NamedTuple):
    """One line of the table.

    Attributes:
      label: as the user wrote it: 'lora', 'knowhira:adaptive_gating=false'.
      method: its name for train.run, 'none' for the untrained base.
      flags: flags of train.run that only this entry has.
      seeds: how many runs.
      rates: learning rates to choose from; one is taken as it is. None given: () until the
        configuration is known, see `with_rates`.
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

    @property
    def own_rank(self) -> bool:
        """Whether its label says a rank."""
        return any('.rank=' in flag or flag.startswith('--r_ab=') for flag in self.flags)


def parse(
    methods: Sequence[str],
    seeds: int,
    seeds_of: Sequence[str],
    rates: Sequence[float],
    rates_of: Sequence[str],
) -> list[Entry]:
    """Reads the entries of a comparison.

    Args:
      methods: 'lora', 'none', 'hylorada+daa', or a method with options, 'hylorada:init=kaiming'; an
        option is one of the method's or a flag of train.run, several are joined by commas.
      seeds: runs an entry.
      seeds_of: 'lora=3,hira=3': other numbers for some.
      rates: learning rates for all; empty leaves them to `with_rates`.
      rates_of: 'hira=1e-3,3e-3': others for some.

    Raises:
      ValueError: for an unknown method or option, an entry given twice, a number that is none.

    Example:
      >>> found = parse(['none', 'lora:alpha=8'], 2, ['lora:alpha=8=3'], [1e-3], [])
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
        own = own_rates.get(label) or tuple(rates)
        found.append(Entry(label, name, flags(name, text), own_seeds.get(label, seeds), own))
    if all(entry.method == BASE for entry in found):
        raise ValueError(f'--methods names nothing to train; there are {", ".join(_names())}')
    return found


def with_rates(entry: Entry, config: Config) -> Entry:
    """The entry with a grid of learning rates, where it has none yet.

    A third, once and three times the rate of a --config file or preset; without one, of what is
    usual for the (first) method.

    Args:
      entry: one that trains.
      config: as train.run resolves it.

    Example:
      >>> from train import cli
      >>> (entry,) = parse(['lora'], 1, [], [], [])
      >>> config, _ = cli.parse(['--method', 'lora', '--model_name', 'x', '--dataset', 'boolq'])
      >>> with_rates(entry, config).rates
      (3.33e-05, 0.0001, 0.0003)
    """
    if entry.rates:
        return entry
    first = jp.plans.split(entry.method)[0]
    usual = FULL_RATE if first == 'full' else jp.methods.usual_rate(first)
    defaults = configs.Optim().lr, EMBEDDED * jp.methods.usual_rate(first)
    factor = EMBEDDED if config.model.model_name == 'embedded' else 1.0
    middle = factor * usual if config.optim.lr in defaults else config.optim.lr
    return entry._replace(rates=tuple(float(f'{middle * share:.3g}') for share in GRID))


def given(flags: Sequence[str], name: str) -> bool:
    """Whether a flag is among those that were typed."""
    return any(f[2:].split('=')[0].replace('-', '_') == name for f in flags if f.startswith('--'))


def check_flags(flags: Sequence[str]) -> None:
    """Refuses flags of train.run that the comparison itself sets.

    Raises:
      ValueError: naming it and what to give instead.
    """
    for name, instead in OWN.items():
        if given(flags, name):
            raise ValueError(f'--{name} is what eval.compare sets for each run; {instead}')


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
        if key in OWN and not takers:
            raise ValueError(f'{method}:{text}: eval.compare sets {key} for each run; {OWN[key]}')
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
    """'lora=3,hira=3' and 'hira=1e-3,3e-3' -> {'lora': '3', 'hira': ...}.

    A label may itself hold '=' and ',': the longest one that fits is meant.
    """
    found: dict[str, str] = {}
    known = '|'.join(map(re.escape, sorted(labels, key=len, reverse=True)))
    for item in items:
        for part in re.split(rf',(?=(?:{known})=)', item):
            fits = re.match(rf'({known})=', part)
            if fits is None:
                raise ValueError(
                    f'--{flag} takes METHOD=value with a method of --methods, got {part!r}; '
                    f'{nearest(part.rpartition("=")[0], labels)}'
                )
            found[fits[1]] = part[fits.end() :]
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
