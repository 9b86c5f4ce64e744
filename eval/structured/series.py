"""Interleaved periodic signals at irregular times, as tokens: what comes depends on the clock.

    START_h  (GAP_g SIGNAL_k VALUE_v) x n        hours h of the week, gaps g, levels v

The clock stands at h plus the gaps so far, t hours after a Monday's midnight. Signal k has a period
P_k and a phase phi_k, the same in all rows:

    v = floor(LEVELS (1/2 + sin(2 pi t / P_k + phi_k) / 2))      with probability 1 - NOISE
    v ~ uniform on the levels                                    else

Only VALUE tokens are labelled. Every method reads the same tokens, START and GAPs too, and could in
principle add the gaps up modulo a day and a week. The features say the sum: times and gaps of
`jaxpeft.structure.series_features`, of the token and what came before it.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from eval.structured.task import Features, Hidden, Part, Task, part
from jaxpeft import structure

PERIODS = (24.0, 24.0, 168.0, 168.0)  # hours, a signal each
LEVELS = 6
NOISE = 0.1
LONGEST_GAP = 48
WEEK = 168
OBSERVATIONS = 21
ORIGIN = '2000-01-03T00:00'
# Ids: levels, signals, gaps 1.., hours of the week.
SIGNAL = LEVELS
GAP = SIGNAL + len(PERIODS)
START = GAP + LONGEST_GAP
VOCABULARY = START + WEEK
LENGTH = 1 + 3 * OBSERVATIONS
NUM_BUCKETS = 64


class Raw(NamedTuple):
    """What rows are made of: hours of the start [N]; gaps, signals and levels [N, n]."""

    start: np.ndarray
    gaps: np.ndarray
    signals: np.ndarray
    levels: np.ndarray


def draw(rows: int, seed: Any, world: int) -> Raw:
    """Random rows of a world, which is its signals' phases.

    Args:
      rows: N.
      seed: of the rows.
      world: of the phases.
    """
    rng = np.random.default_rng(seed)
    shape = (rows, OBSERVATIONS)
    start = rng.integers(0, WEEK, rows)
    # Mostly short, sometimes days: an even spread of the logarithm.
    gaps = np.floor(np.exp(rng.uniform(0, math.log(LONGEST_GAP + 1), shape))).astype(int)
    gaps = np.clip(gaps, 1, LONGEST_GAP)
    signals = rng.integers(0, len(PERIODS), shape)
    hours = start[:, None] + np.cumsum(gaps, axis=1)
    levels = clean_levels(hours, signals, world)
    noisy = rng.random(shape) < NOISE
    return Raw(start, gaps, signals, np.where(noisy, rng.integers(0, LEVELS, shape), levels))


def clean_levels(hours: np.ndarray, signals: np.ndarray, world: int) -> np.ndarray:
    """The signals' levels without noise, elementwise.

    Example:
      >>> day = clean_levels(np.arange(0, 48), np.zeros(48, int), world=0)
      >>> bool((day[:24] == day[24:]).all()), int(day.min()), int(day.max())
      (True, 0, 5)
    """
    phases = np.random.default_rng([world, 17]).uniform(0, 2 * math.pi, len(PERIODS))
    angle = 2 * math.pi * hours / np.array(PERIODS)[signals] + phases[signals]
    return np.clip(np.floor(LEVELS * (0.5 + np.sin(angle) / 2)), 0, LEVELS - 1).astype(int)


def floor() -> float:
    """The loss a label of who knows the clock and the phases: the entropy of the noise."""
    right = 1 - NOISE + NOISE / LEVELS
    wrong = NOISE / LEVELS
    return -(right * math.log(right) + (LEVELS - 1) * wrong * math.log(wrong))


def tokens_of(raw: Raw) -> np.ndarray:
    """Token ids [N, LENGTH]."""
    triples = np.stack([GAP + raw.gaps - 1, SIGNAL + raw.signals, raw.levels], axis=2)
    begin = (START + raw.start)[:, None]
    return np.concatenate([begin, triples.reshape(len(begin), -1)], axis=1).astype(np.int32)


def features_of(raw: Raw) -> Features:
    """`series_features` of each row's tokens, [N, LENGTH, ..]: a token's time is the clock's."""
    hours = np.concatenate([np.zeros_like(raw.start)[:, None], np.cumsum(raw.gaps, axis=1)], axis=1)
    hours = np.repeat(hours + raw.start[:, None], [1] + [3] * OBSERVATIONS, axis=1)
    clock = np.datetime64(ORIGIN) + hours.astype('timedelta64[h]')
    rows = [structure.series_features(row, ORIGIN) for row in clock]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def part_of(raw: Raw, every: bool = False) -> Part:
    """The rows as examples; `every` labels all tokens, to pretrain a base on."""
    tokens = tokens_of(raw)
    marks = np.arange(LENGTH)
    labelled = (marks > 0) if every else (marks > 0) & (marks % 3 == 0)
    found = part(list(tokens), [labelled] * len(tokens), {})
    return found if every else found._replace(features=padded_features(features_of(raw)))


def padded_features(features: Features) -> Features:
    """With zeros behind, to a length that is a multiple of 8."""
    more = -next(iter(features.values())).shape[1] % 8
    widths = lambda x: [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)
    return {name: np.pad(x, widths(x)) for name, x in features.items()}


def make(train: int, valid: int, test: int, world: int = 1) -> Task:
    """The task, generated: rows of each part, and the phases' seed."""
    raws = [draw(rows, [world, k], world) for k, rows in enumerate((train, valid, test))]
    parts = [part_of(raw) for raw in raws]
    return Task(
        'series',
        {'kind': 'temporal', 'max_len': NUM_BUCKETS + 8, 'num_buckets': NUM_BUCKETS},
        parts[0],
        parts[1],
        parts[2],
        shuffled=('times', 'values'),
        hide=functools.partial(hide, raws[-1]),
        accuracy=True,
        floor=floor(),
        notes=(
            f'{len(PERIODS)} signals of periods {", ".join(f"{p:.0f}" for p in PERIODS)} h, '
            f'{LEVELS} levels, {100 * NOISE:.0f} % noise, gaps of 1 to {LONGEST_GAP} h',
        ),
    )


def pretraining(rows: int, world: int = 2) -> Part:
    """Rows of another world, all tokens labelled, no features."""
    return part_of(draw(rows, [world, 9], world), every=True)


def hide(raw: Raw, rows: int, seed: int) -> Hidden:
    """The first rows, each with another's observations from a drawn one on."""
    whole = Raw(*(x[:rows] for x in raw))
    at = np.random.default_rng(seed).integers(1, OBSERVATIONS, rows)
    behind = np.arange(OBSERVATIONS)[None, :] >= at[:, None]
    other = lambda x: np.where(behind, np.roll(x, 1, axis=0), x)
    gaps = np.where(behind, LONGEST_GAP + 1 - whole.gaps, whole.gaps)  # other at each of them
    replaced = Raw(whole.start, gaps, other(whole.signals), other(whole.levels))
    return Hidden(part_of(whole), part_of(replaced), 1 + 3 * at)
