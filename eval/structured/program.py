"""What the programs of structure-aware tasks share: their flags, and the way to a report."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from eval import files
from eval.structured import arms, report, study, summary
from eval.structured.runs import Settings
from eval.structured.task import Task, digest
from train import results, rundir

# What two commands of one study may differ in: where it goes, and how much of it is asked for.
FREE = (
    *('tasks', 'methods', 'seeds', 'eval_batch', 'data_dir'),
    *('run_dir', 'out', 'progress', 'traceback'),
)


@dataclasses.dataclass(frozen=True)
class Flags:
    """Which methods, how large, how long and how often."""

    methods: tuple[str, ...] = tuple(arms.ARMS)
    """The methods: lora, hylorada, hylorada_v2, and hylorada_v2_shuffled, the control that is given
    the features of other texts."""
    rank: int = 8
    """Rank of hylorada_v2; the others get the ranks that train as many numbers."""
    seeds: int = 3
    """Runs of each method at its chosen learning rate. More can be added later."""
    steps: int = 200
    """Updates in a run."""
    batch: int = 16
    """Rows in an update."""
    lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Learning rates of the sweep on validation rows, each method its own."""
    extend: int = 2
    """Rates at most that are tried beyond the sweep's ends while the best one lies there."""
    valid_rows: int = 200
    """Validation rows, which choose the rate; 0 is all."""
    test_rows: int = 400
    """Test rows; 0 is all."""
    eval_batch: int = 32
    """Rows measured at once; no figure depends on it."""
    run_dir: str = ''
    """Folder of the study. Empty means runs/ and a name made of the configuration, so that the same
    command finds its runs again."""
    out: str = ''
    """Write the figures to this JSON file too."""
    progress: bool = True
    """Show a progress bar for each run."""
    traceback: bool = False
    """Show a refused setting as a whole Python traceback."""


def check(flags: Flags) -> None:
    """Refuses settings out of range.

    Raises:
      ValueError: naming the flag and the nearest choice.
    """
    for name in flags.methods:
        arms.get(name)
    if not flags.methods or len(set(flags.methods)) < len(flags.methods):
        raise ValueError(f'--methods takes each method once, got {" ".join(flags.methods)!r}')
    for name in ('seeds', 'steps', 'batch', 'eval_batch'):
        if getattr(flags, name) < 1:
            raise ValueError(f'--{name} must be at least 1, got {getattr(flags, name)}')
    for name in ('extend', 'valid_rows', 'test_rows'):
        if getattr(flags, name) < 0:
            raise ValueError(f'--{name} must be at least 0, got {getattr(flags, name)}')
    if not flags.lrs or min(flags.lrs) <= 0 or list(flags.lrs) != sorted(set(flags.lrs)):
        raise ValueError(
            f'--lrs takes positive rates in rising order, got {flags.lrs}; nearest: '
            f'{" ".join(f"{lr:g}" for lr in sorted({abs(lr) for lr in flags.lrs if lr}))}'
        )


def configuration(flags: Flags, base: Any) -> dict[str, Any]:
    """All that a run's figures depend on, its task's data apart, as JSON holds it."""
    given = {k: v for k, v in dataclasses.asdict(flags).items() if k not in FREE}
    return json.loads(json.dumps(given | {'base': checksum(base)}))


def checksum(params: Any) -> str:
    """Of a base's parameters."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.ascontiguousarray(np.asarray(leaf)).tobytes())
    return found.hexdigest()[:16]


def folder(flags: Flags, name: str, config: dict[str, Any]) -> pathlib.Path:
    """`--run_dir`, or one below runs/ named by the configuration; claimed for this one.

    Raises:
      ValueError: for a folder of another configuration, naming what differs.
    """
    text = json.dumps(config, sort_keys=True).encode()
    tag = hashlib.sha256(text).hexdigest()[:8]
    path = pathlib.Path(flags.run_dir or f'runs/{name}-{tag}')
    claim(path, config)
    return path


def claim(path: pathlib.Path, config: dict[str, Any]) -> None:
    """Writes config.json into a new folder; refuses one that holds another configuration."""
    saved = path / 'config.json'
    if saved.exists():
        rundir.check_same(config, json.loads(saved.read_text()), path)
    else:
        path.mkdir(parents=True, exist_ok=True)
        rundir.write_json(saved, config)


def finish(
    flags: Flags,
    name: str,
    title: str,
    model: Any,
    params: Any,
    tasks: list[Task],
    notes: list[str],
    more: dict[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Runs what is missing, then writes and prints the figures.

    Args:
      flags: of the command line.
      name: of the program, for the folder.
      title: of the report.
      model, params: the base.
      tasks: to run.
      notes: sentences for the report.
      more: facts for the result, such as the base's.
      say: prints.

    Returns:
      {"config", "versions", "notes", "tasks": {name: see `summary.of_task`}}, and `more`.
    """
    config, data = configuration(flags, params), {task.name: digest(task) for task in tasks}
    whole = config | {'methods': list(flags.methods), 'seeds': flags.seeds, 'data': data}
    if flags.out:
        files.check_free(pathlib.Path(flags.out), whole)
    place = folder(flags, name, config)
    for task in tasks:
        claim(place / task.name, {'data': data[task.name]})
    say(f'{place}')
    settings = Settings(
        flags.methods, flags.rank, flags.seeds, flags.steps, flags.batch, flags.eval_batch,
        flags.lrs, flags.extend, flags.progress,
    )  # fmt: skip
    done = {
        task.name: summary.of_task(study.run(task, model, params, settings, place, say))
        for task in tasks
    }
    found = {
        'config': whole, 'versions': results.versions(), 'notes': notes, **(more or {}),
        'tasks': done,
    }  # fmt: skip
    for path in [place / 'results.json', *([pathlib.Path(flags.out)] if flags.out else [])]:
        rundir.write_json(path, found)
    text = report.markdown(found, title)
    (place / 'report.md').write_text(text)
    report.plot(found, place / 'plots' / 'loss.png')
    say(text)
    for made in ('results.json', 'report.md', 'plots/loss.png'):
        say(f'{place / made}')
    return found
