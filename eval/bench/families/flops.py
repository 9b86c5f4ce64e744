"""FLOPs of our steps against the least that the method needs (`eval.bench.floors`)."""

import itertools

from eval.bench.families.own import METHODS, TEXTS
from eval.bench.rows import Row, Subject


def rows() -> list[Row]:
    """Six methods on both choices of layers, all labelled; LoRA answer-only too."""
    every = {'lora': 'LoRA', **METHODS}
    cases = [*itertools.product(every, ('attention', 'linear'), ('all',))]
    return [_row(*case, every) for case in [*cases, ('lora', 'attention', 'answer')]]


def _row(method: str, targets: str, labels: str, names: dict[str, str]) -> Row:
    spec = {'method': method, 'targets': targets, 'labels': labels}
    end = '' if labels == 'all' else ', answers'
    return Row(
        f'flops-{method}-{targets}-{labels}',
        f'{names[method]} FLOPs / floor, {TEXTS[targets]}{end}',
        Subject('counts', {'count': 'flops', **spec}),
        Subject('counts', {'count': 'floor', **spec}),
        1.05,
        'flops',
        unit='GF',
        rounds=1,
    )
