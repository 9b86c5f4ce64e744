"""Commonsense-170K: one file on the hub, or else joined from the parts that it was made of."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from train import benchmarks, hub, shelf, sources
from train.benchmarks.base import Hub
from train.rows import Row

ROWS = 170_420
# Its WinoGrande part is the six official training sets one after another, although the smaller ones
# repeat rows of the largest: 63,238 rows, of which 40,398 are the benchmark's own.
REPEATS = {
    'winogrande_l': 10_234,
    'winogrande_m': 2_558,
    'winogrande_s': 640,
    'winogrande_xs': 160,
    'winogrande_debiased': 9_248,
}

Collect = Callable[..., tuple[list[Row], int]]


class Collected(NamedTuple):
    """Rows, how many were malformed and left out, where they came from, and what is missing."""

    rows: list[Row]
    malformed: int
    source: str
    missing: tuple[str, ...] = ()


def collect(
    folder: pathlib.Path, skip: bool, fetch: Collect, say: Callable[[str], None]
) -> Collected:
    """The 170,420 rows, or as many of their parts as can be had.

    The rows are those of LLM-Adapters' file; their order is the parts' one after another, where the
    one file cannot be had (training shuffles them anyway).

    Args:
      folder: where whole files of the eight may lie already.
      skip: leave malformed rows out.
      fetch: `train.download.collect`.
      say: told where the rows come from.

    Raises:
      ConnectionError: no part can be had.
      ValueError: a malformed row, without `skip`.
    """
    try:
        found = fetch('common_170k', hub.COMMON_170K, 'train', skip, say)
        return Collected(*found, hub.COMMON_170K.repo)
    except ConnectionError as error:
        whole = error
    rows: list[Row] = []
    malformed, missing = 0, []
    for title, n, part in _parts(folder):
        try:
            more, bad = part(skip, fetch, say)
        except ConnectionError:
            missing.append(f'{title} ({n:,} rows)')
            continue
        rows, malformed = rows + more, malformed + bad
    if not rows:
        raise ConnectionError(f'{whole} Nor can any of its parts be had: {"; ".join(missing)}')
    say(f'{hub.COMMON_170K.repo} cannot be had ({_first(whole)}), so it was joined from its parts')
    return Collected(rows, malformed, 'its parts', tuple(missing))


def _parts(folder: pathlib.Path):
    """(title, published rows, how to get it) of each part."""
    for task in benchmarks.EIGHT:
        module = benchmarks.get(task)
        yield f'{task}.train', module.ROWS['train'], _of_task(folder, task, module.HUB)
    place = benchmarks.get('winogrande').HUB
    for config, n in REPEATS.items():
        there = place._replace(config=config)
        yield config, n, lambda *how, there=there: _hub('winogrande', there, *how)


def _of_task(folder: pathlib.Path, task: str, place: Hub):
    def part(skip: bool, fetch: Collect, say: Callable[[str], None]) -> tuple[list[Row], int]:
        file = f'{task}.train.jsonl.gz'
        entry = shelf.read(folder).get(file)
        if entry and not shelf.fault(folder / file, entry):
            return sources.local(folder, task, 'train'), entry.malformed
        return _hub(task, place, skip, fetch, say)

    return part


def _hub(task: str, place: Hub, skip: bool, fetch: Collect, say) -> tuple[list[Row], int]:
    return fetch(task, place, 'train', skip, say)


def _first(error: Exception) -> str:
    return str(error).split('. ')[0]
