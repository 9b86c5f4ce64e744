"""`python -m train.data`: data sets of the hub as the files that `--data_dir` reads."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from train import benchmarks, common, errors, hub, outs, rows, shelf, sources
from train.benchmarks.base import Hub
from train.near import nearest
from train.rows import Row

DESCRIPTION = """Download data sets from the Hugging Face hub and write them as TASK.SPLIT.jsonl.gz
in the LLM-Adapters schema, which --data_dir of train.run and eval.run reads. A second start checks
what is there by its sha256 and fetches only what is missing or damaged.

  python -m train.data --datasets boolq piqa --out_dir data/commonsense"""

COMMON = 'common_170k'
WIDTH = 100  # columns of the printed table


@dataclasses.dataclass(frozen=True)
class Args:
    """Which data sets, and where they go."""

    datasets: tuple[str, ...] = ('all',)
    """boolq, piqa, social_i_qa (siqa), hellaswag (hellas), winogrande (winog), ARC-Easy (arce),
    ARC-Challenge (arcc), openbookqa (obqa), common_170k, or all."""
    splits: tuple[str, ...] = ('train', 'test')
    """train, test or both."""
    out_dir: str = 'data'
    """Folder for the files, checksums.json and SHA256SUMS."""
    skip_bad_rows: bool = False
    """Leave malformed rows out, counted, instead of refusing the data set at the first."""
    out: str = ''
    """Write the report to this file, as JSON."""
    traceback: bool = False
    """Show a refused setting as a whole Python traceback."""


class Result(NamedTuple):
    """What became of one file.

    Attributes:
      state: verified (it was there and whole), fetched, incomplete or failed.
      entry: its checksums; None where it failed.
      note: what else a user must know.
    """

    state: str
    entry: shelf.Entry | None
    note: str


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when all is there, 2 when something could not be had."""
    return errors.guard(_program, argv)


def _program(argv: Sequence[str]) -> None:
    args = tyro.cli(
        Args,
        args=list(argv),
        prog='python -m train.data',
        description=DESCRIPTION,
        use_underscores=True,
    )
    asked = jobs(args.datasets, args.splits)
    config = {
        'files': [file_name(*job) for job in asked],
        'out_dir': args.out_dir,
        'skip_bad_rows': args.skip_bad_rows,
    }
    if args.out:
        outs.check_free(pathlib.Path(args.out), config)
    folder = pathlib.Path(args.out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    found = fetch(asked, folder, args.skip_bad_rows)
    show(found, folder)
    if args.out:
        report = {'config': config, 'files': {name: as_json(one) for name, one in found.items()}}
        shelf.write(pathlib.Path(args.out), (json.dumps(report, indent=2) + '\n').encode())
    lacking = [name for name, one in found.items() if one.state in ('failed', 'incomplete')]
    if lacking:
        raise ConnectionError(
            f'not all could be had: {", ".join(lacking)} (see above); '
            'the same command tries these again and keeps the others'
        )


def jobs(datasets: Sequence[str], splits: Sequence[str]) -> list[tuple[str, str]]:
    """(data set, split) of every file, each once; common_170k's test set is the eight tests.

    Raises:
      ValueError: for an unknown data set or split, with the nearest.

    Example:
      >>> jobs(['siqa,boolq'], ['train'])
      [('social_i_qa', 'train'), ('boolq', 'train')]
    """
    for split in splits:
        if split not in sources.SPLITS:
            raise ValueError(f'no split {split!r}; {nearest(split, sources.SPLITS)}')
    found: dict[tuple[str, str], None] = {}
    for name in (part.strip() for item in datasets for part in item.split(',') if part.strip()):
        if name not in ('all', COMMON) and not benchmarks.known(name):
            there = ['all', COMMON, *benchmarks.all_names()]
            raise ValueError(f'no data set {name!r}; {nearest(name, dict.fromkeys(there))}')
        eight = [(task, split) for task in benchmarks.EIGHT for split in splits]
        if name == 'all':
            found |= dict.fromkeys(eight)
        if name in ('all', COMMON):
            found |= dict.fromkeys(job for job in eight if job[1] == 'test')
            found |= dict.fromkeys((COMMON, split) for split in splits if split == 'train')
        elif name != 'all':
            found |= dict.fromkeys((benchmarks.get(name).NAME, split) for split in splits)
    return list(found)


def file_name(name: str, split: str) -> str:
    """The file that `--data_dir` reads for this split of a data set."""
    return f'{name}.{split}.jsonl.gz'


def fetch(
    asked: Sequence[tuple[str, str]],
    folder: pathlib.Path,
    skip: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Result]:
    """Brings every file into the folder; one that cannot be had does not stop the others."""
    found = {}
    for name, split in asked:
        file = file_name(name, split)
        entry = shelf.read(folder).get(file)
        fault = shelf.fault(folder / file, entry) if entry else ''
        if entry and not fault and not entry.missing:
            found[file] = Result('verified', entry, _short(name, split, entry.rows))
            continue
        if entry:
            say(f'{folder / file} {fault or "is incomplete"}: fetching it again')
        try:
            found[file] = _fetch_one(name, split, folder, skip)
        except (ConnectionError, ValueError) as error:
            if not errors.is_message(error):
                raise
            found[file] = Result('failed', None, str(error))
    return found


def _fetch_one(name: str, split: str, folder: pathlib.Path, skip: bool) -> Result:
    notes: list[str] = []
    if name == COMMON:
        had = common.collect(folder, skip, collect, notes.append)
    else:
        where = benchmarks.get(name).HUB
        had = common.Collected(*collect(name, where, split, skip, notes.append), described(where))
    path = folder / file_name(name, split)
    entry = shelf.put(
        path, had.rows, malformed=had.malformed, source=had.source, missing=had.missing
    )
    notes += [_short(name, split, entry.rows)] if not had.missing else []
    notes += [f'missing: {"; ".join(had.missing)}'] if had.missing else []
    return Result(
        'incomplete' if had.missing else 'fetched', entry, '; '.join(n for n in notes if n)
    )


def collect(
    task: str, where: Hub, split: str, skip: bool, say: Callable[[str], None]
) -> tuple[list[Row], int]:
    """The rows of a benchmark at a place on the hub, and how many were left out as malformed.

    Raises:
      ConnectionError: the hub cannot be reached, or has no such set.
      ValueError: a malformed row, without `skip`.
    """
    source = f'{described(where)}, {where.splits[split]}'
    collector = rows.Collector(source, 'row', skip)
    records = hub.download(where, split)
    for number, record in enumerate(_bar(records, f'{task} {split}'), 1):
        if task == COMMON:
            collector.add(number, rows.to_row, record, COMMON)
        else:
            collector.add(number, benchmarks.from_hub, task, record)
    return collector.finish(say), len(collector.bad)


def described(where: Hub) -> str:
    """'allenai/ai2_arc (ARC-Easy)'."""
    return where.repo + (f' ({where.config})' if where.config else '')


def _bar(records: Any, title: str) -> Any:
    console = Console(stderr=True)
    total = len(records) if hasattr(records, '__len__') else None
    return track(records, title, total, console=console, disable=not console.is_terminal)


def _short(name: str, split: str, n: int) -> str:
    """A word on a number of rows that is not the published one."""
    wanted = common.ROWS if name == COMMON else benchmarks.get(name).ROWS[split]
    return '' if n == wanted else f'{wanted:,} rows were published, {n:,} are here'


def as_json(one: Result) -> dict[str, Any]:
    """A result as the report holds it."""
    return {'state': one.state, 'note': one.note} | (one.entry._asdict() if one.entry else {})


def show(found: dict[str, Result], folder: pathlib.Path) -> None:
    """Prints the table, then every note in full."""
    table = Table(title=f'data sets in {folder}', title_justify='left')
    for title in ('data set', 'split', 'state'):
        table.add_column(title, no_wrap=True)
    for title in ('rows', 'malformed', 'bytes'):
        table.add_column(title, justify='right', no_wrap=True)
    table.add_column('labels in %')
    table.add_column('sha256', no_wrap=True)
    for file, one in found.items():
        name, split = file.removesuffix('.jsonl.gz').rsplit('.', 1)
        entry, cells = one.entry, ['-', '-', '-', '-', '-']
        if entry:
            numbers = [f'{n:,}' for n in (entry.rows, entry.malformed, entry.bytes)]
            cells = [*numbers, shares(entry.labels), entry.sha256[:8]]
        table.add_row(name, split, one.state, *cells)
    Console(width=WIDTH).print(table)
    for file, one in found.items():
        if one.note:
            print(f'{file}: {one.note}')
    if (folder / shelf.CHECKSUMS).exists():
        print(folder / shelf.CHECKSUMS)


def shares(labels: dict[str, int]) -> str:
    """{'option1': 1, 'option2': 3} -> 'option 1:25 2:75': shares in %, the common stem once.

    Example:
      >>> shares({'answer1': 1, 'answer2': 3}), shares({'false': 1, 'true': 1})
      ('answer 1:25 2:75', 'false:50 true:50')
    """
    total, parts, last = sum(labels.values()), [], ''
    for label, n in labels.items():
        stem = label.rstrip('0123456789')
        end = label[len(stem) :]
        if end and stem != last:
            parts.append(stem)
        last = stem
        parts.append(f'{end or label}:{100 * n / total:.0f}')
    return ' '.join(parts)
