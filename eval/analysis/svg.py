"""Pieces of inline SVG that take their colours from the page, so that light and dark both read.

Series colours are the page's --c0 to --c7; what grows from little to much is mixed from --lo to
--hi.
"""

import html
import math

COLOURS = 8
LETTER = 6.3  # width of a digit or letter at the charts' 11 px, for the room that a label needs


def text(value: object) -> str:
    """A string safe between tags and in quoted attributes.

    Example:
      >>> text('<a href="x">&')
      '&lt;a href=&quot;x&quot;&gt;&amp;'
    """
    return html.escape(str(value), quote=True)


def number(value: float | None, digits: int = 3) -> str:
    """A figure for a cell: '-' where there is none, few digits, no exponent for usual sizes.

    Example:
      >>> number(0.12345), number(None), number(1234.5), number(0.00001234), number(2.0)
      ('0.123', '-', '1,234', '1.23e-05', '2')
    """
    if value is None:
        return '-'
    if value == int(value) and abs(value) < 1e7:
        return f'{int(value):,}'
    if not 1e-3 <= abs(value) < 1e7:
        return f'{value:.{digits}g}'
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f'{value:,.{min(max(places, 0), digits + 1)}f}'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within [low, high].

    Example:
      >>> ticks(0.0, 10.0)
      [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def paint(colour: int | float | None) -> str:
    """CSS of a colour: a series' number, a share 0.0 to 1.0 of the ramp, None: grey."""
    if colour is None:
        return 'var(--none)'
    if isinstance(colour, int):
        return f'var(--c{colour % COLOURS})'
    return f'color-mix(in oklab, var(--hi) {100 * colour:.0f}%, var(--lo))'


def label(x: float, y: float, content: str, kind: str = 'tick', anchor: str = 'middle') -> str:
    """A text; `kind` is a class of the page's style."""
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {where}>{text(content)}</text>'


def line(kind: str, x0: float, y0: float, x1: float, y1: float) -> str:
    """A straight line; `kind` is a class of the page's style."""
    return f'<line class="{kind}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def box(x: float, y: float, width: float, height: float, fill: str, tip: str) -> str:
    """A rectangle with a tooltip."""
    where = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" rx="2"'
    return f'<rect {where} style="fill:{fill}"><title>{text(tip)}</title></rect>'


def figure(title: str, body: str, width: float, height: float, fixed: bool = False) -> str:
    """A chart with its title; `fixed`: of one size, and scrolls where that is too wide."""
    kind, size = (' class="fixed"', f' style="width:{width:.0f}px"') if fixed else ('', '')
    view = f'viewBox="0 0 {width:.0f} {height:.0f}"{size}'
    return (
        f'<figure{kind}><figcaption>{text(title)}</figcaption>'
        f'<svg {view} role="img" aria-label="{text(title)}">{body}</svg></figure>'
    )
