"""How long a run may take: on a slow machine its groups make fewer rounds, three at least."""

import time
from collections.abc import Callable, Mapping, Sequence

MINUTES = 40.0  # of the whole table on 2 cores
LEAST = 3  # rounds of which a median still says something
# Minutes of each group in an hour so slow that all of them, with three rounds, just take MINUTES.
SHARES = {
    'attention-all': 5.9,
    'linear-all': 8.5,
    'attention-answer': 4.6,
    'linear-answer': 4.3,
    'commonsense': 6.0,
    'temporaries': 0.9,
    'peak': 1.8,
    'start': 1.3,
    'score': 2.6,
    'generate-16': 1.5,
}
OTHER = 0.5


def deadlines(
    groups: Sequence[str],
    minutes: float,
    shares: Mapping[str, float] = SHARES,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, float]:
    """When each group should have ended, by `clock`, for all of them to take `minutes`.

    Each has its share of the time; what one leaves over goes to those behind it.

    Args:
      groups: in the order in which they are measured.
      minutes: of all of them together.
      shares: what a group takes, in any unit; OTHER where it is not named.
      clock: seconds.

    Example:
      >>> deadlines(['a', 'b'], 4, {'a': 3, 'b': 1}, lambda: 100.0)
      {'a': 280.0, 'b': 340.0}
    """
    now, spent, found = clock(), 0.0, {}
    whole = sum(shares.get(name, OTHER) for name in groups)
    for name in groups:
        spent += shares.get(name, OTHER)
        found[name] = now + 60 * minutes * spent / whole
    return found


def over(done: int, turn_started: float, until: float) -> bool:
    """Whether a group that made `done` rounds should stop: another like the last would be late."""
    now = time.monotonic()
    return done >= LEAST and now + (now - turn_started) > until
