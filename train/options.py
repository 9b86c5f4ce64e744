"""Which arguments the methods' factories get: from flags, --set, presets, and its own defaults.

Nothing here knows a method: names and types come from the signature of the factory.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import yaml

import jaxpeft as jp
from jaxpeft.near import nearest
from train.config import METHOD_FLAGS, Config, listed


class Source(NamedTuple):
    """One place that flags come from: what it set, which flags, whether the user typed them."""

    name: str
    config: Config
    given: frozenset[str]
    typed: bool


def resolve(method: str, sources: Iterable[Source]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Every argument of the methods' factories: what the last source gave, or their own defaults.

    A flag goes to each method that takes it, `--set NAME.key=value` to the one it names.

    Args:
      method: a method's name, or several joined by '+'.
      sources: in rising order of precedence.

    Returns:
      Name -> arguments (an override's dimensions, which the model gives, left out), and a note for
      each source that gave what no method takes.

    Raises:
      ValueError: for an unknown method; for what none takes, where the user typed it; for a value
        of another kind than the default, or one that the factory refuses.
    """
    defaults = {name: settable(name) for name in jp.plans.split(method)}
    options, notes = {name: dict(known) for name, known in defaults.items()}, []
    for source in sources:
        given, unknown = _given(source, defaults)
        if unknown and source.typed:
            raise ValueError(_not_taken(method, unknown, defaults))
        if unknown:
            what = ', '.join(unknown)
            notes.append(f'note: {method} takes no {what}; what {source.name} says is left out')
        for name, values in given.items():
            options[name] |= values
    for name, values in options.items():
        if not hasattr(jp.methods.module(name), 'dimensions'):
            jp.methods.get(name)(**values)  # refuses bad values now, before a model is loaded
    return options, notes


def settable(name: str) -> dict[str, Any]:
    """A method's hyper-parameters with their defaults: without what the model decides."""
    every, file = jp.methods.options(name), jp.methods.module(name)
    of_model = {'stack'}
    if hasattr(file, 'dimensions'):
        example = jp.models.config_of('EleutherAI/gpt-neo-125m')
        of_model |= {key for target in file.TARGETS for key in file.dimensions(example, target)}
    return {k: v for k, v in every.items() if k not in of_model}


def _given(
    source: Source, defaults: dict[str, dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What one source gives to each factory, and what none takes."""
    given: dict[str, dict[str, Any]] = {name: {} for name in defaults}
    unknown: list[str] = []
    for flag, argument in METHOD_FLAGS.items():
        takers = [name for name in defaults if argument in defaults[name]]
        if flag in source.given and not takers:
            unknown.append(f'--{flag}')
        for name in takers if flag in source.given else ():
            given[name][argument] = getattr(source.config.adapter, flag)
    for item in source.config.adapter.set:
        name, argument, value = split(item)
        takers = [n for n in defaults if name in ('method', n) and argument in defaults[n]]
        if not takers:
            unknown.append(f'--set {name}.{argument}')
        for taker in takers:
            typed = _typed(argument, value, defaults[taker][argument])
            if given[taker].get(argument, typed) != typed:
                raise ValueError(f'{argument} is given twice: {given[taker][argument]} and {typed}')
            given[taker][argument] = typed
    return given, unknown


def split(item: str) -> tuple[str, str, Any]:
    """'method.alpha=64' -> ('method', 'alpha', 64), the value read as YAML.

    Raises:
      ValueError: for text of another form.
    """
    key, equals, text = item.partition('=')
    name, dot, argument = key.strip().replace('-', '_').partition('.')
    if not (equals and dot and argument):
        raise ValueError(f'--set takes method.key=value, got {item!r}')
    value = from_yaml(text, f'--set {item}')
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string
        try:
            value = float(value)
        except ValueError:
            value = text.strip()
    return name, argument, value


def from_yaml(text: str | bytes, where: str) -> Any:
    """What YAML says.

    Raises:
      ValueError: for what is no YAML, naming `where` it stands, the line and the reason.
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a date such as 2024-13-01 is a ValueError
        mark = getattr(error, 'problem_mark', None)
        line = '' if mark is None else f', line {mark.line + 1}'
        reason = getattr(error, 'problem', None) or str(error).splitlines()[0]
        raise ValueError(f'{where}{line}: not YAML: {reason}') from error


def _typed(argument: str, value: Any, default: Any) -> Any:
    """The value in the type of the factory's default; None stands for a number to be found."""
    if type(value) is float and not math.isfinite(value):
        raise ValueError(f'--set method.{argument} must be finite, got {value}')
    if type(value) is type(default) or (default is None and type(value) in (int, float)):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    kind = 'number or null' if default is None else f'{type(default).__name__} like {default!r}'
    raise ValueError(f'--set method.{argument} must be a {kind}, got {value!r}')


def pairs(flag: str, text: str, kind: type) -> dict[str, Any]:
    """'q_proj=8, v_proj=16' -> {'q_proj': 8, 'v_proj': 16}.

    Raises:
      ValueError: for text of another form, naming the flag.
    """
    found = {}
    for part in listed(text):
        name, equals, value = part.rpartition('=')
        try:
            found[name.strip()] = kind(value)
            good = math.isfinite(found[name.strip()])
        except ValueError:
            good = False
        if not (good and equals and name.strip()):
            raise ValueError(f'--{flag} takes name={kind.__name__},.., got {part!r}')
    return found


def numbers(flag: str, text: str) -> list[int]:
    """'0,2,5-7' -> [0, 2, 5, 6, 7].

    Raises:
      ValueError: for text of another form or a range that falls, naming the flag.
    """
    found: list[int] = []
    for part in listed(text):
        low, _, high = part.partition('-')
        if not (low.isdigit() and (high or low).isdigit()):
            raise ValueError(f'--{flag} takes numbers and ranges such as 0,2,5-7, got {part!r}')
        if int(high or low) < int(low):
            raise ValueError(f'--{flag} takes ranges that rise, such as {high}-{low}, got {part!r}')
        found += range(int(low), int(high or low) + 1)
    return found


def _not_taken(method: str, unknown: list[str], defaults: dict[str, dict[str, Any]]) -> str:
    arguments = dict.fromkeys(k for known in defaults.values() for k in known)
    flags = {flag: f'--{flag}' for flag, argument in METHOD_FLAGS.items() if argument in arguments}
    rest = [k for k in arguments if k not in METHOD_FLAGS.values()]
    keys = [*flags, *rest]
    if not keys:
        return f'{method} takes no {", ".join(unknown)}; it has no options'
    asked = unknown[0].removeprefix('--set ').removeprefix('--').rpartition('.')[2]
    taken = [*flags.values(), *(f'--set method.{k}=..' for k in rest)]
    return (
        f'{method} takes no {", ".join(unknown)}; {nearest(asked, keys)}; '
        f'it takes {", ".join(taken)}'
    )
