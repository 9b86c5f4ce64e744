"""PIQA: which of two solutions reaches a physical goal."""

from train.benchmarks import base
from train.rows import Row

NAME = 'piqa'
ALIASES: tuple[str, ...] = ()
HUB = base.Hub('ybisk/piqa', None, base.VALIDATION, base.PARQUET)
ROWS = {'train': 16113, 'test': 1838}
LABELS = ('solution1', 'solution2')


def fields(hub_row) -> base.Fields:
    """Hub columns goal, sol1, sol2, label (0, 1; -1 in the unlabelled split)."""
    choices = [base.column(hub_row, 'sol1'), base.column(hub_row, 'sol2')]
    raw = {'goal': base.column(hub_row, 'goal')}
    return base.Fields(raw, choices, base.number(hub_row, 'label', 0))


def convert(raw, choices, label) -> Row:
    """raw: goal."""
    head = f'Please choose the correct solution to the question: {raw["goal"]}\n\n'
    return base.row(
        NAME, f'{head}{base.listed("Solution", choices, joint=chr(10) * 2)}\n\n', LABELS, label
    )
