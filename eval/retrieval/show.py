"""The figures of `eval.retrieval` as a table, as Markdown, and as a heat-map."""

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from eval.plots import DPI
from eval.table import WIDTH

TITLES = {'kv': 'key-value retrieval', 'needle': 'needle retrieval'}
Cell = Mapping[str, Any]


def grid(cells: Sequence[Cell]) -> tuple[list[int], list[float], dict[tuple[int, float], Cell]]:
    """(lengths, depths, cell by both), in the order they came."""
    lengths = list(dict.fromkeys(cell['length'] for cell in cells))
    depths = list(dict.fromkeys(cell['depth'] for cell in cells))
    return lengths, depths, {(cell['length'], cell['depth']): cell for cell in cells}


def gap_text(gap: Mapping[str, Any], what: str = 'accuracy') -> str:
    """'+12.5 (-3.1 to 28.0)', in % for the accuracy and nats for the nll."""
    scale, digits = (100, 1) if what == 'accuracy' else (1, 2)
    text = f'{scale * gap[what]:+.{digits}f}'
    bounds = gap[f'{what}_interval']
    if bounds is None:
        return text
    low, high = (scale * bound for bound in bounds)
    return f'{text} ({low:.{digits}f} to {high:.{digits}f})'


def _rows(task: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and body of a task's table: a length a line, accuracy / nll a depth."""
    lengths, depths, by = grid(task['cells'])
    gaps = task['middle_gap']
    header = ['length', *(f'depth {depth:g}' for depth in depths)]
    body = []
    for length in lengths:
        own = [by[length, depth] for depth in depths]
        texts = [f'{100 * one["accuracy"]:.0f} / {one["answer_nll"]:.2f}' for one in own]
        body.append([str(length), *texts])
    if gaps:
        header.append('middle gap in %')
        for line, length in zip(body, lengths, strict=True):
            line.append(gap_text(gaps[str(length)]))
        if len(lengths) > 1:
            body.append(['all', *[''] * len(depths), gap_text(gaps['all'])])
    return header, body


def caption(name: str, task: Mapping[str, Any]) -> str:
    """What the table's figures are."""
    n = task['cells'][0]['n']
    return f'{TITLES[name]}: accuracy in % / nll of the answer in nats, {n} examples a cell'


def table(name: str, task: Mapping[str, Any]) -> str:
    """A task as a table of at most 100 columns."""
    header, body = _rows(task)
    made = Table(title=caption(name, task), title_justify='left')
    for column in header:
        made.add_column(column, justify='right')
    for line in body:
        made.add_row(*line)
    text = io.StringIO()
    Console(file=text, width=WIDTH).print(made)
    return text.getvalue().rstrip()


def markdown(found: Mapping[str, Any], who: str, plot: str) -> str:
    """The whole result as a Markdown page."""
    parts = [f'# Retrieval by depth: {who}', _NOTE]
    for name, task in found.items():
        header, body = _rows(task)
        rule = ['---:'] * len(header)
        lines = ['| ' + ' | '.join(line) + ' |' for line in (header, rule, *body)]
        parts += [f'## {caption(name, task)}', '\n'.join(lines)]
        if task['middle_gap']:
            nll = gap_text(task['middle_gap']['all'], 'nll')
            parts.append(f'Middle gap of the nll over all lengths: {nll} nats.')
    parts.append(f'![Accuracy and nll by depth and length]({plot})')
    return '\n\n'.join(parts) + '\n'


_NOTE = (
    'An answer is right when greedy decoding writes exactly it. Depth 0 is the beginning of the '
    'lines, 1 their end; the question follows them. Middle gap: mean of the first and the last '
    'depth minus mean of the middle third, with its 95 % interval.'
)


def heat_map(found: Mapping[str, Any], who: str):
    """A figure: a task a row, accuracy on the left and the answer's nll on the right."""
    from matplotlib.figure import Figure

    most = max(len(grid(task['cells'])[0]) for task in found.values())
    width = max(7.0, 1.6 + 1.3 * len(grid(next(iter(found.values()))['cells'])[1]))
    size = (width, 0.8 + len(found) * (1.1 + 0.42 * most))
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(len(found), 2, squeeze=False)
    figure.suptitle(who, fontsize=11, fontweight='bold')
    worst = max(cell['answer_nll'] for task in found.values() for cell in task['cells'])
    kinds = (
        ('accuracy', 'accuracy in %', 100, 100, 'viridis', '.0f'),
        ('answer_nll', 'nll of the answer', 1, worst, 'magma_r', '.1f'),
    )
    for row, (name, task) in zip(axes, found.items(), strict=True):
        for axis, (key, title, scale, top, colours, form) in zip(row, kinds, strict=True):
            _panel(figure, axis, task['cells'], key, scale, top, colours, form)
            axis.set_title(f'{TITLES[name]}: {title}', fontsize=9, loc='left')
        row[0].set_ylabel('context length in tokens', fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel('depth of the fact', fontsize=8)
    return figure


def _panel(figure, axis, cells, key, scale, top, colours, form) -> None:
    lengths, depths, by = grid(cells)
    values = scale * np.array([[by[n, d][key] for d in depths] for n in lengths])
    image = axis.imshow(values, vmin=0, vmax=top, cmap=colours, aspect='auto')
    axis.set_xticks(range(len(depths)), [f'{depth:g}' for depth in depths], fontsize=8)
    axis.set_yticks(range(len(lengths)), [f'{length:,}' for length in lengths], fontsize=8)
    for (i, j), value in np.ndenumerate(values):
        red, green, blue, _ = image.cmap(image.norm(value))
        light = 0.3 * red + 0.59 * green + 0.11 * blue > 0.5
        colour = 'black' if light else 'white'
        axis.text(j, i, format(value, form), ha='center', va='center', color=colour, fontsize=8)
    bar = figure.colorbar(image, ax=axis, fraction=0.05, pad=0.02)
    bar.ax.tick_params(labelsize=7)


def write(found: Mapping[str, Any], who: str, out: pathlib.Path) -> list[pathlib.Path]:
    """Writes the Markdown page and the heat-map beside `out`, with its name."""
    page, plot = out.with_suffix('.md'), out.with_suffix('.png')
    heat_map(found, who).savefig(plot, dpi=DPI)
    page.write_text(markdown(found, who, plot.name))
    return [page, plot]
