"""OpenBookQA: four answers to an elementary science question; the book of facts is left out."""

from train.benchmarks import base
from train.rows import Row

NAME = 'openbookqa'
ALIASES = ('obqa',)
HUB = base.Hub('allenai/openbookqa', 'main', base.TEST)
ROWS = {'train': 4957, 'test': 500}
LABELS = ('answer1', 'answer2', 'answer3', 'answer4')


def fields(hub_row) -> base.Fields:
    """Hub columns question_stem, choices {text, label}, answerKey ('A' to 'D')."""
    return base.keyed(hub_row, 'question_stem')


def convert(raw, choices, label) -> Row:
    """raw: question."""
    return base.numbered(NAME, raw['question'], choices, label)
