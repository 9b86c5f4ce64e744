"""The comparison as Markdown: quality, cost, tasks, learning rates."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from eval.compare import figures
from eval.compare.figures import Line
from eval.compare.jobs import Job
from eval.report import markdown
from eval.table import WIDTH, percent

REFERENCE = 'lora'
WHOLE = ('rank', 'trained', 'lr', 'seeds')  # columns whose cells are never broken
PLACES = {'accuracy': 1, 'validation': 3}  # after the point
TITLES = {
    'accuracy': 'accuracy %',
    'test': 'test text, ppl',
    'perplexity': 'held-out ppl',
    'validation': 'validation loss',
}


def render(
    lines: Sequence[Line], sweeps: Mapping[str, Sequence[Job]], matched: str, plots: Sequence[str]
) -> str:
    """The whole page.

    Args:
      lines: every entry's.
      sweeps: label -> the jobs of its learning rates.
      matched: how ranks were chosen, one sentence; '' where each method has its own.
      plots: names of images.
    """
    parts = ['# Comparison', *_about(lines, matched), '## Quality', _quality(lines)]
    parts += ['## Cost', _cost(lines), COST_NOTE]
    if figures.quality(lines) == 'accuracy':
        parts += ['## Tasks', _tasks(lines)]
    rates = _rates(sweeps)
    if rates:
        parts += ['## Learning rates', rates, RATES_NOTE + CHOSEN_BY[figures.quality(lines)]]
    if plots:
        parts += ['## Pareto', *(f'![{name}](plots/{name}.png)' for name in plots)]
    return '\n\n'.join(parts) + '\n'


COST_NOTE = (
    "Seconds, tokens and the ratio are medians over the run's first updates, compiling left out, "
    'made turn by turn with those of the other methods in one process. `update` is '
    'what the compiler allots to one update of the largest batch (base, adapter, optimizer, batch, '
    'temporaries); `process` the most that the process of a run alone ever held until training '
    'ended, with Python, libraries and compilation; `adapter` the bytes of its folder on disk.'
)
RATES_NOTE = 'Validation loss of the short runs; the lowest is taken, for all seeds. '
WINDOWS = (
    'They hold out the windows that seed 0 holds out: these have chosen the rate, and in each run '
    'the step, that its perplexity is of. `--test_text` gives one that nothing is chosen by.'
)
CHOSEN_BY = {
    'accuracy': 'No test question was looked at.',
    'test': 'The test text was not looked at.',
    'perplexity': WINDOWS,
    'validation': '',
}


def _about(lines: Sequence[Line], matched: str) -> list[str]:
    said = [
        f'{one.entry.label} {len(one.runs)} of {one.entry.seeds}'
        for one in lines
        if len(one.runs) + one.diverged < one.entry.seeds
    ]
    parts = [matched] if matched else []
    if said:
        parts.append(f'Not finished: {", ".join(said)} seeds.')
    whole = [run for one in lines for run in one.runs]
    error = figures.sampling_error(whole)
    if error is not None:
        parts.append(
            "In brackets Student's 95 % interval of the mean over seeds; a single seed has none. "
            f'It leaves out what the number of questions does: up to {error:.1f} points either '
            f'way for one run, up to {math.sqrt(2) * error:.1f} for the difference of two that err '
            'independently.'
        )
    if any('forgetting' in one.values for one in lines):
        parts.append(
            f'`other text` is the perplexity of {_text(whole, "forget")} after '
            'training: what a method makes the base forget. The line `none` has it from before.'
        )
    if any(axis in one.values for one in lines for axis in figures.PERPLEXITIES):
        parts.append(
            'Means of perplexities are geometric, with the interval of their logarithms; '
            'differences of them are in per cent.'
        )
    if figures.quality(lines) == 'test':
        parts.append(f'`test text` is the perplexity of {_text(whole, "test")}.')
    if figures.quality(lines) == 'perplexity':
        parts.append(
            'Each seed holds windows of its own out: compare what stands on the same seeds '
            f'(`against {REFERENCE}` does). `none` is the mean over the seeds.'
        )
    return parts


def _text(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    run = next(run for run in runs if run.get(name))
    return f'{run["config"][name]["file"]} ({run[name]["tokens"]:,} tokens)'


def _quality(lines: Sequence[Line]) -> str:
    note = '\n\n\\* at the edge of the rates that were tried' if any(o.edge for o in lines) else ''
    return markdown(*_rows(lines)) + note


def show(lines: Sequence[Line]) -> None:
    """Prints the table of quality."""
    header, rows = _rows(lines)
    table = Table(title='comparison', title_justify='left')
    for name in header:
        justify: Literal['left', 'right'] = 'left' if name == 'method' else 'right'
        least = len('commonest') if name == 'method' else None
        whole = name in WHOLE
        table.add_column(name, justify=justify, overflow='fold', no_wrap=whole, min_width=least)
    for row in rows:
        table.add_row(*(cell.replace('`', '') for cell in row))
    Console(width=WIDTH).print(table)  # a narrower terminal folds lines; rich would drop columns


def _rows(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """The table of quality: its header and its rows."""
    axis = figures.quality(lines)
    reference = next((one for one in lines if one.entry.label == REFERENCE), None)
    title = TITLES[axis]
    header = ['method', 'rank', 'trained', 'lr', 'seeds', title]
    header += [f'against {REFERENCE}'] if reference else []
    header += ['other text, ppl']
    rows = []
    for one in lines:
        row = [
            f'`{one.entry.label}`',
            _rank(one),
            _number(one.centre('trained'), ',.0f'),
            '-' if one.rate is None else f'{one.rate:g}' + ('*' if one.edge else ''),
            str(len(one.runs)) + (f' ({one.diverged} diverged)' if one.diverged else ''),
            _with_interval(one, axis),
        ]
        if reference:
            row.append(_gap(figures.against(one, reference, axis), axis))
        rows.append([*row, _with_interval(one, 'forgetting')])
    first = next((run for one in lines for run in one.runs), None)
    name = figures.decoding(first) if first else None
    if first and name:
        share = percent(first['after'][name]['majority_mean'])
        rows.append(['commonest label', *[''] * 4, share, *[''] * (len(header) - 6)])
    return header, rows


def _rank(one: Line) -> str:
    ranks = {run.get('rank') for run in one.runs} - {None}
    return str(ranks.pop()) if len(ranks) == 1 else '-'


def _number(value: float | None, form: str) -> str:
    return '-' if value is None else format(value, form)


def _forms(axis: str) -> tuple[Callable[[float], str], Callable[[float], str], str]:
    """How a figure of an axis is written, a difference of two, and the difference's unit."""
    if axis in figures.PERPLEXITIES:
        figure = lambda x: f'{x:,.0f}' if x >= 999.95 else f'{x:#.4g}'
        return figure, lambda x: f'{100 * x:+.1f}', ' %'
    places = PLACES[axis]
    return lambda x: f'{x:.{places}f}', lambda x: f'{x:+.{places}f}', ''


def _with_interval(one: Line, axis: str) -> str:
    mean = one.centre(axis)
    return '-' if mean is None else _written(mean, one.interval(axis), _forms(axis)[0])


def _gap(gap: tuple[float, tuple[float, float] | None] | None, axis: str) -> str:
    _, shown, unit = _forms(axis)
    return '-' if gap is None else _written(*gap, shown, unit)


def _written(
    mean: float, interval: tuple[float, float] | None, shown: Callable[[float], str], unit: str = ''
) -> str:
    to = f' ({shown(interval[0])} to {shown(interval[1])})' if interval else ''
    return shown(mean) + unit + to


def _cost(lines: Sequence[Line]) -> str:
    header = ['method', 's/step', 'tokens/s', 'update MB', 'process MB', 'adapter MB']
    forms = {'seconds': '.3f', 'speed': ',.0f', 'memory': ',.0f', 'process': ',.0f', 'size': '.2f'}
    shown = [one for one in lines if 'trained' in one.values]
    rows = [
        [f'`{one.entry.label}`', *(_number(one.centre(axis), form) for axis, form in forms.items())]
        for one in shown
    ]
    reference = next((one for one in shown if one.entry.label == REFERENCE), None)
    if reference:
        header.append(f'time / {REFERENCE}')
        for row, one in zip(rows, shown, strict=True):
            row.append(_number(figures.slower(one, reference), '.2f'))
    return markdown(header, rows)


def _tasks(lines: Sequence[Line]) -> str:
    """Mean accuracy a task, a line a task."""
    shown = [one for one in lines if one.runs and figures.decoding(one.runs[0])]
    parts = []
    for name in (n for n in shown[0].runs[0]['after'] if n != 'perplexity') if shown else ():
        tasks = shown[0].runs[0]['after'][name]['tasks']
        header = [name, 'n', 'commonest', *(f'`{one.entry.label}`' for one in shown)]
        rows = []
        for task, one_task in tasks.items():
            means = [_mean([run['after'][name]['tasks'][task] for run in o.runs]) for o in shown]
            rows.append([task, str(one_task['n']), percent(one_task['majority']), *means])
        parts.append(markdown(header, rows))
    return '\n\n'.join(parts)


def _mean(found: Sequence[Mapping[str, Any]]) -> str:
    return percent(sum(one['accuracy'] for one in found) / len(found))


def _rates(sweeps: Mapping[str, Sequence[Job]]) -> str:
    rows = []
    for label, jobs in sweeps.items():
        cells = []
        for job in jobs:
            loss = job.found()['val_loss'] if job.done else 'not yet'
            shown = f'{loss:.4f}' if isinstance(loss, float) else loss or 'diverged'
            cells.append(f'{job.config.optim.lr:g}: {shown}')
        if cells:
            rows.append([f'`{label}`', ', '.join(cells)])
    return markdown(['method', 'rate: loss'], rows) if rows else ''
