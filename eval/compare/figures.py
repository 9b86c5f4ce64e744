"""From the finished files to figures a method, with intervals over seeds."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from eval import stats
from eval.compare.entries import Entry
from eval.compare.jobs import Job, chosen


class Line(NamedTuple):
    """A line of the table; None where there is no such figure (yet).

    Attributes:
      entry: which.
      rate: the learning rate taken, None before the sweep is finished or where all diverged.
      edge: whether it is the smallest or largest of those tried.
      runs: the finished files of its seeds.
      diverged: how many runs ended without a number.
      values: axis -> a figure a run, in the order of the seeds (of `TURNS` a figure a turn, as
        `eval.compare.cost` took them); see `AXES`.
    """

    entry: Entry
    rate: float | None
    edge: bool
    runs: list[dict[str, Any]]
    diverged: int
    values: dict[str, list[float]]

    def centre(self, axis: str) -> float | None:
        """The mean over seeds, on the axis's scale; the median of turns, which meet other work."""
        own = self.values.get(axis)
        if not own:
            return None
        if axis in TURNS:
            return statistics.median(own)
        scale = scale_of(axis)
        return scale.back(statistics.fmean(map(scale.to, own)))

    def interval(self, axis: str) -> tuple[float, float] | None:
        """Student's 95 % interval of the mean over seeds; None for fewer than two."""
        scale = scale_of(axis)
        found = stats.mean_interval([scale.to(x) for x in self.values.get(axis, [])])
        return found and _both(scale.back, found)


class Scale(NamedTuple):
    """Where figures have a mean and a symmetric interval, and the way back."""

    to: Callable[[float], float]
    back: Callable[[float], float]
    gap: Callable[[float], float]  # from a difference on the scale to what is told of it


# A perplexity is the exponential of a mean loss: its mean is the geometric one, and of two of them
# the ratio less 1 is told.
LOGARITHMS = Scale(math.log, math.exp, math.expm1)
PLAIN = Scale(float, float, float)


def scale_of(axis: str) -> Scale:
    """The scale of an axis's figures."""
    return LOGARITHMS if axis in PERPLEXITIES else PLAIN


def _both(back: Callable[[float], float], ends: tuple[float, float]) -> tuple[float, float]:
    return back(ends[0]), back(ends[1])


def base_line(entry: Entry, base: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Line:
    """The figures of the untrained base.

    Args:
      entry: its entry.
      base: what base.json holds.
      runs: the finished files of all others. On plain text each seed holds windows of its own out,
        and each run tells what the base made of them.
    """
    values = _values([base])
    before = {run['config'].get('seed'): run['before'] for run in runs if 'before' in run}
    own = [{'after': before[seed]} for seed in sorted(before)]
    return Line(entry, None, False, [dict(base)], 0, values | _values(own))


class Axis(NamedTuple):
    """A figure that methods are compared by."""

    title: str
    better: int  # +1 where more is better, -1 where less is
    log: bool = False


AXES = {
    'accuracy': Axis('accuracy in %, mean of the tasks', +1),
    'test': Axis('perplexity of the test text', -1, log=True),
    'perplexity': Axis('perplexity of the validation windows', -1, log=True),
    'validation': Axis('validation loss', -1),
    'forgetting': Axis('forgetting: perplexity of other text', -1, log=True),
    'trained': Axis('trained numbers', -1, log=True),
    'seconds': Axis('seconds a step', -1),
    'memory': Axis('memory of an update in MB', -1),
}
QUALITIES = ('accuracy', 'test', 'perplexity', 'validation')  # the first that was measured
PERPLEXITIES = ('test', 'perplexity', 'forgetting')
TURNS = ('seconds', 'speed')
MB = 1e6


def line(
    entry: Entry,
    sweep: Sequence[Job],
    runs: Sequence[Job],
    cost: Mapping[str, Any] | None = None,
) -> Line:
    """The figures of an entry from what is finished of it, and what its update costs."""
    finished = all(job.done for job in sweep)
    rate = chosen(entry, sweep) if finished else None
    found = [job.found() for job in runs if job.done]
    sound = [one for one in found if 'diverged' not in one]
    edge = bool(sweep) and rate in (min(entry.rates), max(entry.rates))
    return Line(entry, rate, edge, sound, len(found) - len(sound), _values(sound) | _of_cost(cost))


def decoding(found: Mapping[str, Any]) -> str | None:
    """The decoding that stands for quality: the first that was asked for."""
    return next((name for name in found['after'] if name != 'perplexity'), None)


def _values(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for run in runs:
        for axis, value in _of_run(run).items():
            if value is not None:
                found.setdefault(axis, []).append(value)
    return found


def _of_run(run: Mapping[str, Any]) -> dict[str, float | None]:
    name, after = decoding(run), run['after']
    forget, test, train = (run.get(k) or {} for k in ('forget', 'test', 'train'))
    process, size = run.get('process_bytes'), run.get('adapter_bytes')
    return {
        'accuracy': 100 * after[name]['mean'] if name else None,
        'test': test.get('corpus_ppl'),
        'perplexity': after['perplexity']['corpus_ppl'] if 'perplexity' in after else None,
        'forgetting': forget.get('corpus_ppl'),
        'trained': train.get('trainable'),
        'process': process / MB if process else None,
        'size': size / MB if size else None,
        'validation': train.get('best_val_loss'),
    }


def _of_cost(cost: Mapping[str, Any] | None) -> dict[str, list[float]]:
    if cost is None:
        return {}
    speed = [n / s for n, s in zip(cost['tokens'], cost['seconds'], strict=True)]
    memory = cost['program']['total'] / MB
    return {'seconds': cost['seconds'], 'speed': speed, 'memory': [memory]}


def slower(one: Line, other: Line) -> float | None:
    """How many times as long an update takes as the other's: the median of the turns."""
    turns = [each.values.get('seconds', []) for each in (one, other)]
    if not turns[0] or len(turns[0]) != len(turns[1]):
        return None
    return statistics.median(mine / theirs for mine, theirs in zip(*turns, strict=True))


def quality(lines: Sequence[Line]) -> str:
    """The axis of task quality: accuracy, a perplexity of plain text, or the validation loss."""
    return next((n for n in QUALITIES if any(n in one.values for one in lines)), QUALITIES[-1])


def against(one: Line, other: Line, axis: str) -> tuple[float, tuple[float, float] | None] | None:
    """The mean difference over the seeds that both have, and its interval; None without any."""
    if one.entry.label == other.entry.label or not (axis in one.values and axis in other.values):
        return None
    seeds, theirs = (
        {run['config'].get('seed'): i for i, run in enumerate(each.runs)} for each in (one, other)
    )
    common = [seed for seed in seeds if seed in theirs]
    if not common:
        return None
    scale = scale_of(axis)
    mine, its = one.values[axis], other.values[axis]
    gaps = [scale.to(mine[seeds[s]]) - scale.to(its[theirs[s]]) for s in common]
    interval = stats.mean_interval(gaps)
    return scale.gap(statistics.fmean(gaps)), interval and _both(scale.gap, interval)


def sampling_error(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Half of the 95 % interval that the number of questions leaves to a run's mean, in points.

    1.96 sqrt(sum over tasks of p (1 - p) / n) / tasks, of the run where it is largest
    """
    found = [run['after'][name]['tasks'].values() for run in runs if (name := decoding(run))]
    spread = lambda tasks: sum(t['accuracy'] * (1 - t['accuracy']) / t['n'] for t in tasks)
    errors = [100 * stats.Z95 * math.sqrt(spread(tasks)) / len(tasks) for tasks in found]
    return max(errors, default=None)


def front(points: Sequence[tuple[float, float]], better: tuple[int, int]) -> list[int]:
    """The numbers of the points that no other one beats on both axes.

    Example:
      >>> front([(1.0, 5.0), (2.0, 6.0), (3.0, 4.0)], (-1, +1))
      [0, 1]
    """
    signed = [(x * better[0], y * better[1]) for x, y in points]
    beats = lambda p, q: p[0] >= q[0] and p[1] >= q[1] and p != q
    return [i for i, q in enumerate(signed) if not any(beats(p, q) for p in signed)]


def summary(lines: Sequence[Line]) -> dict[str, Any]:
    """The figures as JSON: label -> axis -> {'centre', 'interval', 'values'}; see `Line`."""
    return {
        one.entry.label: {
            'lr': one.rate,
            'seeds': len(one.runs),
            'diverged': one.diverged,
            'figures': {
                axis: {'centre': one.centre(axis), 'values': values}
                | ({} if axis in TURNS else {'interval': one.interval(axis)})
                for axis, values in one.values.items()
            },
        }
        for one in lines
    }
