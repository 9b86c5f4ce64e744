"""Every method: one file each, found by its name. `python -m jaxpeft.methods` prints the table.

`jaxpeft.methods.<name>` is the factory that the file `<name>.py` exports under its own name. Its
keyword arguments are the hyper-parameters, `TARGETS` in the file the default target modules.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from jaxpeft import base
from jaxpeft.near import nearest

_FILES = {
    info.name: importlib.import_module(f'{__name__}.{info.name}')
    for info in pkgutil.iter_modules(__path__)
    if not info.name.startswith('_')
}
# Bound here and not by a lazy attribute: once imported, a submodule would hide its factory.
for _name, _module in _FILES.items():
    globals()[_name] = getattr(_module, _name)


def names() -> list[str]:
    """The methods' names, sorted."""
    return sorted(_FILES)


def get(name: str) -> Callable[..., base.Method | base.Override]:
    """The factory of a method.

    Raises:
      ValueError: for an unknown name, with the nearest ones.
    """
    if name not in _FILES:
        raise ValueError(f'no method is called {name!r}; {nearest(name, names())}')
    return getattr(_FILES[name], name)


def module(name: str) -> Any:
    """The file of a method: its TARGETS, and an override's `dimensions(config, target)`."""
    get(name)
    return _FILES[name]


def defaults(name: str) -> list[str]:
    """The target modules that a method adapts when none are named."""
    return list(module(name).TARGETS)


def usual_rate(name: str) -> float:
    """The learning rate to begin with: the file's LEARNING_RATE, else 1e-4, LoRA's lower end."""
    return float(getattr(module(name), 'LEARNING_RATE', 1e-4))


def options(name: str) -> dict[str, Any]:
    """A method's hyper-parameters with their defaults."""
    return {p.name: p.default for p in inspect.signature(get(name)).parameters.values()}


def rebuild(
    spec: Mapping[str, Any], methods: Mapping[str, Callable[..., Any]] | None = None
) -> base.Method | base.Override:
    """The method that a saved `spec` describes; `methods` adds factories that are not shipped."""
    kwargs = {k: v for k, v in spec.items() if k != 'name'}
    factory = (methods or {}).get(spec['name']) or _part(spec['name']) or get(spec['name'])
    return factory(**kwargs)


def _part(name: str) -> Callable[..., base.Override] | None:
    """What methods share, which is no method of its own: the structure encoder."""
    from jaxpeft import structure  # which builds on these files

    return structure.structure_encoder if name == 'structure_encoder' else None
