"""The end of every error message about a name: the nearest known ones, or all of them."""

import difflib
from collections.abc import Iterable

LISTED = 20  # names listed in full when none is near


def nearest(name: str, known: Iterable[str]) -> str:
    """`'nearest: ...'` for the known names close to `name`, else `'there are: ...'` in order.

    Example:
      >>> nearest('bolq', ['boolq', 'piqa'])
      'nearest: boolq'
      >>> nearest('x', ['boolq', 'piqa'])
      'there are: boolq, piqa'
    """
    names = list(known)
    lower = {n.lower(): n for n in names}
    close = difflib.get_close_matches(name.lower(), list(lower), n=4, cutoff=0.5)
    if close:
        return f'nearest: {", ".join(lower[n] for n in close)}'
    more = ', ..' if len(names) > LISTED else ''
    return f'there are: {", ".join(names[:LISTED])}{more}'
