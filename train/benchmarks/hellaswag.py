"""HellaSwag: which of four endings completes a caption (ActivityNet) or an instruction (WikiHow).

LLM-Adapters keeps WikiHow's markers ([header], [title], [step], [substeps]); so does this
conversion. Local copies that had them removed differ from it by those markers only.
"""

from train.benchmarks import base
from train.rows import Row

NAME = 'hellaswag'
ALIASES = ('hellas',)
HUB = base.Hub('Rowan/hellaswag', None, base.VALIDATION)
ROWS = {'train': 39905, 'test': 10042}
LABELS = ('ending1', 'ending2', 'ending3', 'ending4')


def fields(hub_row) -> base.Fields:
    """Hub columns activity_label, ctx, endings, label ('0' to '3'; '' in the unlabelled split)."""
    context = f'{base.column(hub_row, "activity_label")}: {base.column(hub_row, "ctx")}'
    endings = list(base.column(hub_row, 'endings', (list, tuple)))
    return base.Fields({'ctx_with_label': context}, endings, base.number(hub_row, 'label', 0))


def convert(raw, choices, label) -> Row:
    """raw: ctx_with_label, that is 'activity label: context'."""
    head = 'Please choose the correct ending to complete the given sentence: '
    text = f'{head}{raw["ctx_with_label"]}\n\n{base.listed("Ending", choices)}\n\n'
    return base.row(NAME, text, LABELS, label)
