"""The search space: from the methods' files, narrowed by the user, into a configuration."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jaxpeft as jp
from train import cli, options
from train import config as configs
from train.config import METHOD_FLAGS, Config, Optim
from train.near import nearest

RATIO = 'alpha_ratio'  # alpha = ratio * rank, so that the update's scale does not depend on rank
# Flags that may differ between trials. What sets the budget (batch, epoch, max_steps) and what the
# loss is measured on may not: losses of trials could not be compared.
FLAGS: dict[str, tuple | None] = {
    'lr': None,  # around the usual one, see `learning_rates`
    'weight_decay': ('float', 0.0, 0.1),
    'warmup': ('float', 0.0, 0.2),
    'max_grad_norm': ('choice', 0.1, 0.3, 1.0, 3.0),
    'loraplus_ratio': ('choice', 1.0, 4.0, 16.0),  # 1: plain rates
    'schedule': ('choice', 'cosine', 'linear', 'constant'),
    'target_modules': None,
    'rank_strategy': ('choice', 'uniform', 'importance', 'decreasing'),
}
IMPLIED = {'loraplus_ratio': {'loraplus': True}}
NEUTRAL = {'loraplus_ratio': 1.0}  # what is the same as not to have it
# Ranges of factories' arguments that mean the same in every method.
COMMON = {
    'rank': ('choice', 4, 8, 16, 32),
    RATIO: ('float', 0.5, 4.0, 'log'),
    'dropout': ('choice', 0.0, 0.05, 0.1),
}
DEFAULT = ('rank', RATIO)  # of COMMON, what a method without SEARCH is searched over
ALIASES = {
    **METHOD_FLAGS,
    'lora_rank': 'rank',
    'lora_alpha': 'alpha',
    'lora_dropout': 'dropout',
    'base_lr': 'lr',
    'learning_rate': 'lr',
    'lora_plus_ratio': 'loraplus_ratio',
}  # as flags and the reference programs call them
DECADES = 10.0  # the learning rate's range: a tenth to ten times the usual


class Range(NamedTuple):
    """One dimension: 'float' or 'int' between two ends (both within), or a 'choice'.

    Attributes:
      kind: which of the three.
      values: (low, high), or the choices.
      log: drawn evenly in its logarithm.
    """

    kind: str
    values: tuple
    log: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a trial may have this value."""
        if self.kind == 'choice':
            return value in self.values
        return isinstance(value, int | float) and self.values[0] <= value <= self.values[1]

    def plain(self) -> list:
        """As it is written in a file."""
        return [self.kind, *self.values, *(['log'] if self.log else [])]


Space = dict[str, Range]


def parse(name: str, written: Any) -> Range:
    """('float', 1e-5, 1e-2, 'log') -> Range.

    Raises:
      ValueError: for another form, naming the dimension.

    Example:
      >>> parse('lr', ['float', '1e-5', 1, 'log'])
      Range(kind='float', values=(1e-05, 1.0), log=True)
    """
    try:
        kind, *values = written
        log = kind != 'choice' and values[-1:] == ['log']
        values = values[:-1] if log else values
        if kind == 'choice':
            good = len(set(map(repr, values))) == len(values) > 0
        else:
            values = [{'float': float, 'int': int}[kind](v) for v in values]  # YAML: 1e-5 is text
            low, high = values
            good = low < high and (not log or low > 0)
    except (TypeError, ValueError, KeyError):
        good = False
    if not good:
        raise ValueError(
            f'{name}: a range is [float, LOW, HIGH], [float, LOW, HIGH, log], [int, ...] or '
            f'[choice, A, B, ...], with LOW < HIGH and above 0 for log, got {written!r}'
        )
    return Range(kind, tuple(values), log)


def make(config: Config, vary: Sequence[str] = (), file: str = '') -> Space:
    """The space of a search.

    Args:
      config: the resolved configuration: the method, and all that is not searched.
      vary: names to search; all of the method's when empty. A name that its method does not list
        may be given too, where its range is known.
      file: a YAML mapping of name: range (or name: null, the known range). With a file and no
        `vary`, its names alone are searched.

    Returns:
      name -> range: flags (lr), the factories' arguments (rank, or METHOD.rank where several
      methods act together) and `alpha_ratio`.

    Raises:
      ValueError: for an unknown name, one without a known range, a range of another form.
      FileNotFoundError: for a file that is not there.

    Example:
      >>> config, _ = cli.parse(['--method', 'hira', '--model_name', 'x', '--dataset', 'y.jsonl'])
      >>> make(config, ['lr', 'lora_rank'])['lr']
      Range(kind='float', values=(0.0001, 0.01), log=True)
    """
    given = {resolve(config, k): (k, v) for k, v in _read(file).items()} if file else {}
    names = [resolve(config, n) for n in _listed(vary)] or list(given) or default(config)
    space = {}
    for name in dict.fromkeys(names):
        said, written = given.get(name, (name, None))
        found = known(config, name) if written is None else parse(said, written)
        if found is None:
            raise ValueError(
                f'no range is known for {name}; give it in a file, --space FILE.yaml with the '
                f'line "{name}: [float, LOW, HIGH]"'
            )
        space[name] = found
    if RATIO in space and 'alpha' in space:
        raise ValueError('alpha and alpha_ratio say the same thing twice: search one of them')
    return space


def _listed(names: Sequence[str]) -> list[str]:
    return [part for item in names for part in configs.listed(item)]


def _read(file: str) -> dict[str, Any]:
    path = pathlib.Path(file)
    if not path.is_file():
        raise FileNotFoundError(f'--space names a YAML file of name: range; there is no {path}')
    found = options.from_yaml(path.read_bytes(), str(path))
    if not isinstance(found, dict) or not found:
        raise ValueError(f'{path} must hold a mapping of name: range, got {found!r}')
    return {str(name): value for name, value in found.items()}


def default(config: Config) -> list[str]:
    """The learning rate and what the methods' files list; rank and alpha for a file without."""
    names = ['lr']
    for method, given in config.options.items():
        search = getattr(jp.methods.module(method), 'SEARCH', None)
        for name in DEFAULT if search is None else search:
            if name in FLAGS:
                names.append(name)
            elif search is not None or _argument(name) in given:
                names.append(_full(config, method, name))
    return list(dict.fromkeys(names))


def resolve(config: Config, name: str) -> str:
    """A name as the space has it, from a flag's name, an argument's or a reference program's.

    Raises:
      ValueError: for a name that is neither, or one that cannot be searched, saying why.
    """
    method, dot, last = name.replace('-', '_').rpartition('.')
    last = ALIASES.get(last, last)
    if not dot and last in FLAGS:
        return last
    if not dot and last in configs.flags() and last not in METHOD_FLAGS:
        raise ValueError(
            f'{last} is the same for all trials: it would change what they are measured on or by; '
            f'flags that can be searched: {", ".join(FLAGS)}'
        )
    takers = [m for m, given in config.options.items() if _argument(last) in given]
    if dot and method in takers:
        return _full(config, method, last)
    if not dot and takers:
        return last
    there = [*FLAGS, *names_of(config)]
    raise ValueError(f'{config.adapter.method} has no {name!r} to search; {nearest(last, there)}')


def names_of(config: Config) -> list[str]:
    """Every argument of the methods' factories, and alpha_ratio where there is an alpha."""
    found = list(dict.fromkeys(o for given in config.options.values() for o in given))
    return found + ([RATIO] if 'alpha' in found else [])


def known(config: Config, name: str) -> Range | None:
    """The range of a name: its method's, the common one, or that of its type; else None."""
    method, _, last = name.rpartition('.')
    flags = {flag: range_ for flag, range_ in FLAGS.items() if range_ is not None}
    for search in (*_searches(config, method), flags, COMMON):
        if last in search:
            return parse(name, search[last])
    if name == 'lr':
        return learning_rates(config)
    of_type = [g.get(last) for m, g in config.options.items() if method in ('', m) and last in g]
    return Range('choice', (False, True)) if of_type and isinstance(of_type[0], bool) else None


def _searches(config: Config, method: str) -> list[Mapping[str, tuple]]:
    names = [name for name in config.options if method in ('', name)]
    return [getattr(jp.methods.module(name), 'SEARCH', {}) for name in names]


def learning_rates(config: Config) -> Range:
    """A tenth to ten times the rate that was given, or the method's usual one."""
    usual = jp.methods.usual_rate(next(iter(config.options)))
    middle = usual if config.optim.lr == Optim().lr else config.optim.lr
    low, high = (float(f'{x:.3g}') for x in (middle / DECADES, middle * DECADES))
    return Range('float', (low, high), log=True)


def _argument(name: str) -> str:
    return 'alpha' if name == RATIO else name


def _full(config: Config, method: str, name: str) -> str:
    return name if len(config.options) == 1 else f'{method}.{name}'


def apply(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration of a trial.

    Raises:
      ValueError: for a value that a flag or a factory refuses.

    Example:
      >>> config, _ = cli.parse(['--method', 'lora'])
      >>> found = apply(config, {'lr': 0.01, 'rank': 8, 'alpha_ratio': 0.5})
      >>> found.optim.lr, found.options['lora']['rank'], found.options['lora']['alpha']
      (0.01, 8, 4.0)
    """
    groups = {name: getattr(config, name) for name in configs.GROUPS}
    made = {name: dict(given) for name, given in config.options.items()}
    # alpha after rank, whatever their order.
    for name, value in sorted(values.items(), key=lambda item: item[0].endswith(RATIO)):
        if name in FLAGS:
            group = configs.flags()[name]
            changed = {name: value} | IMPLIED.get(name, {})
            groups[group] = dataclasses.replace(groups[group], **changed)
            continue
        method, _, last = name.rpartition('.')
        for taker, given in made.items():
            if method in ('', taker) and _argument(last) in given:
                given[_argument(last)] = value * given['rank'] if last == RATIO else value
    found = dataclasses.replace(config, **groups, options=made)
    cli.check(found)
    for name, given in made.items():
        if given == config.options[name]:
            continue
        if not hasattr(jp.methods.module(name), 'dimensions'):
            jp.methods.get(name)(**given)
    return found


def current(config: Config, space: Space) -> dict[str, Any]:
    """The configuration's own values of the space's names, without those outside their ranges."""
    found: dict[str, Any] = {}
    flags = configs.values(config)
    for name, range_ in space.items():
        method, _, last = name.rpartition('.')
        takers = [
            g for m, g in config.options.items() if method in ('', m) and _argument(last) in g
        ]
        if name in FLAGS:
            off = any(flags[flag] != value for flag, value in IMPLIED.get(name, {}).items())
            value = NEUTRAL[name] if off else flags[name]
        elif last != RATIO:
            value = takers[0][last]
        else:  # None stands for the factories' own, twice the rank
            alpha = takers[0]['alpha']
            value = 2.0 if alpha is None else alpha / takers[0]['rank']
        if range_.holds(value):
            found[name] = value
    return found
