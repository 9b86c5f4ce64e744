"""The end of an error message about a name: the nearest valid ones, or all of them."""

import difflib
from collections.abc import Iterable

LISTED = 12  # names listed in full when none is near


def suggest(name: str, known: Iterable[str]) -> str:
    """`'; did you mean ...?'` for the names close to `name`, else `'; there are: ...'` in order.

    Example:
      >>> suggest('bolq', ['boolq', 'piqa'])
      "; did you mean 'boolq'?"
    """
    names = list(known)
    lower = {n.lower(): n for n in names}
    near = [lower[n] for n in difflib.get_close_matches(name.lower(), list(lower), n=3, cutoff=0.6)]
    if near:
        return f'; did you mean {" or ".join(map(repr, near))}?'
    more = ', ...' if len(names) > LISTED else ''
    return f'; there are: {", ".join(names[:LISTED])}{more}' if names else ''
