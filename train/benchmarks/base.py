"""What the benchmarks share: where a set lives on the hub, and parts of the LLM-Adapters text."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from train.rows import Row

PARQUET = (
    'refs/convert/parquet'  # the hub's own conversion, for sets whose main branch is a script:
)
# `datasets` 4 and later run no scripts, and these two sets were never converted by their owners.


class Hub(NamedTuple):
    """`datasets.load_dataset(repo, config, split=splits[split], revision=revision)`."""

    repo: str
    config: str | None
    splits: Mapping[str, str]  # ours ('train', 'test') -> the hub's
    revision: str | None = None


class Fields(NamedTuple):
    """A hub row taken apart: raw question fields, choices in order, index of the right one."""

    raw: Mapping[str, Any]
    choices: Sequence[str]
    label: int


VALIDATION = {'train': 'train', 'test': 'validation'}  # their test sets have no public labels
TEST = {'train': 'train', 'test': 'test'}


def listed(word: str, choices: Sequence[str], joint: str = ' ') -> str:
    """'Answer1: first Answer2: second ...'."""
    return joint.join(f'{word}{i}: {text}' for i, text in enumerate(choices, 1))


def row(task: str, question: str, names: Sequence[str], label: int) -> Row:
    """A Row in the LLM-Adapters form: the question, the answer format, 'the correct answer is X'.

    Raises:
      ValueError: `label` is no index into `names` (hub rows without a label carry -1).
    """
    if not 0 <= label < len(names):
        raise ValueError(
            f'label {label} is not an index into {len(names)} choices: no usable label'
        )
    answer = names[label]
    text = f'{question}Answer format: {"/".join(names)}'
    return Row(text, '', f'the correct answer is {answer}', answer, task)


def numbered(task: str, question: str, choices: Sequence[str], label: int) -> Row:
    """The form that SIQA, ARC and OpenBookQA share, with as many answers as the row has choices."""
    names = [f'answer{i}' for i in range(1, len(choices) + 1)]
    head = f'Please choose the correct answer to the question: {question}\n\n'
    return row(task, f'{head}{listed("Answer", choices)}\n\n', names, label)


def column(hub_row: Mapping[str, Any], name: str, kind: type | tuple[type, ...] = str) -> Any:
    """`hub_row[name]` of the expected kind.

    Raises:
      ValueError: the column is missing, or of another type.
    """
    if name not in hub_row:
        raise ValueError(f'no column {name!r}; the hub row has {sorted(hub_row)}')
    if not isinstance(hub_row[name], kind):
        raise ValueError(
            f'{name!r} is {hub_row[name]!r:.60}, of type {type(hub_row[name]).__name__}'
        )
    return hub_row[name]


def number(hub_row: Mapping[str, Any], name: str, first: int) -> int:
    """A label that counts from `first`, as an index; '' (an unlabelled row) is an error."""
    value = column(hub_row, name, (int, str))
    try:
        return int(value) - first  # int() also takes social_i_qa's '1\n'
    except ValueError as error:
        raise ValueError(f'{name!r} is {value!r}, not a number: no usable label') from error


def keyed(hub_row: Mapping[str, Any], question: str) -> Fields:
    """ARC and OpenBookQA: choices {'text', 'label'}, and an answerKey among the labels."""
    choices = column(hub_row, 'choices', Mapping)
    key, labels = column(hub_row, 'answerKey'), list(column(choices, 'label', (list, tuple)))
    if key not in labels:
        raise ValueError(f"'answerKey' {key!r} is not one of the labels {labels}")
    texts = column(choices, 'text', (list, tuple))
    return Fields({'question': column(hub_row, question)}, list(texts), labels.index(key))
