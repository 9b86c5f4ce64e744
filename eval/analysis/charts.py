"""The charts of the report: lines and dots over axes, heat maps, bars of shares, legends."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from eval.analysis.svg import LETTER, box, figure, label, line, number, paint, text, ticks

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 40
ROW = 26  # height of a row of a heat map or of bars
FULL = 940  # width of the page's column


class Series(NamedTuple):
    """Points of one colour (see `svg.paint`); kind: 'line', 'dash' (with markers) or 'dots'."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int | float
    kind: str = 'line'


class Bar(NamedTuple):
    """A row of shares: parts are (label, count, colour or None for grey)."""

    name: str
    parts: Sequence[tuple[str, float, int | None]]


def plot(
    series: Sequence[Series],
    xlabel: str,
    title: str,
    *,
    yrange: tuple[float, float] | None = None,
    whole: bool = False,
) -> str:
    """Lines and dots over common axes.

    Args:
      series: what to draw.
      xlabel: under the x axis.
      title: above the plot: what the y axis is.
      yrange: of the y axis; None: of the points.
      whole: only whole numbers stand on the x axis.

    Raises:
      ValueError: for no point at all.
    """
    points = [p for s in series for p in s.points]
    if not points:
        raise ValueError(f'nothing to draw of {title} over {xlabel}')
    x0, x1 = _padded([p[0] for p in points], 0.02)
    y0, y1 = yrange or _padded([p[1] for p in points], 0.06)
    end, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    x = lambda v: LEFT + (v - x0) / (x1 - x0) * (end - LEFT)
    y = lambda v: floor - (v - y0) / (y1 - y0) * (floor - TOP)
    parts = []
    for v in ticks(y0, y1):
        parts.append(line('grid', LEFT, y(v), end, y(v)))
        parts.append(label(LEFT - 6, y(v) + 4, f'{v:g}', anchor='end'))
    for v in ticks(x0, x1, 6):
        if not whole or v == round(v):
            parts.append(label(x(v), floor + 16, f'{v:g}'))
    parts.append(line('axis', LEFT, floor, end, floor))
    parts.append(label((LEFT + end) / 2, HEIGHT - 6, xlabel))
    drawn = ''.join(parts + [_drawn(s, x, y) for s in series])
    return figure(title, drawn, WIDTH, HEIGHT)


def _drawn(s: Series, x: Callable, y: Callable) -> str:
    colour, parts = paint(s.colour), []
    if s.kind != 'dots' and len(s.points) > 1:
        path = ' '.join(f'{x(u):.1f},{y(v):.1f}' for u, v in s.points)
        dash = ' stroke-dasharray="5 4"' if s.kind == 'dash' else ''
        look = f'fill="none" stroke-width="1.8"{dash} style="stroke:{colour}"'
        parts.append(f'<polyline points="{path}" {look}/>')
    if s.kind != 'line' or len(s.points) == 1:
        for u, v in s.points:
            tip = f'<title>{text(s.name)}: {number(u)}, {number(v)}</title>'
            at = f'cx="{x(u):.1f}" cy="{y(v):.1f}" r="3" style="fill:{colour}"'
            parts.append(f'<circle {at}>{tip}</circle>')
    return ''.join(parts)


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * share or max(abs(high) * 0.05, 1e-3)
    return low - room, high + room


def legend(entries: Sequence[tuple[str, int | float]]) -> str:
    """Names with their colours, as HTML, so that they wrap."""
    items = ''.join(
        f'<li><i style="background:{paint(colour)}"></i>{text(name)}</li>'
        for name, colour in entries
    )
    return f'<ul class="legend">{items}</ul>'


def heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    title: str,
    xlabel: str = '',
    bounds: tuple[float, float] | None = None,
) -> str:
    """A grid of cells; figures stand in them where there is room, and in their tooltips always.

    Args:
      rows: their names.
      columns: theirs.
      values: [rows][columns]; None is an empty cell.
      title: above it.
      xlabel: below it.
      bounds: values of the ramp's two ends; None: the smallest and the largest.
    """
    known = [v for row in values for v in row if v is not None]
    low, high = bounds or (min(known, default=0.0), max(known, default=1.0))
    left, widest = _names_width(rows), max(map(len, columns))
    cell = min(max(64.0, LETTER * widest + 12), max(12.0, (FULL - left) / len(columns)))
    parts = []
    for i, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = ROW * i
        parts.append(label(left - 8, y + 17, name, anchor='end'))
        for j, value in enumerate(row):
            tip = f'{name}, {columns[j]}: {number(value, 4)}'
            parts.append(_cell(value, low, high, left + cell * j, y, cell, tip))
    every = math.ceil(LETTER * (1 + widest) / cell)
    floor = ROW * len(rows) + 15
    parts += [
        label(left + cell * (j + 0.5), floor, columns[j]) for j in range(0, len(columns), every)
    ]
    width = left + cell * len(columns) + 6
    if xlabel:
        parts.append(label((left + width) / 2, floor + 18, xlabel))
    return figure(title, ''.join(parts), width, floor + (26 if xlabel else 8), fixed=True)


def _cell(
    value: float | None, low: float, high: float, x: float, y: float, width: float, tip: str
) -> str:
    if value is None:
        return box(x + 1, y + 1, width - 2, ROW - 2, 'transparent', tip)
    share = 0.5 if high <= low else min(1.0, max(0.0, (value - low) / (high - low)))
    shown, said = box(x + 1, y + 1, width - 2, ROW - 2, paint(float(share)), tip), number(value, 2)
    if len(said) * LETTER + 4 > width:
        return shown
    return shown + label(x + width / 2, y + 17, said, f'on{round(10 * share)}')


def shares(bars: Sequence[Bar], title: str) -> str:
    """Bars of one length, cut by shares; a label stands in its part where there is room."""
    left, height = _names_width([bar.name for bar in bars]), ROW - 6
    parts = []
    for i, bar in enumerate(bars):
        y, x = ROW * i + 4, left
        total = sum(count for _, count, _ in bar.parts)
        parts.append(label(left - 8, y + 14, bar.name, anchor='end'))
        for name, count, colour in bar.parts:
            if not count:
                continue
            size, share = (FULL - left - 6) * count / total, f'{100 * count / total:.0f} %'
            parts.append(box(x, y, size - 1, height, paint(colour), f'{name}: {count:g} ({share})'))
            fits = [s for s in (f'{name} {share}', share) if len(s) * LETTER + 10 < size]
            ink = 'on-none' if colour is None else 'on-colour'
            parts += [label(x + 5, y + 14, s, ink, 'start') for s in fits[:1]]
            x += size
    return figure(title, ''.join(parts), FULL, ROW * len(bars) + 6)


def _names_width(names: Sequence[str]) -> float:
    return 14 + LETTER * max(map(len, names))
