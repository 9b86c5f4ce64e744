"""The plots of a run: loss, accuracy against the majority baseline, gates and spectra."""

import collections
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.rundata import RunData, spectra
from train.results import questions

BLUE, ORANGE, GREY, DARK = '#4c78a8', '#f58518', '#b8bec6', '#2b2f36'
DPI = 150


def write(run: RunData) -> list[pathlib.Path]:
    """Writes plots/*.png for what the run has, and returns their paths."""
    import matplotlib

    matplotlib.use('Agg')
    folder = run.folder / 'plots'
    folder.mkdir(exist_ok=True)
    made = []
    for name, draw in (('loss', loss), ('accuracy', accuracy), ('gate_sigma', gate_sigma)):
        figure = draw(run)
        if figure is not None:
            made.append(folder / f'{name}.png')
            figure.savefig(made[-1], dpi=DPI)
    return made


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1):
    """(figure, axes [rows, columns]) without the global state of pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots(rows, columns, squeeze=False)


def bare(axis) -> None:
    axis.spines[['top', 'right']].set_visible(False)
    axis.set_axisbelow(True)


def loss(run: RunData):
    """Training and validation loss by step; None without metrics."""
    steps = [(m['step'], m['loss']) for m in run.metrics if 'loss' in m]
    if not steps:
        return None
    held = [(m['step'], m['val_loss']) for m in run.metrics if 'val_loss' in m]
    figure, ((axis,),) = new_figure(6.4, 3.6)
    marker = 'o' if len(steps) == 1 else ''
    axis.plot(*zip(*steps, strict=True), color=BLUE, lw=1.3, marker=marker, label='training')
    if held:
        axis.plot(
            *zip(*held, strict=True), color=ORANGE, lw=1.3, marker='o', ms=4, label='validation'
        )
    text = 'perplexity' in (run.results.get('after') or {})
    what = 'token' if text or run.config.get('train_on_inputs') else 'answer token'
    axis.set(xlabel='step', ylabel=f'loss per {what}')
    axis.grid(axis='y', color=GREY, lw=0.5, alpha=0.6)
    axis.legend(frameon=False)
    bare(axis)
    return figure


def accuracy(run: RunData):
    """Accuracy before and after by task, a panel a decoding; None without results.

    Of a bare base, or a run that trained without evaluation: a panel an evaluation in `eval/`.
    """
    before, after = (questions(run.results.get(when) or {}) for when in ('before', 'after'))
    panels = {name: [e[name] for e in (before, after) if name in e] for name in after}
    labels: Sequence[str] = ('before', 'after')
    if not panels:
        found = [
            (decoding, name, e)
            for name, one in run.evaluations.items()
            for decoding, e in (one.get('eval') or {}).items()
        ]
        often = collections.Counter(decoding for decoding, _, _ in found)
        panels = {
            decoding if often[decoding] == 1 else f'{decoding}, {name}': [e]
            for decoding, name, e in found
        }
        labels = ('accuracy',)
    if not panels:
        return None
    tasks = max(len(evals[0]['tasks']) for evals in panels.values())
    figure, axes = new_figure(max(4.5, 1.0 + 0.95 * (tasks + 1)), 3.2 * len(panels), len(panels))
    for axis, (name, evals) in zip(axes[:, 0], panels.items(), strict=True):
        _panel(axis, evals, labels[-len(evals) :])
        axis.set_title(name, loc='left', fontsize=10, fontweight='bold')
    handles, names = axes[0, 0].get_legend_handles_labels()
    handles, names = handles[1:] + handles[:1], names[1:] + names[:1]  # bars first, then the line
    figure.legend(
        handles, names, loc='outside upper right', ncols=len(names), frameon=False, fontsize=9
    )
    return figure


def _panel(axis, evals: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> None:
    tasks = list(evals[0]['tasks'])
    places = np.append(np.arange(len(tasks)), len(tasks) + 0.3)  # the mean stands apart
    width = 0.8 / len(evals)
    colours = (GREY, BLUE) if len(evals) > 1 else (BLUE,)
    for i, (found, label) in enumerate(zip(evals, labels, strict=True)):
        heights = [found['tasks'][t]['accuracy'] for t in tasks] + [found['mean']]
        bounds = np.array([found['tasks'][t]['interval'] for t in tasks])
        x = places + (i - (len(evals) - 1) / 2) * width
        axis.bar(x, 100 * np.array(heights), width * 0.92, color=colours[i], label=label)
        middle = np.array(heights[:-1])
        error = 100 * np.abs(bounds.T - middle[None, :])
        axis.errorbar(
            x[:-1], 100 * middle, error, fmt='none', ecolor=DARK, elinewidth=0.9, capsize=2
        )
    majority = [evals[0]['tasks'][t]['majority'] for t in tasks] + [evals[0]['majority_mean']]
    axis.hlines(
        100 * np.array(majority),
        places - 0.45,
        places + 0.45,
        color=ORANGE,
        lw=1.8,
        label='majority',
    )
    names = [t.replace('-', '-\n').replace('social_i_qa', 'SIQA') for t in tasks] + ['mean']
    axis.set_xticks(places, names, fontsize=8)
    axis.set_ylabel('accuracy in %', fontsize=9)
    axis.set_ylim(0, 100)
    axis.grid(axis='y', color=GREY, lw=0.5, alpha=0.6)
    bare(axis)


def gate_sigma(run: RunData):
    """Learned gates and normalised singular values, layer by rank; None without such leaves."""
    found = spectra(run)
    kinds = [k for k in ('gate', 'sigma') if any(k in leaves for leaves in found.values())]
    if not kinds:
        return None
    layers = max(rows.shape[0] for leaves in found.values() for rows in leaves.values())
    height = min(4.0, max(1.5, 0.16 * layers + 0.9))
    figure, axes = new_figure(
        max(4.8, 1.4 + 2.1 * len(found)), height * len(kinds), len(kinds), len(found)
    )
    titles = {'gate': 'sigmoid(gate)', 'sigma': 'sigma'}
    for row, kind in zip(axes, kinds, strict=True):
        values = [leaves[kind] for leaves in found.values() if kind in leaves]
        low, high = min(map(np.nanmin, values)), max(map(np.nanmax, values))
        if high - low < 1e-3:  # untrained gates: one colour for all, in the middle of the bar
            low, high = low - 0.05, high + 0.05
        for axis, (name, leaves) in zip(row, found.items(), strict=True):
            if kind not in leaves:
                axis.set_axis_off()
                continue
            image = axis.imshow(
                leaves[kind],
                aspect='auto',
                vmin=low,
                vmax=high,
                cmap='viridis',
                interpolation='none',
            )
            axis.set_title(name if kind == kinds[0] else '', fontsize=10)
            axis.locator_params(integer=True, nbins=5)
            axis.tick_params(labelsize=8, labelleft=axis is row[0])
            axis.set_xlabel('rank' if kind == kinds[-1] else '', fontsize=9)
        row[0].set_ylabel('layer', fontsize=9)
        bar = figure.colorbar(image, ax=list(row), fraction=0.05, pad=0.02)
        bar.set_label(titles[kind], fontsize=9)
        bar.ax.tick_params(labelsize=8)
        bar.ax.ticklabel_format(useOffset=False)
    return figure
