"""SocialIQA: three answers to a question about a social situation."""

from train.benchmarks import base
from train.rows import Row

NAME = 'social_i_qa'
ALIASES = ('siqa', 'social_iqa')
HUB = base.Hub('allenai/social_i_qa', None, base.VALIDATION, base.PARQUET)
ROWS = {'train': 33410, 'test': 1954}
LABELS = ('answer1', 'answer2', 'answer3')


def fields(hub_row) -> base.Fields:
    """Hub columns context, question, answerA, answerB, answerC, label ('1', '2', '3')."""
    raw = {name: base.column(hub_row, name) for name in ('context', 'question')}
    choices = [base.column(hub_row, f'answer{letter}') for letter in 'ABC']
    return base.Fields(raw, choices, base.number(hub_row, 'label', 1))


def convert(raw, choices, label) -> Row:
    """raw: context, question."""
    return base.numbered(NAME, f'{raw["context"]} {raw["question"]}', choices, label)
