"""The progress bar of an evaluation."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def rows_bar(
    title: str, total: int, shown: bool, unit: str = 'rows'
) -> Iterator[Callable[[int], None]]:
    """A bar over `total` rows on stderr; gives the function that advances it.

    Args:
      title: what is being done.
      total: rows.
      shown: without it the function does nothing.
      unit: what is counted.
    """
    if not shown:
        yield lambda rows: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn('{task.description}'),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn(unit + ', {task.fields[speed]} ' + unit + '/s'),
        progress.TimeElapsedColumn(),
        progress.TextColumn('left'),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        job = bar.add_task(title, total=total, speed='-')

        def advance(rows: int) -> None:
            bar.advance(job, rows)
            done, seconds = bar.tasks[0].completed, bar.tasks[0].elapsed
            if seconds:
                bar.update(job, speed=f'{done / seconds:.1f}')

        yield advance
