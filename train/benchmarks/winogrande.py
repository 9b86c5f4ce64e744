"""WinoGrande: which of two names fills the blank."""

from train.benchmarks import base
from train.rows import Row

NAME = 'winogrande'
ALIASES = ('winog',)
HUB = base.Hub('allenai/winogrande', 'winogrande_xl', base.VALIDATION)
ROWS = {'train': 40398, 'test': 1267}
LABELS = ('option1', 'option2')


def fields(hub_row) -> base.Fields:
    """Hub columns sentence, option1, option2, answer ('1', '2'; '' in the unlabelled split)."""
    choices = [base.column(hub_row, 'option1'), base.column(hub_row, 'option2')]
    raw = {'sentence': base.column(hub_row, 'sentence')}
    return base.Fields(raw, choices, base.number(hub_row, 'answer', 1))


def convert(raw, choices, label) -> Row:
    """raw: sentence. The answer format follows the options on the same line, as in LLM-Adapters."""
    head = 'Please choose the correct answer to fill in the blank to complete the given sentence: '
    text = f'{head}{raw["sentence"]}\n\n{base.listed("Option", choices)} '
    return base.row(NAME, text, LABELS, label)
