"""The steps of our methods against our own LoRA's."""

import itertools

from eval.bench.families.steps import step
from eval.bench.rows import Row

HADAMARD = {
    ('attention', 'all'): 1.15,
    ('linear', 'all'): 1.35,
    ('attention', 'answer'): 1.20,
    ('linear', 'answer'): 1.45,
}
OTHERS = 1.10
METHODS = {
    'hira': 'HiRA', 'knowhira': 'KnowHiRA', 'dora': 'DoRA', 'kasa': 'KaSA', 'hylorada': 'HyLoRADA',
}  # fmt: skip
TEXTS = {'attention': 'attention', 'linear': 'all linear', 'all': 'all', 'answer': 'answers'}


def rows() -> list[Row]:
    """Five methods, two choices of layers, all tokens labelled or the answers only."""
    return [
        _row(method, targets, labels)
        for labels, targets, method in itertools.product(
            ('all', 'answer'), ('attention', 'linear'), METHODS
        )
    ]


def _row(method: str, targets: str, labels: str) -> Row:
    hadamard = method in ('hira', 'knowhira')
    return Row(
        f'own-{method}-{targets}-{labels}',
        f'{METHODS[method]} / own LoRA, {TEXTS[targets]}, {TEXTS[labels]}',
        step('ours', method, targets, labels),
        step('ours', 'lora', targets, labels),
        HADAMARD[targets, labels] if hadamard else OTHERS,
        f'{targets}-{labels}',
    )
