"""A study as Markdown, and its plot."""

import math
import pathlib
from typing import Any

from eval.plots import BLUE, DARK, DPI, GREY, ORANGE
from eval.structured import summary
from eval.structured.arms import SHUFFLED


def markdown(found: dict[str, Any], title: str) -> str:
    """The report: for each task its data, a table and what the figures allow to say."""
    parts = [f'# {title}', *found['notes']]
    for name, task in found['tasks'].items():
        parts += [f'## {name}', '; '.join(task['notes']) + '.', table(task)]
        parts.append('\n'.join(f'- {line}' for line in sentences(task)))
    return '\n\n'.join(parts) + '\n'


def sentences(task: dict[str, Any]) -> list[str]:
    """What is said below a table."""
    mismatch = 100 * summary.largest_mismatch(task)
    first = (
        f'Trained numbers differ by {mismatch:.2f} % at most; rates chosen on validation rows; '
        's/step is the least median of a run.'
    )
    floor = task['floor']
    least = (
        [f'The source itself expects {floor:.4f} nats: no model can do better but by luck.']
        if floor
        else []
    )
    return [first, *least, *summary.verdicts(task)]


def table(task: dict[str, Any]) -> str:
    """The methods, best first, below the base."""
    accuracy = 'accuracy' in task['before']['test']
    head = ['method', 'ranks', 'trained', 'lr', 'test NLL, 95 %', 'ppl', 's/step']
    head.insert(6, 'right') if accuracy else None
    base = task['before']['test']
    rows = [['base', '', '', '', f'{base["nll"]:.4f}', f'{math.exp(base["nll"]):.3f}', '']]
    rows[0].insert(6, f'{100 * base["accuracy"]:.1f}') if accuracy else None
    for name in summary.best_to_worst(task):
        arm = task['arms'][name]
        nll = arm['nll']
        row = [
            name,
            ranks(arm['ranks']),
            f'{arm["trainable"]:,}',
            f'{arm["lr"]:g}',
            _mean(nll),
            f'{math.exp(nll["mean"]):.3f}',
            f'{arm["seconds_per_step"]:.3f}',
        ]
        row.insert(6, f'{100 * arm["accuracy"]["mean"]:.1f}') if accuracy else None
        rows.append(row)
    return _aligned([head, *rows])


def ranks(given: dict[str, int]) -> str:
    """'8' for one rank everywhere; '10-11' for some one more.

    Example:
      >>> ranks({'q_proj': 8, 'v_proj': 8}), ranks({'q_proj': 10, 'v_proj': 11})
      ('8', '10-11')
    """
    low, high = min(given.values()), max(given.values())
    return f'{low}' if low == high else f'{low}-{high}'


def _mean(figure: dict[str, Any]) -> str:
    """'1.2345 +- 0.0123', Student's interval being symmetric; the mean alone for one seed."""
    interval = figure['interval']
    half = '' if interval is None else f' ± {(interval[1] - interval[0]) / 2:.4f}'
    return f'{figure["mean"]:.4f}{half}'


def _aligned(rows: list[list[str]]) -> str:
    """A Markdown table whose columns line up in a terminal too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust] + [str.rjust] * (len(widths) - 1)
    line = lambda row: (
        '| ' + ' | '.join(s(x, w) for s, x, w in zip(sides, row, widths, strict=True)) + ' |'
    )
    rule = '| ' + ' | '.join(['-' * widths[0], *('-' * (w - 1) + ':' for w in widths[1:])]) + ' |'
    return '\n'.join([line(rows[0]), rule, *map(line, rows[1:])])


def plot(found: dict[str, Any], path: pathlib.Path) -> None:
    """Test loss of each method, a dot a seed with the mean's interval; a panel a task."""
    from matplotlib.figure import Figure

    tasks = found['tasks']
    figure = Figure(figsize=(6.8, 0.9 + 1.9 * len(tasks)), layout='constrained')
    axes = figure.subplots(len(tasks), 1, squeeze=False)[:, 0]
    for axis, (name, task) in zip(axes, tasks.items(), strict=True):
        _panel(axis, task)
        axis.set_title(name, loc='left', fontsize=10, fontweight='bold')
    axes[-1].set_xlabel('test loss, nats a labelled token (lower is better)', fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def _panel(axis: Any, task: dict[str, Any]) -> None:
    names = summary.best_to_worst(task)
    for place, name in enumerate(names):
        nll = task['arms'][name]['nll']
        colour = ORANGE if name == SHUFFLED else BLUE
        axis.plot(nll['values'], [place] * len(nll['values']), 'o', color=colour, ms=4, alpha=0.7)
        if nll['interval']:
            axis.hlines(place, *nll['interval'], color=colour, lw=1.4)
        axis.plot(nll['mean'], place, '|', color=DARK, ms=13, mew=1.8)
    ends = [x for name in names for x in _ends(task['arms'][name]['nll'])]
    marks = {'base': task['before']['test']['nll'], 'least possible': task['floor']}
    _mark(axis, {k: x for k, x in marks.items() if x is not None}, min(ends), max(ends))
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(axis='x', labelsize=8)
    axis.grid(axis='x', color=GREY, lw=0.5, alpha=0.4)
    axis.spines[['top', 'right']].set_visible(False)
    axis.set_axisbelow(True)


def _mark(axis: Any, marks: dict[str, float], low: float, high: float) -> None:
    """Lines at the marks that lie near; the others in words: they would squeeze what is compared.

    Args:
      axis: of the panel.
      marks: name -> loss.
      low, high: where the methods' figures end.
    """
    reach = high - low
    far = {name: x for name, x in marks.items() if not low - reach <= x <= high + reach}
    for name, style in (('base', '--'), ('least possible', ':')):
        if name in marks and name not in far:
            axis.axvline(marks[name], color=DARK, lw=1, ls=style, label=name)
    if len(far) < len(marks):
        axis.legend(frameon=False, fontsize=8, loc='best')
    if far:
        said = '; '.join(f'{name} {x:.3f}' for name, x in far.items())
        axis.annotate(
            f'not shown: {said}', (1, 1.02), xycoords='axes fraction', ha='right', va='bottom',
            fontsize=8, color=DARK,
        )  # fmt: skip


def _ends(nll: dict[str, Any]) -> list[float]:
    return [*nll['values'], *(nll['interval'] or [])]
