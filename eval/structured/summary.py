"""Means and intervals over seeds, differences between methods, and what they allow to say."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.stats import mean_interval
from eval.structured.arms import SHUFFLED, V2

PAIRS = (('lora', V2), ('hylorada', V2), (SHUFFLED, V2), ('lora', 'hylorada'))


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """`{'mean', 'interval', 'values'}`, with Student's 95 % interval of the mean.

    The interval is None for one value: nothing is known of the spread.

    Example:
      >>> found = over_seeds([1.0, 2.0, 3.0])
      >>> found['mean'], [round(x, 3) for x in found['interval']]
      (2.0, [-0.484, 4.484])
    """
    given = list(map(float, values))
    interval = mean_interval(given)
    return {
        'mean': float(np.mean(given)),
        'interval': None if interval is None else list(interval),
        'values': given,
    }


def of_task(found: dict[str, Any]) -> dict[str, Any]:
    """A task's record with the figures over its seeds.

    Adds to each arm `nll` (and `accuracy`, `gain_over_base`) of the test rows over seeds; and
    `gains`: 'a -> b' is how much lower b's loss is than a's, paired by seed, in nats;
    'features -> other features' how much the trained v2 loses where its features are swapped for
    those of other texts; `suffix`, the check over all runs.
    """
    arms = {name: arm | _figures(arm, found['before']) for name, arm in found['arms'].items()}
    losses = {name: arm['nll']['values'] for name, arm in arms.items()}
    gains = {
        f'{a} -> {b}': over_seeds(np.subtract(losses[a], losses[b]))
        for a, b in PAIRS
        if a in losses and b in losses
    }
    runs = arms[V2]['runs'] if V2 in arms else []
    swapped = [(run['test_shuffled']['nll'], run['test']['nll']) for run in runs]
    if runs and None not in (loss for pair in swapped for loss in pair):
        gains['features -> other features'] = over_seeds([a - b for a, b in swapped])
    return found | {'arms': arms, 'gains': gains, 'suffix': _suffix(runs)}


def _figures(arm: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    tests = [run['test'] for run in arm['runs']]
    nll = [test['nll'] for test in tests]
    figures = {
        'nll': over_seeds(nll),
        'gain_over_base': over_seeds([before['test']['nll'] - x for x in nll]),
        'seconds': over_seeds([run['seconds'] for run in arm['runs']]),
        # Other work on the machine only ever makes a step longer: the least disturbed run counts.
        'seconds_per_step': min(run['seconds_per_step'] for run in arm['runs']),
    }
    if 'accuracy' in tests[0]:
        figures['accuracy'] = over_seeds([test['accuracy'] for test in tests])
    return figures


def _suffix(runs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The hidden-suffix check over the runs: the worst of each figure."""
    checks = [run['suffix'] for run in runs]
    if not checks:
        return None
    return {
        'holds': all(one['holds'] for one in checks),
        'labels': sum(one['labels'] for one in checks),
        'worst': max(one['worst'] for one in checks),
        'features_changed': sum(one['features_changed'] for one in checks),
        'behind': min(one['behind'] for one in checks),
    }


def verdicts(found: dict[str, Any]) -> list[str]:
    """What the figures of a task allow to say, a sentence each."""
    gains = found['gains']
    said = [_compared(*pair, gains[f'{pair[0]} -> {pair[1]}']) for pair in PAIRS
            if f'{pair[0]} -> {pair[1]}' in gains]  # fmt: skip
    swap = gains.get('features -> other features')
    if swap:
        said.append(
            f'Told the features of other texts, the trained {V2} changes its loss by '
            f'{swap["mean"]:+.4f} nats{_interval(swap)}.'
        )
    suffix = found['suffix']
    if suffix:
        said.append(hidden(suffix))
    edges = [name for name, arm in found['arms'].items() if arm['at_edge']]
    if edges:
        said.append(
            f'The best rate of {", ".join(edges)} is at an end of those tried: a better one may '
            'lie beyond.'
        )
    return said


def hidden(suffix: dict[str, Any]) -> str:
    """The hidden-suffix check in words."""
    if suffix['holds']:
        verdict = 'holds: no feature looks ahead'
    else:
        verdict = 'FAILS: the features tell the future, and a gain of theirs is a leak'
    return (
        f'Hidden-suffix check {verdict}. With another text behind them, {suffix["labels"]:,} '
        f'losses changed by {suffix["worst"]:.1e} nats at most and {suffix["features_changed"]} '
        f'features; behind the cut the losses changed by {suffix["behind"]:.2f} on average.'
    )


def _compared(a: str, b: str, gain: dict[str, Any]) -> str:
    size = f'{abs(gain["mean"]):.4f} nats{_interval(gain)}'
    if gain['interval'] is None:
        word = 'lower' if gain['mean'] > 0 else 'higher'
        return f'{b} is {size} {word} than {a} with one seed, which shows no spread.'
    low, high = gain['interval']
    if low > 0:
        return f'{b} beats {a} by {size}.'
    if high < 0:
        worse = {'mean': -gain['mean'], 'interval': [-high, -low]}
        return f'{b} is WORSE than {a}, by {worse["mean"]:.4f} nats{_interval(worse)}.'
    return f'{b} and {a} cannot be told apart: {gain["mean"]:+.4f} nats{_interval(gain)}.'


def _interval(gain: dict[str, Any]) -> str:
    if gain['interval'] is None:
        return ''
    low, high = gain['interval']
    return f' (95 %: {low:+.4f} to {high:+.4f})'


def best_to_worst(found: dict[str, Any]) -> list[str]:
    """The arms by mean loss."""
    arms = found['arms']
    return sorted(arms, key=lambda name: arms[name]['nll']['mean'])


def largest_mismatch(found: dict[str, Any]) -> float:
    """How far apart the arms' trained numbers are, as a share of the larger."""
    sizes = [arm['trainable'] for arm in found['arms'].values()]
    pairs = itertools.combinations(sizes, 2)
    return max((abs(a - b) / max(a, b) for a, b in pairs), default=0.0)
