"""The run's folder: whose it is, what stands in it, and that only one process works there."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from train import checkpoint, content
from train import config as configs
from train.config import Config

CONTENT = 'content.json'  # digests of what the run is made of
WRITTEN = (
    'config.json', 'metrics.jsonl', 'results.json', 'before.json', 'report.md', 'adapter', 'plots',
    'checkpoints', 'tensorboard',
)  # fmt: skip


class Place(NamedTuple):
    """A run's folder.

    Attributes:
      folder: the path.
      resumed: it holds a checkpoint to continue from.
      results: of the finished run, or None.
    """

    folder: pathlib.Path
    resumed: bool
    results: dict[str, Any] | None


@contextlib.contextmanager
def claim(config: Config) -> Iterator[Place]:
    """Takes the run's folder for this process, and writes config.json where no run has begun.

    Raises:
      ValueError: for a folder of another configuration or other files (naming what differs), one
        of a search, one that another process works in, or one that `--resume` forbids.
    """
    folder = configs.run_dir(config)
    with lock(folder):
        yield _look(config, folder)


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
    """Takes a folder, made where it is not there, for this process alone.

    The kernel frees it when the process ends, however it ends, but not at once: of one that was
    killed with gigabytes mapped it took 0.25 s after the process could no longer be seen. So a
    folder that is taken is tried again for a little while.

    Raises:
      ValueError: where another process still works in it after that, or a file stands in its way.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(
            f'--run_dir {folder} is a file, or lies below one; give the name of a folder'
        ) from None
    with open(folder / '.lock', 'w') as file:
        for wait in (0.0, 0.25, 0.75, 1.0):
            time.sleep(wait)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
        else:
            raise ValueError(f'another process works in {folder}; wait for it or stop it')
        yield


def _look(config: Config, folder: pathlib.Path) -> Place:
    if (folder / 'tune.json').exists():
        raise ValueError(
            f'{folder} holds a search of train.tune; give another --run_dir '
            f'(--config {folder / "best.yaml"} takes its best settings there)'
        )
    saved, done = folder / 'config.json', folder / 'results.json'
    _check_free(folder, saved)
    resumed = checkpoint.exists(folder / 'checkpoints')
    # A command that was refused leaves its config.json, and no run that one could lose.
    begun = saved.exists() and (resumed or done.exists() or (folder / 'before.json').exists())
    if begun:
        check_same(configs.identity(config), json.loads(saved.read_text()), folder)
    if config.run.resume == 'never' and begun:
        raise ValueError(
            f'{folder} holds this run already, and --resume never asks for a new one: '
            'give another --run_dir, or remove the folder'
        )
    if config.run.resume == 'must' and not resumed:
        raise ValueError(f'--resume must: {folder} holds no checkpoint to continue from')
    for torn in folder.glob('.adapter.*'):  # what a process killed while it saved has left
        shutil.rmtree(torn)
    if not begun:
        (folder / CONTENT).unlink(missing_ok=True)
        write_json(saved, configs.to_dict(config))
    check_content(folder, content.of(config))
    results = json.loads(done.read_text()) if done.exists() else None
    return Place(folder, resumed, results)


def _check_free(folder: pathlib.Path, saved: pathlib.Path) -> None:
    """Refuses a folder with files of the names that a run writes, and no run's config.json."""
    there = [name for name in WRITTEN if (folder / name).exists()]
    if there and not _is_config(saved):
        raise ValueError(
            f'--run_dir {folder} holds {", ".join(there)}, and is no run: a run would write over '
            'them; give it a folder of its own'
        )


def _is_config(file: pathlib.Path) -> bool:
    """Whether a file is the config.json of a run; a model's folder has one of its own."""
    try:
        return {'method', 'dataset', 'model_name'} <= json.loads(file.read_text()).keys()
    except (OSError, ValueError, AttributeError):
        return False


def check_same(mine: dict[str, Any], there: dict[str, Any], folder: pathlib.Path) -> None:
    """Refuses a folder whose run has another configuration.

    Raises:
      ValueError: naming each key that differs, with both values.
    """
    there = {key: value for key, value in there.items() if key not in configs.FREE}
    keys = [k for k in sorted({*mine, *there}) if mine.get(k) != there.get(k)]
    flags = [k for k in keys if k != 'method_options'] or keys
    if flags:
        what = '; '.join(f'{k} is {there.get(k)!r} there, {mine.get(k)!r} here' for k in flags)
        raise ValueError(
            f'{folder} holds a run of another configuration: {what}. '
            'Give another --run_dir, or the same settings to continue it'
        )


def check_content(folder: pathlib.Path, found: Mapping[str, str]) -> None:
    """Refuses a folder whose run was made of other content, and keeps what it did not know yet.

    The folder of an earlier version knows nothing: a second start compares with its first one here.

    Args:
      folder: the run's.
      found: name -> digest, see `train.content`.

    Raises:
      ValueError: naming what has changed.
    """
    kept = folder / CONTENT
    there = json.loads(kept.read_text()) if kept.exists() else {}
    changed = content.differences(there, found)
    if changed:
        raise ValueError(
            f'{folder} holds a run with other content of the {" and the ".join(changed)} than lies '
            'there now. Give another --run_dir, or bring back what it was'
        )
    if found.keys() - there.keys():
        write_json(kept, there | dict(found))


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a whole file or none, and the folder for it where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f'.{path.name}.tmp')
    new.write_text(json.dumps(value, indent=2) + '\n')
    os.replace(new, path)
