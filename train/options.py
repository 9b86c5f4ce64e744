"""Which arguments the method's factory gets: from flags, --set, presets, and its own defaults.

Nothing here knows a method: names and types come from the signature of the factory.
"""

import inspect
from collections.abc import Iterable
from typing import Any, NamedTuple

import yaml

import jaxpeft as jp
from jaxpeft.near import nearest
from train.config import METHOD_FLAGS, Config


class Source(NamedTuple):
    """One place that flags come from: what it set, which flags, whether the user typed them."""

    name: str
    config: Config
    given: frozenset[str]
    typed: bool


def resolve(method: str, sources: Iterable[Source]) -> tuple[dict[str, Any], list[str]]:
    """Every argument of the method's factory: what the last source gave, or its own default.

    Args:
      method: the method's name.
      sources: in rising order of precedence.

    Returns:
      The arguments, and a note for each source that gave what the method does not take.

    Raises:
      ValueError: for an unknown method; for what it does not take, where the user typed it; for a
        value of another kind than the default, or one that the factory refuses.
    """
    factory = jp.methods.get(method)
    signature = inspect.signature(factory).parameters
    defaults = {name: parameter.default for name, parameter in signature.items()}
    options, notes = dict(defaults), []
    for source in sources:
        given, unknown = _given(method, source, defaults)
        if unknown and source.typed:
            raise ValueError(_not_taken(method, unknown, defaults))
        if unknown:
            what = ', '.join(unknown)
            notes.append(f'note: {method} takes no {what}; what {source.name} says is left out')
        options |= given
    factory(**options)  # refuses bad values now, before a model is loaded
    return options, notes


def _given(
    method: str, source: Source, defaults: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """What one source gives to the factory, and what the factory does not take."""
    given: dict[str, Any] = {}
    unknown: list[str] = []
    for flag, argument in METHOD_FLAGS.items():
        if flag in source.given and argument in defaults:
            given[argument] = getattr(source.config.adapter, flag)
        elif flag in source.given:
            unknown.append(f'--{flag}')
    for item in source.config.adapter.set:
        name, argument, value = split(item)
        if name not in ('method', method) or argument not in defaults:
            unknown.append(f'--set {name}.{argument}')
            continue
        value = _typed(argument, value, defaults[argument])
        if given.get(argument, value) != value:
            raise ValueError(f'{argument} is given twice: {given[argument]} and {value}')
        given[argument] = value
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
    value = yaml.safe_load(text)
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string
        try:
            value = float(value)
        except ValueError:
            value = text.strip()
    return name, argument, value


def _typed(argument: str, value: Any, default: Any) -> Any:
    """The value in the type of the factory's default."""
    if default is None or default is inspect.Parameter.empty or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    kind = type(default).__name__
    raise ValueError(f'--set method.{argument} must be a {kind} like {default!r}, got {value!r}')


def _not_taken(method: str, unknown: list[str], defaults: dict[str, Any]) -> str:
    flags = {flag: f'--{flag}' for flag, argument in METHOD_FLAGS.items() if argument in defaults}
    rest = {k: f'--set method.{k}=..' for k in defaults if k not in METHOD_FLAGS.values()}
    taken = [*flags.values(), *rest.values()]
    return (
        f'{method} takes no {", ".join(unknown)}; {nearest(unknown[0], taken)}; '
        f'it takes {", ".join(taken)}'
    )
