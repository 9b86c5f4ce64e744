"""What a row of the table is, and the list of all of them."""

import fnmatch
import importlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from train.near import nearest

FAMILIES = ('steps', 'own', 'commonsense', 'flops', 'memory', 'start', 'inference')
TIMED = 2  # commonsense batches that a side's turn is timed on, after one that does not count
STEP = ('loss', 'grad_norm')  # what two sides of a training step must agree on


class Subject(NamedTuple):
    """Something that is measured.

    Attributes:
      side: a module of `eval.bench.sides`, or the full name of any module with its `prepare`.
      spec: what of it, as JSON.
      fresh: every repetition in a new process.
    """

    side: str
    spec: dict[str, Any]
    fresh: bool = False

    @property
    def foreign(self) -> bool:
        """Whether it is torch's, whose process starts without what ours ask for (`train.pages`)."""
        return 'hf' in (self.side.partition('_')[0], self.spec.get('whose'))

    @property
    def key(self) -> str:
        """One text for equal subjects: two rows that share one measure it once."""
        return f'{self.side} {json.dumps(self.spec, sort_keys=True)} {self.fresh}'


class Row(NamedTuple):
    """A line of the table.

    Attributes:
      name: for `--only`.
      what: the line's text.
      ours: the numerator.
      theirs: the denominator; None where the figure itself is held against the target.
      target: the ratio (or figure) must not be above it.
      group: rows of one group are measured turn by turn together.
      unit: of ours and theirs: s, ms, GB, GFLOP, ...
      agree: facts that both sides report and that must be equal to `report.TOLERANCE`.
      first: they are compared in the first repetition only.
      rounds: repetitions; None is the program's own number.
      batches: where every run is other work: how many of a turn count. A round's figure is then
        their mean, and the ratio that of all rounds together. 0: one run, and the median ratio.
      note: what the reader should know of this row.
    """

    name: str
    what: str
    ours: Subject
    theirs: Subject | None
    target: float
    group: str
    unit: str = 's'
    agree: tuple[str, ...] = ()
    first: bool = False
    rounds: int | None = None
    batches: int = 0
    note: str = ''


def every() -> list[Row]:
    """All rows, family after family."""
    found = []
    for family in FAMILIES:
        found += importlib.import_module(f'eval.bench.families.{family}').rows()
    return found


def chosen(only: Sequence[str], known: Sequence[Row]) -> list[Row]:
    """The rows whose name or group is among `only` (shell patterns); all where that is empty.

    Raises:
      ValueError: for a pattern that matches nothing, naming the nearest row.
    """
    if not only:
        return list(known)
    hits = {
        pattern: [row for row in known if _matches(row, pattern)] for pattern in dict.fromkeys(only)
    }
    for pattern, found in hits.items():
        if not found:
            names = [row.name for row in known]
            raise ValueError(f'--only {pattern}: no such row; {nearest(pattern, names)}')
    return [row for row in known if any(row in found for found in hits.values())]


def _matches(row: Row, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (row.name, row.group))
