"""From the name of a data set to its rows: a benchmark, a joined set, or a file of one's own."""

import pathlib
from collections.abc import Callable

from train import benchmarks, files, hub, rows, texts
from train.near import nearest
from train.rows import Row

SPLITS = ('train', 'test')
JOINED = ('common_170k', 'embedded')
ASSETS = pathlib.Path(__file__).resolve().parents[1] / 'jaxpeft' / 'assets' / 'data'

Report = Callable[[str], None]


def _file(folder: pathlib.Path, task: str, split: str) -> pathlib.Path:
    return folder / f'{task}.{split}.jsonl.gz'


def _folder(data_dir: str | pathlib.Path) -> pathlib.Path:
    folder = pathlib.Path(data_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f'--data_dir {folder} is not a folder')
    return folder


def local(
    folder: str | pathlib.Path, task: str, split: str, skip: bool = False, report: Report = print
) -> list[Row]:
    """Rows of <folder>/<task>.<split>.jsonl.gz.

    Raises:
      FileNotFoundError: no such folder or file; lists what the folder holds of that split.
      ValueError: a malformed row, a damaged or empty file.
    """
    benchmark, place = benchmarks.get(task), _folder(folder)
    path = _file(place, benchmark.NAME, split)
    if not path.is_file():
        held = [t for t in benchmarks.names() if _file(place, t, split).is_file()]
        raise FileNotFoundError(f'no {path.name} in {place}; of the {split} files it holds: {held}')
    return files.read(
        path, task=benchmark.NAME, labels=benchmark.LABELS, skip_bad_rows=skip, report=report
    )


def joined(
    folder: str | pathlib.Path, split: str, skip: bool = False, report: Report = print
) -> list[Row]:
    """The files of `split` in the folder, in the order of benchmarks.EIGHT; reports the missing.

    Raises:
      FileNotFoundError: no such folder, or none of the eight files in it.
    """
    place = _folder(folder)
    held = [t for t in benchmarks.EIGHT if _file(place, t, split).is_file()]
    missing = [t for t in benchmarks.EIGHT if t not in held]
    if not held:
        raise FileNotFoundError(
            f'{place} holds no <task>.{split}.jsonl.gz; the tasks are {list(benchmarks.EIGHT)}'
        )
    if missing:
        report(
            f'{place} has no {split} file of {", ".join(missing)}: '
            f'joined the other {len(held)} tasks'
        )
    return [row for task in held for row in local(place, task, split, skip, report)]


def from_hub(task: str, split: str, skip: bool = False, report: Report = print) -> list[Row]:
    """Rows of a benchmark on the hub, converted to the LLM-Adapters text.

    Raises:
      ConnectionError: the hub cannot be reached.
      ValueError: a row that cannot be converted (set, row number, reason).
    """
    benchmark = benchmarks.get(task)
    where = f'{benchmark.HUB.repo} ({benchmark.HUB.splits[split]})'
    collector = rows.Collector(where, 'row', skip)
    for number, hub_row in enumerate(hub.download(benchmark.HUB, split), 1):
        collector.add(number, benchmarks.from_hub, benchmark.NAME, hub_row)
    return collector.finish(report)


def paths(dataset: str, split: str, data_dir: str | pathlib.Path | None) -> list[pathlib.Path]:
    """The user's own files that `load` would read; none where the hub or the package has them."""
    if is_own(dataset):
        return [pathlib.Path(dataset)]
    if data_dir is None or dataset == 'embedded':
        return []
    tasks = benchmarks.EIGHT if dataset == 'common_170k' else (benchmarks.get(dataset).NAME,)
    whole = _file(pathlib.Path(data_dir), dataset, split)
    if dataset == 'common_170k' and whole.is_file():
        return [whole]
    return [_file(pathlib.Path(data_dir), task, split) for task in tasks]


def _common(split: str, data_dir, skip: bool, report: Report) -> list[Row]:
    """common_170k: the eight train sets (one file on the hub); its test is the eight tests.

    In a folder the one file (`python -m train.data` writes it) goes before the eight, whose rows
    are fewer: its WinoGrande part repeats some.
    """
    if data_dir is not None:
        whole = _file(_folder(data_dir), 'common_170k', split)
        if whole.is_file():
            return files.read(whole, skip_bad_rows=skip, report=report)
        return joined(data_dir, split, skip, report)
    if split == 'test':
        return [row for task in benchmarks.EIGHT for row in from_hub(task, split, skip, report)]
    collector = rows.Collector(hub.COMMON_170K.repo, 'row', skip)
    for number, record in enumerate(hub.download(hub.COMMON_170K, split), 1):
        collector.add(number, rows.to_row, record, 'common_170k')
    return collector.finish(report)


def _looks_like_path(dataset: str) -> bool:
    return '/' in dataset or '\\' in dataset or '.' in dataset or pathlib.Path(dataset).exists()


def is_own(dataset: str) -> bool:
    """Whether a data set is a file of the user's own, and no name."""
    return dataset not in JOINED and not benchmarks.known(dataset)


def is_text(dataset: str) -> bool:
    """Whether a data set is plain text, for `train.texts`, and no set of questions.

    Raises:
      ValueError: a file of neither form.
    """
    return is_own(dataset) and texts.is_text(dataset)


def load(
    dataset: str,
    split: str = 'train',
    data_dir: str | pathlib.Path | None = None,
    skip_bad_rows: bool = False,
    *,
    report: Report = print,
) -> list[Row]:
    """The rows of a data set.

    Args:
      dataset: 'common_170k', 'embedded', a benchmark or alias of one, or a path to a .json, .jsonl
        (also .gz) or .parquet file with the columns instruction, input, output, answer.
      split: 'train' or 'test'; a file of one's own has no splits and is read whole.
      data_dir: a folder of local copies <task>.<split>.jsonl.gz; the hub is then never asked.
      skip_bad_rows: leave malformed rows out; how many, where and why goes to `report`.
      report: receives what a user must know (tasks missing from a folder, rows skipped).

    Raises:
      ValueError: unknown data set or split (lists the nearest), malformed row (file, line, reason),
        empty or damaged file.
      FileNotFoundError: a path, folder or file that does not exist.
      ConnectionError: the hub cannot be reached.

    Example:
      rows = load('boolq', 'train', '/data/commonsense')
    """
    if split not in SPLITS:
        raise ValueError(f'no split {split!r}; {nearest(split, SPLITS)}')
    name = str(dataset)
    if name == 'common_170k':
        return _common(split, data_dir, skip_bad_rows, report)
    if name == 'embedded':
        return joined(ASSETS, split, skip_bad_rows, report)
    if benchmarks.known(name):
        task = benchmarks.get(name).NAME
        if data_dir is not None:
            return local(data_dir, task, split, skip_bad_rows, report)
        return from_hub(task, split, skip_bad_rows, report)
    if _looks_like_path(name):
        return files.read(name, skip_bad_rows=skip_bad_rows, report=report)
    names = [*JOINED, *benchmarks.EIGHT, *benchmarks.all_names()]
    raise ValueError(
        f'no data set {name!r}; {nearest(name, dict.fromkeys(names))} '
        f'(a file of your own must end in one of '
        f'{(*files.SUFFIXES, *texts.SUFFIXES)})'
    )
