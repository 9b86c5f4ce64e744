"""One row of a data set, what makes a record one, and what becomes of records that are not."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from train.near import nearest

COLUMNS = ('instruction', 'input', 'output', 'answer')
SHOWN = 5  # bad rows listed in a report; the rest is counted


class Row(NamedTuple):
    """One question and its answer, as LLM-Adapters writes them.

    `instruction` is the whole question text, `input` an optional context (empty in the commonsense
    sets), `output` the text to learn, `answer` the label in it, `task` the benchmark or the file.
    """

    instruction: str
    input: str
    output: str
    answer: str
    task: str


def text_of(record: Mapping, column: str, *, empty: bool = False) -> str:
    """`record[column]` as text; ValueError with the reason otherwise."""
    if column not in record:
        raise ValueError(
            f'no column {column!r}; the row has {sorted(record)}; {nearest(column, record)}'
        )
    value = record[column]
    if isinstance(value, str):
        if not empty and not value.strip():
            raise ValueError(f'{column!r} is empty')
        try:
            value.encode()  # JSON can spell half of a surrogate pair, which no tokenizer takes
        except UnicodeEncodeError as error:
            raise ValueError(f'{column!r} is not valid Unicode: {error.reason}') from error
        return value
    hint = " (write '' for none)" if column == 'input' and value is None else ''
    raise ValueError(f'{column!r} must be text, got {type(value).__name__} {value!r:.60}{hint}')


def _answer(record: Mapping) -> str:
    """The answer; a number is taken as written (LLM-Adapters' arithmetic sets have numbers)."""
    value = record.get('answer')
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return json.dumps(value)
    return text_of(record, 'answer')


def to_row(record: Any, task: str, labels: tuple[str, ...] | None = None) -> Row:
    """A record with the four columns as a Row.

    `prompt` is accepted for `instruction` (the local copies of the benchmarks call it so). With
    `labels` the record must belong to `task` and its answer must be one of them.

    Raises:
      ValueError: the reason why the record is malformed, without the place: the caller knows it.
    """
    if not isinstance(record, Mapping):
        raise ValueError(
            f'a row must be an object of columns, got {type(record).__name__} {record!r:.60}'
        )
    question = 'prompt' if 'prompt' in record and 'instruction' not in record else 'instruction'
    named = record.get('task', task)
    if not isinstance(named, str):
        raise ValueError(f"'task' must be text, got {type(named).__name__} {named!r:.60}")
    row = Row(
        text_of(record, question),
        text_of(record, 'input', empty=True),
        text_of(record, 'output'),
        _answer(record),
        named,
    )
    if labels is not None and named != task:
        raise ValueError(f"'task' is {named!r} in a file of {task!r}")
    if labels is not None and row.answer not in labels:
        raise ValueError(f"'answer' of {task} must be one of {labels}, got {row.answer!r}")
    return row


class Collector:
    """Turns records into rows; raises at the first malformed one, or counts and reports them.

    Args:
      source: what the messages call the place: a file, or a data set of the hub.
      unit: 'line' or 'row', what the numbers count (from 1).
      skip: keep going over malformed rows, for `finish` to report.
    """

    def __init__(self, source: str, unit: str, skip: bool):
        self.source, self.unit, self.skip = source, unit, skip
        self.rows: list[Any] = []
        self.bad: list[str] = []

    def add(self, number: int, make: Callable[..., Any], *args: Any) -> None:
        """Appends make(*args), whose ValueError is the reason why record `number` is malformed."""
        try:
            self.rows.append(make(*args))
        except ValueError as error:
            reason = f'{self.unit} {number}: {error}'
            if not self.skip:
                raise ValueError(
                    f'{self.source}, {reason}. '
                    'Mend the row, or leave such rows out with --skip_bad_rows'
                ) from error
            self.bad.append(reason)

    def finish(self, report: Callable[[str], None]) -> list[Any]:
        """The rows; reports what was skipped; ValueError when none is left."""
        total = len(self.rows) + len(self.bad)
        listed = '; '.join(self.bad[:SHOWN]) + ('; ...' if len(self.bad) > SHOWN else '')
        if not total:
            raise ValueError(f'{self.source} holds no rows')
        if not self.rows:
            raise ValueError(f'{self.source}: all {total} rows are malformed: {listed}')
        if self.bad:
            report(f'{self.source}: skipped {len(self.bad)} of {total} rows: {listed}')
        return self.rows
