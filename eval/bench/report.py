"""From samples to the figures of a row."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from eval.bench.measure import Samples
from eval.bench.rows import Row

TOLERANCE = 1e-3  # relative difference of the facts on which two sides must agree


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, list[float]]:
    """The median of the rounds' ratios, and the least and greatest of them.

    Raises:
      ValueError: for no rounds, or sides of different lengths.

    Example:
      >>> paired([2.0, 3.0, 8.0], [4.0, 4.0, 4.0])
      (0.75, [0.5, 2.0])
    """
    if not ours or len(ours) != len(theirs):
        raise ValueError(f'need as many rounds of both sides: {len(ours)} and {len(theirs)}')
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), [min(ratios), max(ratios)]


def pooled(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, list[float]]:
    """The ratio of all rounds together, for rounds of different work; spread as of `paired`.

    Example:
      >>> pooled([2.0, 3.0], [4.0, 16.0])
      (0.25, [0.1875, 0.5])
    """
    return sum(ours) / sum(theirs), paired(ours, theirs)[1]


def difference(row: Row, ours: Samples, theirs: Samples) -> float | None:
    """The largest relative difference of the facts that must agree; None where none must."""
    if not row.agree:
        return None
    pairs = list(zip(ours.facts, theirs.facts, strict=True))
    if row.first:
        pairs = pairs[:1]
    return max(
        abs(a[name] - b[name]) / max(abs(b[name]), 1e-30) for a, b in pairs for name in row.agree
    )


def entry(row: Row, samples: Mapping[str, Samples], machine: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the JSON file holds it.

    Returns:
      name, what, ratio, spread [least, greatest], target, ok, ours, theirs (medians), unit, and:
      rounds (every value of both sides), facts (first and last repetition), differ, note, machine.
      `ok` is None where something could not be measured, and `note` says what.
    """
    ours = samples[row.ours.key]
    theirs = samples[row.theirs.key] if row.theirs is not None else None
    both = {'ours': ours} | ({'theirs': theirs} if theirs is not None else {})
    result: dict[str, Any] = {
        'name': row.name, 'what': row.what, 'ratio': None, 'spread': None, 'target': row.target,
        'ok': None, 'ours': None, 'theirs': None, 'unit': row.unit, 'differ': None,
        'note': row.note, 'rounds': {side: one.values for side, one in both.items()},
        'facts': {side: [*one.facts[:1], *one.facts[1:][-1:]] for side, one in both.items()},
        'machine': dict(machine),
    }  # fmt: skip
    errors = [f'{side}: {one.error}' for side, one in both.items() if one.error]
    if errors:
        return result | {'note': 'not measured, ' + '; '.join(errors)}
    result['ours'] = statistics.median(ours.values)
    if theirs is None:
        result |= {'ratio': result['ours'], 'spread': [min(ours.values), max(ours.values)]}
    else:
        combine = pooled if row.batches else paired
        ratio, spread = combine(ours.values, theirs.values)
        differ = difference(row, ours, theirs)
        result |= {
            'ratio': ratio, 'spread': spread, 'theirs': statistics.median(theirs.values),
            'differ': differ,
        }  # fmt: skip
    result['ok'] = result['ratio'] <= row.target
    if result['differ'] is not None and not result['differ'] <= TOLERANCE:
        said = f'the sides differ by {result["differ"]:.1e} in {" or ".join(row.agree)}'
        result |= {'ok': False, 'note': said}
    return result
