"""A training step against PEFT's and qwix's, all tokens labelled unless a row says otherwise."""

from eval.bench.rows import STEP, Row, Subject


def step(side: str, method: str, targets: str, labels: str = 'all') -> Subject:
    """The step of a method on a side."""
    return Subject(side, {'method': method, 'targets': targets, 'labels': labels})


def rows() -> list[Row]:
    """LoRA on attention, the others on all linear layers; then qwix on the same Linen model."""
    peft = [
        _against_peft('lora', 'attention', 1.00),
        _against_peft('hira', 'linear', 0.80),
        _against_peft('dora', 'linear', 0.95),
        _against_peft('kasa', 'linear', 1.05),
    ]
    knowhira = Row(
        'knowhira', 'KnowHiRA / PEFT HiRA, all linear', step('ours', 'knowhira', 'linear'),
        step('hf', 'hira', 'linear'), 0.80, 'linear-all', agree=('loss',), first=True,
        note='PEFT has no KnowHiRA: ours starts at the same update, so the first losses agree',
    )  # fmt: skip
    return [*peft[:2], knowhira, *peft[2:], *_against_qwix()]


def _against_peft(method: str, targets: str, target: float) -> Row:
    names = {'lora': 'LoRA', 'hira': 'HiRA', 'dora': 'DoRA', 'kasa': 'KaSA'}
    where = 'attention' if targets == 'attention' else 'all linear'
    return Row(
        method, f'{names[method]} / PEFT, {where}', step('ours', method, targets),
        step('hf', method, targets), target, f'{targets}-all', agree=STEP,
    )  # fmt: skip


def _against_qwix() -> list[Row]:
    texts = {'all': 'all labelled', 'answer': 'answer-only'}
    targets = {'all': 1.02, 'answer': 0.85}
    return [
        Row(
            f'qwix-{labels}', f'LoRA / qwix, {text}',
            step('ours', 'lora', 'attention', labels), step('qwix', 'lora', 'attention', labels),
            targets[labels], f'attention-{labels}', agree=STEP,
        )
        for labels, text in texts.items()
    ]  # fmt: skip
