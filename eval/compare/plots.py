"""A Pareto plot for each pair of axes: what no other method beats on both."""

import itertools
import pathlib
from collections.abc import Sequence

from eval.compare import figures
from eval.compare.figures import AXES, Line
from eval.plots import DPI, GREY, bare, new_figure

COLOURS = (
    '#4c78a8', '#f58518', '#54a24b', '#e45756', '#72b7b2', '#b279a2', '#9d755d', '#eeca3b',
    '#2b2f36', '#ff9da6', '#79706e', '#d67195',
)  # fmt: skip
MARKERS = 'osD^vP*Xhdp<>'  # one more than colours: 156 methods look different


def write(lines: Sequence[Line], folder: pathlib.Path) -> list[str]:
    """Writes folder/X-Y.png for each pair of axes with two methods or more; returns the names."""
    import matplotlib

    matplotlib.use('Agg')
    folder.mkdir(parents=True, exist_ok=True)
    first = figures.quality(lines)
    names = [first, *(name for name in AXES if name not in figures.QUALITIES)]
    made = []
    for y, x in itertools.combinations(names, 2):
        shown = [one for one in lines if one.centre(x) is not None and one.centre(y) is not None]
        if len(shown) < 2:
            continue
        base = [one for one in lines if x not in one.values]
        figure = draw(shown, x, y, base, [one.entry.label for one in lines])
        made.append(f'{y}-{x}')
        figure.savefig(folder / f'{made[-1]}.png', dpi=DPI)
    return made


def draw(
    shown: Sequence[Line],
    x: str,
    y: str,
    base: Sequence[Line] = (),
    labels: Sequence[str] = (),
):
    """The plot of two axes; methods on the front are joined by a line.

    Args:
      shown: lines with both figures.
      x, y: names of axes.
      base: lines without the figure x; their y is drawn as a level (the untrained base).
      labels: of all lines: a method looks the same in every plot. Empty: those shown.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, ((axis,),) = new_figure(6.6, 4.2)
    labels = labels or [one.entry.label for one in shown]
    points = [(one.centre(x) or 0.0, one.centre(y) or 0.0) for one in shown]
    kept = figures.front(points, (AXES[x].better, AXES[y].better))
    edge = sorted(points[i] for i in kept)
    axis.plot(*zip(*edge, strict=True), color=GREY, lw=1.4, zorder=1)
    for i, (one, point) in enumerate(zip(shown, points, strict=True)):
        bars = {side: _range(one, name) for side, name in (('xerr', x), ('yerr', y))}
        number = labels.index(one.entry.label)
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        hollow = {} if i in kept else {'markerfacecolor': 'white'}
        axis.errorbar(
            *point, **bars, fmt=marker, color=colour, ms=7, elinewidth=0.8, capsize=2, alpha=0.95,
            label=_broken(one.entry.label), zorder=2, **hollow,
        )  # fmt: skip
    for one in base:
        if one.centre(y) is not None:
            axis.axhline(one.centre(y), color=GREY, lw=1.0, ls='--', label=_broken(one.entry.label))
    for name, scale, label in (
        (x, axis.set_xscale, axis.set_xlabel),
        (y, axis.set_yscale, axis.set_ylabel),
    ):
        means = [one.centre(name) or 0.0 for one in shown]
        if AXES[name].log and max(means) > 4 * min(means) > 0:
            scale('log')
            side = axis.xaxis if name == x else axis.yaxis
            wide = max(means) > 500 * min(means)  # 2,000 and 5,000 would meet
            side.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
            side.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.0f}'))
            side.set_minor_formatter(NullFormatter())
        arrow = 'more is better' if AXES[name].better > 0 else 'less is better'
        label(f'{AXES[name].title} ({arrow})', fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(color=GREY, lw=0.4, alpha=0.5)
    title = 'filled: none is better\non both axes; bars:\nlowest, highest seed\n(of time: turn)'
    figure.legend(
        loc='outside right upper', frameon=False, fontsize=8, title=title, title_fontsize=7
    )
    bare(axis)
    return figure


def _broken(label: str) -> str:
    """A legend's entry: an option a line, for long ones take the plot's width."""
    return label.replace(':', ':\n').replace(',', ',\n')


def _range(one: Line, axis: str) -> list[list[float]]:
    """Error bars from the centre to the lowest and the highest."""
    centre, values = one.centre(axis) or 0.0, one.values[axis]
    return [[centre - min(values)], [max(values) - centre]]
