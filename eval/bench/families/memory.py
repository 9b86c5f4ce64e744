"""Memory: the temporaries of our methods over our LoRA's, and the peak of a fresh process."""

from eval.bench.rows import Row, Subject

LORA = {'method': 'lora', 'targets': 'attention', 'labels': 'all'}


def rows() -> list[Row]:
    """HiRA and KnowHiRA over LoRA by the compiler's own account, then the peak against PEFT."""
    counted = [
        _over_lora(method, name, count, text)
        for count, text in (('temp', 'temporaries'), ('growth', 'temporaries a layer'))
        for method, name in (('hira', 'HiRA'), ('knowhira', 'KnowHiRA'))
    ]
    peak = Row(
        'peak', 'LoRA peak memory / PEFT',
        Subject('peak', {'whose': 'ours', **LORA}, fresh=True),
        Subject('peak', {'whose': 'hf', **LORA}, fresh=True), 0.80, 'peak', unit='MB', rounds=2,
        note='greatest RSS of a fresh process minus RSS after the imports; two updates',
    )  # fmt: skip
    return [*counted, peak]


def _over_lora(method: str, name: str, count: str, text: str) -> Row:
    spec = {'targets': 'linear', 'labels': 'all', 'count': count}
    ours, lora = (Subject('counts', {'method': name, **spec}) for name in (method, 'lora'))
    return Row(
        f'{count}-{method}', f'{name} {text} / own LoRA, all linear', ours, lora,
        1.00, 'temporaries', unit='MB', rounds=1,
    )  # fmt: skip
