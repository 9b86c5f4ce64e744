"""The largest batch that fits, in few compilations: memory grows nearly in a line with the rows."""

from collections.abc import Callable

CAP = 65_536  # examples in a micro-batch; nobody trains with more


def largest(share: Callable[[int], float], multiple: int, first: int, cap: int = CAP) -> int:
    """The largest multiple of `multiple` whose share of the memory is at most 1; 0 for none.

    Assumes that whatever fits also fits with less. Each call of `share` costs a compilation. The
    next batch to try is where the line through the last two reaches 1, held inside what is still
    open; every fifth one halves that instead, for memory that does not grow in a line.

    Args:
      share: bytes that a batch needs, as a share of what there is.
      multiple: the least batch, and the step between two: the devices that share the rows.
      first: where to begin, rounded down to the multiple.
      cap: the largest to try.

    Example:
      >>> largest(lambda batch: 0.1 + 0.009 * batch, multiple=8, first=8)
      96
    """
    good, bad = 0, cap // multiple + 1  # in units of `multiple`: what fits, what does not
    points: list[tuple[int, float]] = []
    probe = min(max(first // multiple, 1), bad - 1)
    while bad - good > 1:
        points.append((probe, share(probe * multiple)))
        if points[-1][1] <= 1:
            good = probe
        else:
            bad = probe
        guess = _line(points) if len(points) > 1 and len(points) % 5 else None
        if guess is None:
            guess = 2 * good if bad > cap // multiple and good else (good + bad) // 2
        probe = min(max(guess, good + 1), bad - 1)
    return good * multiple


def _line(points: list[tuple[int, float]]) -> int | None:
    """Where the line through the last two points reaches 1; None where it does not rise."""
    (x0, y0), (x1, y1) = points[-2:]
    slope = (y1 - y0) / (x1 - x0)
    return int(x1 + (1 - y1) / slope + 1e-6) if slope > 0 else None
