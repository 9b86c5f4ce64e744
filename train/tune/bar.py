"""The progress of a search: a bar on a terminal, and a line for every trial anywhere."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from train.tune.outputs import short


class Bar:
    """Counts trials and the updates of those that train. Use it as a context manager.

    Args:
      total: trials of the search.
      steps: updates of a trial.
    """

    def __init__(self, total: int, steps: int):
        self.console = Console()
        self._total, self._steps, self._now = total, steps, 0
        self._bar = Progress(
            TextColumn('trials'),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn('{task.fields[text]}'),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task('trials', total=total, text='')

    def __enter__(self) -> 'Bar':
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, together: int, finished: int) -> None:
        """A batch begins."""
        self._now = together
        self._bar.update(self._task, completed=finished, text=f'{together} begin')

    def step(self, number: int, losses: Mapping[int, float]) -> None:
        """One update of the batch; `losses` are those of the trials that still train."""
        text = f'{len(losses)} of {self._now} train, update {number}/{self._steps}'
        self._bar.update(self._task, text=text)

    def line(self, trial: Mapping[str, Any]) -> None:
        """A trial has ended."""
        values = ', '.join(f'{name} {short(v)}' for name, v in trial['values'].items())
        loss = '' if trial['val_loss'] is None else f' {trial["val_loss"]:.4f}'
        text = (
            f'trial {trial["trial"]} {trial["outcome"]}{loss} ({trial["steps"]} updates): {values}'
        )
        self.console.print(text, highlight=False, soft_wrap=True)

    def spent(self, seconds: float, trials: int) -> None:
        """What a batch cost, compilation included."""
        if trials:
            print(f'  {trials} trials in {seconds:.1f} s', flush=True)
