"""The progress bar on a terminal, and a plain line every logged step anywhere else."""

import datetime
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from train.ledger import Ledger


class Progress:
    """Shows loss, speed and the time left. Use it as a context manager.

    Args:
      ledger: where the run stands.
      total: updates in the run.
    """

    def __init__(self, ledger: Ledger, total: int):
        self.console = Console()
        self._total = total
        self._validated: dict[str, float] = {}
        self._bar = RichProgress(
            TextColumn('train'),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn('{task.fields[text]}'),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task('train', total=total, completed=ledger.step, text='')

    def __enter__(self) -> 'Progress':
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, ledger: Ledger, metrics: Mapping[str, float], logged: bool) -> None:
        """One update later; away from a terminal only logged updates make a line."""
        if 'val_loss' in metrics:
            self._validated = {'val_loss': metrics['val_loss']}
        text = describe(ledger, {**self._validated, **metrics}, self._total)
        if self.console.is_terminal:
            self._bar.update(self._task, completed=ledger.step, text=text)
        elif logged:
            print(f'step {ledger.step}/{self._total}  {text}', flush=True)


def describe(ledger: Ledger, metrics: Mapping[str, float], total: int) -> str:
    """'loss 1.234  val 1.345  5,678 tokens/s  12.3 examples/s  ETA 0:01:23'."""
    speed = ledger.tokens_per_second
    parts = [f'loss {metrics["loss"]:.4f}']
    if 'val_loss' in metrics:
        parts.append(f'val {metrics["val_loss"]:.4f}')
    if speed:
        per_second = speed * ledger.examples / ledger.tokens
        left = (total - ledger.step) * ledger.examples / ledger.step / per_second
        eta = datetime.timedelta(seconds=round(left))
        parts += [f'{speed:,.0f} tokens/s', f'{per_second:,.1f} examples/s', f'ETA {eta}']
    return '  '.join(parts)
