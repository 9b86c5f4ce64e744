"""The test rows that an evaluation is about, task by task."""

import hashlib
from collections.abc import Callable

from train import benchmarks, data, sources
from train.rows import Row


def load(
    names: str, data_dir: str, limit: int, report: Callable[[str], None] = print
) -> dict[str, list[Row]]:
    """The rows to ask, by canonical task name, in the order of the eight.

    Args:
      names: comma-separated benchmarks or aliases, 'embedded', a file of such rows, or 'all'. A
        benchmark that is named twice is asked once.
      data_dir: folder of <task>.test.jsonl.gz files; '' asks the hub.
      limit: the first rows of each task, 0 for all.
      report: receives notes, such as tasks that the folder does not have.

    Raises:
      ValueError: an unknown name, a negative limit, or rows that are no benchmark's.
      FileNotFoundError: a folder or file that is not there.
    """
    if limit < 0:
        raise ValueError(f'--limit must be 0 (all rows) or more, got {limit}')
    found: dict[str, list[Row]] = {}
    for name in [part.strip() for part in names.split(',') if part.strip()]:
        source = 'common_170k' if name == 'all' else name
        there = set() if sources.is_own(source) else set(found)
        for row in data.load(source, 'test', data_dir or None, report=report):
            if row.task not in there:
                found.setdefault(row.task, []).append(row)
    known = [task for task in benchmarks.names() if task in found]
    if len(known) < len(found):
        other = sorted(set(found) - set(known))
        raise ValueError(f'rows of {other} are no benchmark of {benchmarks.names()}')
    if not known:
        raise ValueError(f'--dataset {names!r} names no data set')
    return {task: found[task][: limit or None] for task in known}


def digest(rows: dict[str, list[Row]]) -> str:
    """16 hex digits that stand for exactly these rows."""
    text = hashlib.sha256()
    for task in sorted(rows):
        for row in rows[task]:
            text.update(repr(tuple(row)).encode())
    return text.hexdigest()[:16]
