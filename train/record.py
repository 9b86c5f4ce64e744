"""What a run writes while it trains: metrics.jsonl, TensorBoard files, and W&B if asked."""

import importlib.util
import json
import os
import pathlib
import time
import zlib
from typing import Any

from train import config as configs
from train.config import Config


def rewind(path: pathlib.Path, step: int) -> None:
    """Cuts what a killed process wrote after `step`, and the line that it did not finish.

    The run will write those lines again, with the same numbers.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b'\n') or json.loads(line)['step'] > step:
            break
        kept.append(line)
    new = path.with_suffix('.tmp')
    new.write_bytes(b''.join(kept))
    os.replace(new, path)


class Board:
    """Scalars in a file for TensorBoard.

    tensorboardX's SummaryWriter hands them to a thread, and its `flush` does not wait for that.

    Args:
      folder: made where it is not there.
      step: updates made already; later ones of an earlier process are hidden.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        again = folder.exists()
        folder.mkdir(exist_ok=True)
        self._events = EventsWriter(str(folder / 'events'))
        self.flush, self.close = self._events.flush, self._events.close
        if again:
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=step + 1, session_log=start))

    def add(self, name: str, value: float, step: int) -> None:
        """One number of a step."""
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        found = summary.scalar(name, value)
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=found))


class Record:
    """Writes each logged step to every place at once. Use it as a context manager.

    Args:
      folder: the run's.
      step: updates made already; later lines of an earlier process are cut.
      config: for `--wandb` and its settings.
      wandb: the module, from `find_wandb`, or None.
    """

    def __init__(self, folder: pathlib.Path, step: int, config: Config, wandb: Any = None):
        rewind(folder / 'metrics.jsonl', step)
        self._lines = open(folder / 'metrics.jsonl', 'a')  # noqa: SIM115 (closed in __exit__)
        self._board = Board(folder / 'tensorboard', step)
        self._wandb = None
        if wandb is not None:
            self._wandb = wandb.init(
                project='jaxpeft',
                id=f'{folder.name}-{zlib.crc32(str(folder.absolute()).encode()):08x}',
                resume='allow',
                config=configs.to_dict(config),
                dir=str(folder),
            )

    def __enter__(self) -> 'Record':
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def write(self, entry: dict[str, Any]) -> None:
        """One logged step; `entry['step']` is its number."""
        # Flushed, so that no checkpoint is ever newer than the lines that lead to it.
        print(json.dumps(entry), file=self._lines, flush=True)
        numbers = {k: v for k, v in entry.items() if k != 'step'}
        for name, value in numbers.items():
            self._board.add(name, value, entry['step'])
        if self._wandb is not None:
            self._wandb.log(numbers, step=entry['step'])

    def flush(self) -> None:
        """Before a checkpoint: TensorBoard's part of what leads to it is on disk too."""
        self._board.flush()


def find_wandb(asked: bool) -> Any:
    """The wandb module where it is asked for, else None.

    Raises:
      ValueError: where it is asked for and not installed.
    """
    if not asked:
        return None
    if importlib.util.find_spec('wandb') is None:
        raise ValueError('--wandb needs the wandb package: pip install wandb, then wandb login')
    import wandb

    return wandb
