"""Local files to rows: .json, .jsonl (both also .gz) and .parquet, with errors that name the line.

JSON and JSON lines are parsed here instead of by `datasets`: its JSON loader reports a broken row
by the block of the file it was in, and casts a column whose type changes, so the line and the
reason would be lost. Parquet has a schema and no lines; it goes through `datasets`, streamed, which
leaves no copy in a cache.
"""

import codecs
import gzip
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from train.near import nearest
from train.rows import Collector, Row, to_row

SUFFIXES = ('.json', '.jsonl', '.json.gz', '.jsonl.gz', '.parquet')


def unzipped(path: pathlib.Path) -> bytes:
    """The bytes of a file, out of its gzip, without a byte-order mark.

    Raises:
      ValueError: a damaged gzip file.
    """
    data = path.read_bytes()
    try:
        data = gzip.decompress(data) if path.suffix == '.gz' else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f'{path} is not a whole gzip file ({error}): cut short or damaged; fetch it again'
        ) from error
    return data.removeprefix(codecs.BOM_UTF8)


def _json_array(path: pathlib.Path, text: str) -> Iterator[tuple[int, Any]]:
    """Elements of a JSON array with the line each begins on.

    A syntax error ends the file even with `--skip_bad_rows`: where the next row begins is a guess.
    """
    decoder, line, seen = json.JSONDecoder(), 1, 0
    at = _unblank(text, text.index('[') + 1)
    while text[at : at + 1] != ']' or seen:  # `seen`: a ']' after a comma is an error
        line, seen = line + text.count('\n', seen, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise ValueError(f'{path}, line {error.lineno}: not JSON: {error.msg}') from error
        yield line, value
        at = _unblank(text, at)
        if text[at : at + 1] == ']':
            break
        if text[at : at + 1] != ',':
            where = 1 + text.count('\n', 0, at)
            raise ValueError(f"{path}, line {where}: not JSON: expected ',' or ']' after a row")
        at = _unblank(text, at + 1)
    if text[at + 1 :].strip():
        where = 1 + text.count('\n', 0, at)
        raise ValueError(f'{path}, line {where}: not JSON: more text after the array')


def _unblank(text: str, at: int) -> int:
    """The first index from `at` that holds no JSON white space."""
    while text[at : at + 1] in (' ', '\t', '\r', '\n'):
        at += 1
    return at


def _json_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, undecoded: one that is not UTF-8 is a bad row, not a bad file."""
    for number, line in enumerate(data.split(b'\n'), 1):
        if line.strip():
            yield number, line


def parse(item: Any) -> Any:
    """A record of `records` as JSON has it; ValueError with the reason where it is none."""
    if not isinstance(item, bytes):
        return item
    try:
        return json.loads(item)
    except json.JSONDecodeError as error:
        raise ValueError(f'not JSON: {error.msg} (column {error.colno})') from error
    except UnicodeDecodeError as error:
        raise ValueError(f'not UTF-8: {error.reason} (byte {error.start})') from error


def _row(item: Any, task: str, labels: tuple[str, ...] | None) -> Row:
    return to_row(parse(item), task, labels)


def _parquet(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if pq.read_metadata(path).num_rows:  # of an empty file `datasets` says that BatchSize is 0
            table = datasets.load_dataset(
                'parquet', data_files=str(path), split='train', streaming=True
            )
            yield from enumerate(table, 1)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f'{path} is not a whole parquet file: {error}') from error


def records(path: pathlib.Path) -> tuple[str, Iterator[tuple[int, Any]]]:
    """What its numbers count, and the numbered records of a file."""
    if path.suffix == '.parquet':
        return 'row', _parquet(path)
    data = unzipped(path)
    if '.jsonl' not in path.suffixes and data.lstrip()[:1] == b'[':
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            where = 1 + data.count(b'\n', 0, error.start)
            raise ValueError(f'{path}, line {where}: not UTF-8: {error.reason}') from error
        return 'line', _json_array(path, text)
    return 'line', _json_lines(data)


def find(path: str | pathlib.Path, suffixes: tuple[str, ...]) -> pathlib.Path:
    """The path of a file that is there, of a format that is read.

    Raises:
      FileNotFoundError: no such file (lists the nearest names in its folder).
      ValueError: a folder, or a name that ends in none of `suffixes`.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(
            f'{path} is a folder; --dataset takes a file, or the name of a data set whose '
            '<task>.<split>.jsonl.gz files --data_dir holds'
        )
    if not path.is_file():
        if not path.parent.is_dir():
            raise FileNotFoundError(f'no data file {path}: there is no folder {path.parent}')
        there = sorted(p.name for p in path.parent.iterdir() if p.name.endswith(suffixes))
        raise FileNotFoundError(f'no data file {path}; {nearest(path.name, there)}')
    if not path.name.endswith(suffixes):
        raise ValueError(f'{path}: a data file must end in one of {suffixes}')
    return path


def read(
    path: str | pathlib.Path,
    *,
    task: str | None = None,
    labels: tuple[str, ...] | None = None,
    skip_bad_rows: bool = False,
    report: Callable[[str], None] = print,
) -> list[Row]:
    """All rows of a .json, .jsonl (also .gz) or .parquet file.

    Args:
      path: the file; a .json file may be one array or JSON lines.
      task: `Row.task` of rows that have no `task` column; the file's name by default.
      labels: when given, the answers allowed (the file is then a local copy of a benchmark).
      skip_bad_rows: leave malformed rows out and `report` how many, which and why.

    Raises:
      FileNotFoundError: no such file (lists the nearest names in its folder).
      ValueError: a malformed row (file, line, reason), a damaged file, another format, no rows.
    """
    path = find(path, SUFFIXES)
    unit, found = records(path)
    name = task if task is not None else path.name.split('.')[0]
    collector = Collector(str(path), unit, skip_bad_rows)
    for number, item in found:
        collector.add(number, _row, item, name, labels)
    return collector.finish(report)
