"""The table that the program prints: at most 100 columns."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 100
VERDICTS = {True: 'ok', False: 'MISSED', None: '-'}


def number(value: float | None) -> str:
    """Three significant digits: 0.974, 12.3, 1480.

    Example:
      >>> number(12.345), number(1480.2), number(None)
      ('12.3', '1480', '-')
    """
    if value is None:
        return '-'
    if value == 0 or abs(value) >= 100:
        return f'{value:.0f}'
    return f'{value:.3g}' if abs(value) >= 1 else f'{value:.3f}'


def render(entries: Sequence[Mapping[str, Any]], title: str) -> str:
    """The entries of `report.entry`, a line each, and what there is to say of them below."""
    table = Table(title=title, title_justify='left', box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column('what', overflow='fold')
    for name in ('ours', 'theirs', 'unit', 'ratio', 'spread', 'target', ''):
        table.add_column(name, justify='right', no_wrap=True)
    for one in entries:
        low, high = one['spread'] or (None, None)
        table.add_row(
            one['what'],
            number(one['ours']),
            number(one['theirs']),
            one['unit'],
            number(one['ratio']),
            f'{number(low)}-{number(high)}' if one['spread'] else '-',
            number(one['target']),
            VERDICTS[one['ok']],
        )
    text = io.StringIO()
    console = Console(file=text, width=WIDTH)
    console.print(table)
    for one in entries:
        for line in _below(one):
            console.print(line, markup=False, highlight=False)
    return text.getvalue().rstrip()


def _below(one: Mapping[str, Any]) -> list[str]:
    """Losses and gradient norms of both sides, and the row's note."""
    lines = []
    if one['differ'] is not None:
        shown = [
            f'{side} {name} {facts[0][name]:.6g}'
            for name in ('loss', 'grad_norm')
            for side, facts in one['facts'].items()
            if facts and name in facts[0]
        ]
        shown.append(f'largest difference {one["differ"]:.1e}')
        lines.append(f'{one["name"]}: {", ".join(shown)}')
    return lines + ([f'{one["name"]}: {one["note"]}'] if one['note'] else [])


def listing(rows: Sequence[Any]) -> str:
    """What `--list` prints: name, target and text of each row."""
    width = max(len(row.name) for row in rows)
    return '\n'.join(f'{row.name:{width}}  <= {number(row.target):>5}  {row.what}' for row in rows)
