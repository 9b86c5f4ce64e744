"""Answers row by row: how they fail, and where the adapted model and its base part ways."""

import json
import math
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from eval import tasks
from eval.analysis import measures
from eval.stats import UNPARSABLE

Record = Mapping[str, Any]  # a line of eval/NAME.predictions.jsonl
KINDS = ('unparsable', 'one label', 'majority', 'other label')
CONSTANT = 0.95  # a task of whose answers this share is one label has no other failure


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a predictions file.

    Raises:
      ValueError: for a line that is no answer of `eval.run --predictions`.
    """
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        record = json.loads(line)
        missing = {'task', 'row', 'answer', 'prediction', 'correct'} - record.keys()
        if missing:
            raise ValueError(f'{path}, line {number}: no {", ".join(sorted(missing))}')
        found.append(record)
    return found


def by_task(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each task, in the order of the file."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record['task'], []).append(record)
    return found


def confidence(record: Record) -> float | None:
    """The share of the predicted label in the softmax of the scores; None for written answers.

    Example:
      >>> round(confidence({'prediction': 'a', 'scores': {'a': 0.0, 'b': 0.0}}), 6)
      0.5
    """
    scores = record.get('scores')
    if scores is None:
        return None
    top = max(scores.values())
    return math.exp(scores[record['prediction']] - top) / sum(
        math.exp(s - top) for s in scores.values()
    )


def histogram(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """Label -> {'right': how often it is the answer, 'said': how often it was given}.

    Labels of the task first, in its order; 'unparsable' last.
    """
    said = Counter(r['prediction'] or UNPARSABLE for r in records)
    right = Counter(r['answer'] for r in records)
    known = tasks.get(records[0]['task']).LABELS
    order = dict.fromkeys([*known, *sorted(said.keys() - {UNPARSABLE}), *sorted(right), UNPARSABLE])
    return {x: {'right': right[x], 'said': said[x]} for x in order if right[x] or said[x]}


def failures(records: Sequence[Record]) -> dict[str, int]:
    """How the wrong answers of one task are wrong, each counted once, by the first that fits.

    - 'unparsable': no label could be read;
    - 'one label': the model gave one label in CONSTANT of the rows or more, so that no answer of
      its says anything;
    - 'majority': it gave the commonest right answer of the task (none counts here where two are
      as common);
    - 'other label': any other.

    Returns:
      {'rows', 'right'} and the four; right and the four sum to rows.
    """
    said = Counter(r['prediction'] for r in records)
    label, times = said.most_common(1)[0]
    constant = bool(label) and times >= CONSTANT * len(records)
    majority = _majority(records)
    found = dict.fromkeys(('rows', 'right', *KINDS), 0) | {'rows': len(records)}
    for r in records:
        if r['correct']:
            kind = 'right'
        elif not r['prediction']:
            kind = 'unparsable'
        elif constant:
            kind = 'one label'
        else:
            kind = 'majority' if r['prediction'] == majority else 'other label'
        found[kind] += 1
    return found


def _majority(records: Sequence[Record]) -> str | None:
    """The commonest right answer; None where two are as common."""
    first, *others = Counter(r['answer'] for r in records).most_common(2)
    return None if others and others[0][1] == first[1] else first[0]


def pairs(base: Sequence[Record], adapted: Sequence[Record]) -> list[tuple[Record, Record]]:
    """The two models' answers to each row.

    Raises:
      ValueError: where they did not answer the same rows.
    """
    there = {(r['task'], r['row']): r for r in base}
    keys = [(r['task'], r['row']) for r in adapted]
    if set(keys) != set(there):
        raise ValueError(
            f'the base answered {len(there)} rows and the adapted model {len(keys)}, not the same'
        )
    found = [(there[key], r) for key, r in zip(keys, adapted, strict=True)]
    for before, after in found:
        if before['answer'] != after['answer']:
            raise ValueError(f'{after["task"]} row {after["row"]} has two right answers')
    return found


def transitions(both: Sequence[tuple[Record, Record]]) -> dict[str, Any]:
    """How many rows stayed right, were gained, were lost, stayed wrong; p of the sign test."""
    counts = Counter((bool(b['correct']), bool(a['correct'])) for b, a in both)
    gained, lost = counts[False, True], counts[True, False]
    return {
        'right': counts[True, True],
        'gained': gained,
        'lost': lost,
        'wrong': counts[False, False],
        'p': measures.sign_test(gained, lost),
    }


def disagreements(
    both: Sequence[tuple[Record, Record]], gained: bool, keep: int = 10
) -> list[dict[str, Any]]:
    """Rows on which exactly one of the two is right, the adapted model's surest first.

    Args:
      both: what `pairs` gave.
      gained: rows that only the adapted model has right; False: those that only the base has.
      keep: how many.

    Returns:
      {'task', 'row', 'question', 'answer', 'base', 'adapted', 'confidence_base', 'confidence'};
      written answers have no confidence and keep the order of the rows.
    """
    found = []
    for before, after in both:
        if before['correct'] == after['correct'] or bool(after['correct']) != gained:
            continue
        found.append(
            {
                'task': after['task'],
                'row': after['row'],
                'question': after.get('instruction', ''),
                'answer': after['answer'],
                'base': _said(before),
                'adapted': _said(after),
                'confidence_base': confidence(before),
                'confidence': confidence(after),
            }
        )
    found.sort(key=lambda row: -(row['confidence'] or 0.0))
    return found[:keep]


def _said(record: Record) -> str:
    if record['prediction']:
        return record['prediction']
    return f'{UNPARSABLE}: {record.get("text", "")}'
