"""Accuracy with its interval, majority baseline, parsable rate and histogram of one task."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution: a two-sided 95 % interval
UNPARSABLE = 'unparsable'


def wilson(hits: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion: sound for small n and near 0 and 1.

        centre = (p + z^2/2n) / (1 + z^2/n)
        half   = z / (1 + z^2/n) * sqrt(p (1 - p) / n + z^2 / 4n^2)

    Args:
      hits: successes, 0 <= hits <= n; a mean over trials may be fractional.
      n: trials, at least one.
      z: normal quantile of the confidence.

    Returns:
      (low, high), both in [0, 1].

    Raises:
      ValueError: n < 1 or hits outside [0, n].

    Example:
      >>> [round(x, 4) for x in wilson(8, 10)]
      [0.4902, 0.9433]
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f'wilson needs 0 <= hits <= n and n >= 1, got hits={hits}, n={n}')
    p, shrink = hits / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def difference(p: float, n: int, q: float, m: int, z: float = Z95) -> tuple[float, float]:
    """Newcombe's interval of a difference p - q of two proportions, from their score intervals.

        low  = p - q - sqrt((p - low_p)^2 + (high_q - q)^2)
        high = p - q + sqrt((high_p - p)^2 + (q - low_q)^2)

    Unlike one from the differences' spread it has a width where all trials came out alike. It takes
    the two as independent: for pairs that go together it is too wide rather than too narrow.

    Args:
      p: one proportion; a fraction of a trial is fine.
      n: its trials, at least one.
      q: the other proportion.
      m: its trials, at least one.
      z: normal quantile of the confidence.

    Returns:
      (low, high), both in [-1, 1].

    Example:
      >>> [round(x, 4) for x in difference(56 / 70, 70, 48 / 80, 80)]  # Newcombe 1998
      [0.0524, 0.3339]
    """
    (low_p, high_p), (low_q, high_q) = wilson(p * n, n, z), wilson(q * m, m, z)
    below = math.sqrt((p - low_p) ** 2 + (high_q - q) ** 2)
    above = math.sqrt((high_p - p) ** 2 + (q - low_q) ** 2)
    return max(-1.0, p - q - below), min(1.0, p - q + above)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean of independent values; None for fewer than two.

    Example:
      >>> [round(x, 4) for x in mean_interval([1.0, 2.0, 3.0])]
      [-0.4841, 4.4841]
    """
    n = len(values)
    if n < 2:
        return None
    from scipy import stats  # comes with JAX

    mean = sum(values) / n
    error = math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1) / n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    return mean - half, mean + half


def summarise(golds: Sequence[str], predictions: Sequence[str], labels: Sequence[str]) -> dict:
    """The figures of one task.

    Args:
      golds: the right label of each row; never empty, so that '' is always wrong.
      predictions: the predicted label of each row, '' where none could be read.
      labels: the task's labels, for the histogram's order (other predictions are appended).

    Returns:
      {"n", "accuracy", "interval": [low, high], "majority", "parsable", "histogram"}: `majority` is
      the share of the most frequent right label among THESE rows (what a constant guess scores),
      the histogram counts predictions and sums to n.

    Raises:
      ValueError: no rows, lists of different lengths, or a row without a right label.
    """
    n = len(golds)
    if n == 0 or n != len(predictions):
        raise ValueError(f'need as many predictions as rows, and a row: {len(predictions)} and {n}')
    if not all(golds):
        raise ValueError(f'row {list(golds).index("")} has no right answer to compare with')
    counts = Counter(p or UNPARSABLE for p in predictions)
    order = dict.fromkeys([*labels, *sorted(counts.keys() - {UNPARSABLE}), UNPARSABLE])
    hits = sum(g == p for g, p in zip(golds, predictions, strict=True))
    return {
        'n': n,
        'accuracy': hits / n,
        'interval': list(wilson(hits, n)),
        'majority': max(Counter(golds).values()) / n,
        'parsable': 1 - counts[UNPARSABLE] / n,
        'histogram': {label: counts[label] for label in order},
    }


def headline(tasks: Mapping[str, dict]) -> dict:
    """Adds the unweighted means over the tasks, and over how many tasks they are.

    The headline of this protocol is the mean of exactly the eight benchmarks: with fewer,
    `tasks_in_mean` says so and no report calls it the headline.
    """
    n = len(tasks)
    return {
        'tasks': dict(tasks),
        'mean': sum(t['accuracy'] for t in tasks.values()) / n,
        'majority_mean': sum(t['majority'] for t in tasks.values()) / n,
        'tasks_in_mean': n,
    }
