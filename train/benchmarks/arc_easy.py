"""ARC, the easy set: school science questions with three to five answers."""

from train.benchmarks import base
from train.rows import Row

NAME = 'ARC-Easy'
ALIASES = ('arce', 'arc_easy', 'arc_e')
HUB = base.Hub('allenai/ai2_arc', 'ARC-Easy', base.TEST)
ROWS = {'train': 2251, 'test': 2376}
LABELS = ('answer1', 'answer2', 'answer3', 'answer4', 'answer5')


def fields(hub_row) -> base.Fields:
    """Hub columns question, choices {text, label}, answerKey ('A' to 'E', or '1' to '5')."""
    return base.keyed(hub_row, 'question')


def convert(raw, choices, label) -> Row:
    """raw: question."""
    return base.numbered(NAME, raw['question'], choices, label)
