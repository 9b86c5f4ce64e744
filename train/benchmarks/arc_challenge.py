"""ARC, the challenge set: school science questions that retrieval and co-occurrence get wrong."""

from train.benchmarks import base
from train.rows import Row

NAME = 'ARC-Challenge'
ALIASES = ('arcc', 'arc_challenge', 'arc_c')
HUB = base.Hub('allenai/ai2_arc', 'ARC-Challenge', base.TEST)
ROWS = {'train': 1119, 'test': 1172}
LABELS = ('answer1', 'answer2', 'answer3', 'answer4', 'answer5')


def fields(hub_row) -> base.Fields:
    """Hub columns question, choices {text, label}, answerKey ('A' to 'E', or '1' to '5')."""
    return base.keyed(hub_row, 'question')


def convert(raw, choices, label) -> Row:
    """raw: question."""
    return base.numbered(NAME, raw['question'], choices, label)
