"""BoolQ: a yes/no question. LLM-Adapters asks it closed-book: the passage is left out."""

from train.benchmarks import base
from train.rows import Row

NAME = 'boolq'
ALIASES: tuple[str, ...] = ()
HUB = base.Hub('google/boolq', None, base.VALIDATION)
ROWS = {'train': 9427, 'test': 3270}
LABELS = ('true', 'false')


def fields(hub_row) -> base.Fields:
    """Hub columns question (no question mark), answer (bool), passage."""
    text = base.column(hub_row, 'question')
    question = text if text.endswith('?') else f'{text}?'
    label = 0 if base.column(hub_row, 'answer', bool) else 1
    return base.Fields({'question': question}, LABELS, label)


def convert(raw, choices, label) -> Row:
    """raw: question."""
    del choices  # always true, false
    head = 'Please answer the following question with true or false, question: '
    return base.row(NAME, f'{head}{raw["question"]}\n\n', LABELS, label)
