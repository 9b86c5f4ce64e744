"""The nearest known names for an error of the data path, which does without JAX until then."""

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """`jaxpeft.near.nearest`, imported when there is an error to tell: `jaxpeft` brings JAX.

    Example:
      >>> nearest('bolq', ['boolq', 'piqa'])
      'nearest: boolq'
    """
    from jaxpeft import near

    return near.nearest(name, known)
