"""Time from the start of a process to its first update."""

from eval.bench.rows import Row, Subject

SPEC = {'method': 'lora', 'targets': 'attention', 'labels': 'all'}


def rows() -> list[Row]:
    """The first start, which compiles everything; the second finds it on disk. In turn."""
    return [
        _row('cold', 'first start, until update 1 can run', 15.0),
        _row('warm', 'second start, the same', 5.0),
    ]


def _row(cache: str, what: str, target: float) -> Row:
    return Row(
        f'start-{cache}', what, Subject('start', {'cache': cache, **SPEC}, fresh=True), None,
        target, 'start', rounds=2,
        note='imports, loading and compiling; `first_update` in the file has the update in it',
    )  # fmt: skip
