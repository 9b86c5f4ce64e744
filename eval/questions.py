"""Rows to questions: prompt tokens and candidate outputs, tokenised as training tokenised them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from eval import tasks
from train import benchmarks, data, template
from train.rows import Row

_ALL = 1 << 30  # room for every prompt: evaluation never cuts one


class Question(NamedTuple):
    """A row of a task, ready to be asked.

    task, number: the benchmark and the row's number in it, from 0.
    row: the row itself.
    prompt: int32 [n], what the model reads.
    labels: the labels that this row offers.
    outputs: one int32 array a label, the tokens of 'the correct answer is <label>'.
    """

    task: str
    number: int
    row: Row
    prompt: np.ndarray
    labels: tuple[str, ...]
    outputs: list[np.ndarray]


def build(rows: Mapping[str, Sequence[Row]], tokenizer: Any, style: str) -> list[Question]:
    """The questions of all tasks, task after task.

    Args:
      rows: the rows of each task.
      tokenizer: of the model.
      style: prompt style of `train.template`, the one that was trained with.

    Raises:
      ValueError: a row without labels, with unknown labels, or whose answer it does not offer.
    """
    questions = []
    for task, own in rows.items():
        prompts = data.prompt_tokens(own, tokenizer, style=style, room=_ALL)
        known: dict[str, np.ndarray] = {}
        for number, (row, prompt) in enumerate(zip(own, prompts, strict=True)):
            labels = _labels(task, number, row)
            texts = [template.target(_output(row, label), style) for label in labels]
            for text in texts:
                if text not in known:
                    ids = tokenizer(text, add_special_tokens=False)['input_ids']
                    known[text] = np.asarray(ids, np.int32)
            outputs = [known[text] for text in texts]
            questions.append(Question(task, number, row, prompt, labels, outputs))
    return questions


def check_lengths(questions: Sequence[Question], positions: int, new_tokens: int | None) -> None:
    """Refuses questions that the model has no positions for.

    Args:
      questions: what is to be asked.
      positions: the model's `max_positions`.
      new_tokens: how many tokens may be generated, None when labels are scored.

    Raises:
      ValueError: the first such question, with its task, number, length and what to do. None is
        ever shortened: an evaluation without the question's end measures nothing.
    """
    for q in questions:
        more = max(map(len, q.outputs)) if new_tokens is None else new_tokens
        if len(q.prompt) + more > positions:
            advice = '' if new_tokens is None else 'lower --max_new_tokens or '
            raise ValueError(
                f'{q.task} row {q.number} has a prompt of {len(q.prompt)} tokens, and {more} more '
                f'follow; the model has {positions} positions. Evaluation never cuts a question '
                f'(--max_length is for training only): {advice}take a model with more positions'
            )


def _labels(task: str, number: int, row: Row) -> tuple[str, ...]:
    labels, known = benchmarks.options(row), tasks.get(task).LABELS
    if not set(labels) <= set(known) or row.answer not in labels:
        raise ValueError(
            f'{task} row {number}: its answer {row.answer!r} must be one of the labels that it '
            f'offers, {labels}, and those must be labels of the task, {tuple(known)}'
        )
    return labels


def _output(row: Row, label: str) -> str:
    """The row's output with another label, e.g. 'the correct answer is answer2'."""
    head, found, tail = row.output.rpartition(row.answer)
    if not found:
        raise ValueError(
            f'the output {row.output!r} of {row.task} does not hold its answer {row.answer!r}'
        )
    return head + label + tail
