"""The encoder's kinds: which features each of them reads."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxpeft.base import Array
from jaxpeft.near import nearest

PERIODS = (24.0, 168.0, 720.0, 8760.0)  # hours: day, week, month, year


class Kind(NamedTuple):
    """Which features a kind reads: sizes of its id tables, periods in hours, number of values."""

    positions: bool = True
    sizes: tuple[int, ...] = ()
    periods: tuple[float, ...] = ()
    values: int = 0


KINDS = {
    'default': Kind(sizes=(64,)),
    'code': Kind(sizes=(64, 64, 80, 64)),
    'temporal': Kind(periods=PERIODS, values=1),
    'graph': Kind(positions=False, values=6),
    'tokens': Kind(sizes=(64, 64, 3, 36)),
}
OPTIONAL = {'default': ('ids',)}


def parts_of(kind: str, sizes: Any, periods: Any, values: Any) -> Kind:
    """A kind with those of its numbers that are given instead (not None).

    Raises:
      ValueError: for an unknown kind, with the nearest.
    """
    if kind not in KINDS:
        raise ValueError(f'structure_encoder: no kind is called {kind!r}; {nearest(kind, KINDS)}')
    new = {
        'sizes': None if sizes is None else tuple(sizes),
        'periods': None if periods is None else tuple(map(float, periods)),
        'values': values,
    }
    return KINDS[kind]._replace(**{k: v for k, v in new.items() if v is not None})


def given_of(kind: str, parts: Kind, features: Any) -> dict[str, Array]:
    """The features that the kind reads, held against their shapes.

    Raises:
      ValueError: for a feature that is missing or misshaped.
    """
    if not isinstance(features, Mapping):
        raise ValueError(
            f'structure_encoder: features are a dict of arrays, got {type(features).__name__}'
        )
    wanted = {
        'positions': () if parts.positions else None,
        'ids': (len(parts.sizes),) if parts.sizes else None,
        'times': () if parts.periods else None,
        'values': (parts.values,) if parts.values else None,
    }
    given: dict[str, Array] = {}
    lead: tuple[int, ...] | None = None
    for name, tail in wanted.items():
        if tail is None or (name in OPTIONAL.get(kind, ()) and name not in features):
            continue
        if name not in features:
            have = ', '.join(sorted(features)) or 'nothing'
            raise ValueError(f'structure_encoder: kind {kind!r} needs {name!r}, got {have}')
        x = jnp.asarray(features[name])
        lead = x.shape[:2] if lead is None else lead
        if x.shape != (*lead, *tail) or len(lead) != 2:
            shape = ', '.join(['B', 'T', *map(str, tail)])
            raise ValueError(
                f'structure_encoder: {name!r} of kind {kind!r} has shape [{shape}], got {x.shape} '
                f'where the first feature has the leading axes {tuple(lead)}'
            )
        given[name] = x
    return given
