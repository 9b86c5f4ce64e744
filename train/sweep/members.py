"""What a member of a sweep is, what may differ between members, and who can train together."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jaxpeft as jp
from jaxpeft.near import nearest
from train.config import Config

RATES = ('lr', 'weight_decay')  # of `config.optim`, apart from the seed


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a sweep; None is the configuration's own.

    Attributes:
      seed: of the start, the order of the rows, the validation rows and dropout.
      lr: peak learning rate; the schedule is scaled.
      weight_decay: of the factors.
      options: option -> value, of each method that takes it, or METHOD.option of that one.
    """

    seed: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def config_of(config: Config, member: Member) -> Config:
    """The configuration with which `train.loop` would make this member's run alone.

    Raises:
      ValueError: for an option that no method of the plan takes, with the nearest.

    Example:
      >>> from train import cli
      >>> config, _ = cli.parse(['--method', 'lora'])
      >>> mine = config_of(config, Member(seed=3, options={'alpha': 8.0}))
      >>> mine.optim.seed, mine.options['lora']['alpha'], mine.optim.lr == config.optim.lr
      (3, 8.0, True)
    """
    options = {name: dict(given) for name, given in config.options.items()}
    for key, value in member.options.items():
        name, _, option = key.rpartition('.')
        takers = [n for n, known in options.items() if name in ('', n) and option in known]
        if not takers:
            known = sorted({o for given in options.values() for o in given})
            raise ValueError(
                f'{"+".join(options)} takes no option {key!r}; {nearest(option, known)}'
            )
        for taker in takers:
            options[taker][option] = value
    asked = {'seed': member.seed, 'lr': member.lr, 'weight_decay': member.weight_decay}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    return dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, **given), options=options
    )


def groups(config: Config, members: Sequence[Member]) -> list[list[int]]:
    """The members' numbers, in lists that can train as one program each.

    Example:
      >>> from train import cli
      >>> config, _ = cli.parse(['--method', 'lora'])
      >>> wide, narrow = {'rank': 8, 'alpha': 8.0}, {'rank': 4}
      >>> groups(config, [Member(lr=1e-3, options=o) for o in (wide, narrow, wide)])
      [[0, 2], [1]]
    """
    found: dict[str, list[int]] = {}
    for number, member in enumerate(members):
        found.setdefault(_fixed(config_of(config, member)), []).append(number)
    return list(found.values())


def _fixed(config: Config) -> str:
    """What must be the same in one program: every option but the traceable floats."""
    kept = {}
    for name, given in config.options.items():
        own = _resolved(name, given)
        kept[name] = {o: v for o, v in own.items() if not traceable(name, o, own)}
    return json.dumps(kept, sort_keys=True)


def numbers(configs: Sequence[Config]) -> dict[str, Any]:
    """What differs between the members, as float32 [K] arrays: what the program is mapped over.

    Args:
      configs: each member's, from `config_of`.

    Returns:
      {'lr': [K], 'weight_decay': [K], 'options': {method: {option: [K]}}}, without what all share,
      which stays a constant of the program as it is in a run alone.

    Raises:
      ValueError: for an option that differs and cannot, saying why.
    """
    differing: dict[str, Any] = {'options': {}}
    for rate in RATES:
        values = [getattr(config.optim, rate) for config in configs]
        if len(set(values)) > 1:
            differing[rate] = jnp.asarray(values, jnp.float32)
    for name in configs[0].options:
        every = [_resolved(name, config.options[name]) for config in configs]
        for option in every[0]:
            values = [given[option] for given in every]
            if all(value == values[0] for value in values):
                continue
            for given in every:
                _check_traceable(name, option, given, values)
            chosen = differing['options'].setdefault(name, {})
            chosen[option] = jnp.asarray(values, jnp.float32)
    return differing


def with_numbers(config: Config, differing: Mapping[str, Any]) -> Config:
    """The configuration with one member's numbers, which may be traced, in their places."""
    options = {
        name: given | dict(differing['options'].get(name, {}))
        for name, given in config.options.items()
    }
    rates = {name: differing[name] for name in RATES if name in differing}
    return dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, **rates), options=options
    )


def _resolved(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the numbers that the factory puts in the place of None."""
    if None not in given.values() or hasattr(jp.methods.module(name), 'dimensions'):
        return dict(given)
    spec = jp.methods.get(name)(**given).spec
    return {o: spec.get(o) if value is None else value for o, value in given.items()}


def _check_traceable(
    name: str, option: str, given: Mapping[str, Any], values: Iterable[Any]
) -> None:
    if traceable(name, option, given):
        return
    said = ', '.join(dict.fromkeys(str(value) for value in values))
    raise ValueError(
        f'{name}.{option} is {said} in one sweep, and members of one program may differ in numbers '
        f'that its formulas take only: {option} decides a shape or which formula it is. Train each '
        'value as a sweep of its own (train.sweep.groups sorts the members)'
    )


def traceable(name: str, option: str, given: Mapping[str, Any]) -> bool:
    """Whether a method's functions take this option as a number that is known at run time only.

    Decided by trying: they are traced on a small kernel with the option as an argument.

    Example:
      >>> options = jp.methods.options('knowhira')
      >>> [traceable('knowhira', o, options) for o in ('ortho_lambda', 'rank', 'ortho_mode')]
      [True, False, False]
    """
    if type(given[option]) not in (int, float) or hasattr(jp.methods.module(name), 'dimensions'):
        return False
    if type(given[option]) is int and type(jp.methods.options(name)[option]) is int:
        return False  # a rank, a number of buckets
    others = {o: v for o, v in given.items() if o != option}
    return _traced(name, option, json.dumps(others, sort_keys=True))


@functools.cache
def _traced(name: str, option: str, others: str) -> bool:
    given = json.loads(others)
    size = 2 * max(int(given.get('rank', 1)), 2)
    w = jnp.ones((size, size), jnp.float32)

    def use(value: jax.Array) -> Any:
        method: Any = jp.methods.get(name)(**given, **{option: value})
        state = method.init(jax.random.key(0), w)
        # A method may choose its way by the number of tokens.
        outputs = [method.apply(state, w, jnp.ones((n, size), jnp.float32)) for n in (1, 4 * size)]
        return outputs, method.penalty(state, w)

    try:
        jax.eval_shape(use, jnp.float32(0.5))
    except (jax.errors.ConcretizationTypeError, jax.errors.UnexpectedTracerError):
        return False  # Python needs the value: to branch on it, to hash it
    return True
