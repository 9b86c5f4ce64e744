"""Scoring labels and generating text, against straightforward transformers on the same weights."""

from eval.bench.rows import Row, Subject


def rows() -> list[Row]:
    """Labels of the eight tasks; greedy generation at batch 1 and 16."""
    scored = Row(
        'score', 'label scoring / transformers', _ours('score'),
        _theirs('score'), 0.50, 'score', agree=('score',), rounds=2,
        note='16 rows of the 8 tasks; in torch each label of each row, batches of 16, padded',
    )  # fmt: skip
    return [scored, _greedy(1), _greedy(16)]


def _greedy(batch: int) -> Row:
    return Row(
        f'generate-{batch}', f'greedy, batch {batch} / transformers',
        _ours('generate', batch), _theirs('generate', batch), 0.80, f'generate-{batch}',
        agree=('tokens',), rounds=2,
    )  # fmt: skip


def _ours(what: str, batch: int = 16) -> Subject:
    return Subject('ours_inference', {'what': what, 'batch': batch})


def _theirs(what: str, batch: int = 16) -> Subject:
    return Subject('hf_inference', {'what': what, 'batch': batch})
