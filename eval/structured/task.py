"""What a structure-aware task is: examples of tokens, and features beside them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from train.encoding import Example
from train.packing import round_up

Features = dict[str, np.ndarray]


class Part(NamedTuple):
    """Some examples and their features.

    Attributes:
      examples: numbered from 0 by `row`.
      features: what `jaxpeft.structure` knows of them: arrays [N, T, ..], zeros behind an example's
        end, T at least its length.
    """

    examples: list[Example]
    features: Features


class Hidden(NamedTuple):
    """The same examples twice: as they are, and with everything from `cuts` on replaced.

    Attributes:
      whole: as they are.
      replaced: other tokens and other facts from the cut on, features computed anew; same lengths.
      cuts: [N] int, the first replaced token of each.
    """

    whole: Part
    replaced: Part
    cuts: np.ndarray


class Task(NamedTuple):
    """A task to train and measure on.

    Attributes:
      name: of the task.
      encoder: arguments of `structure_encoder` (kind and what follows it), without `dim`.
      train, valid, test: the parts; learning rates are chosen on `valid`.
      shuffled: names of the features that the control gives to other examples.
      hide: `(rows, seed) -> Hidden`, of test examples.
      accuracy: whether the share of labels that are likeliest is reported too.
      floor: the lowest loss that any model can reach, where the generator knows it.
      notes: sentences for the report.
    """

    name: str
    encoder: Mapping[str, Any]
    train: Part
    valid: Part
    test: Part
    shuffled: tuple[str, ...]
    hide: Callable[[int, int], Hidden]
    accuracy: bool = False
    floor: float | None = None
    notes: tuple[str, ...] = ()


def part(tokens: Sequence[np.ndarray], labelled: Sequence[np.ndarray], features: Features) -> Part:
    """A part of N examples from their arrays [n]; features as `Part` has them."""
    rows = zip(tokens, labelled, strict=True)
    examples = [
        Example(np.asarray(t, np.int32), np.asarray(mark, bool), number)
        for number, (t, mark) in enumerate(rows)
    ]
    return Part(examples, features)


def padded(tokens: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and segments (1, or 0 for padding) [N, T] of rows of different lengths.

    Example:
      >>> [x.shape for x in padded([np.arange(3), np.arange(9)])]
      [(2, 16), (2, 16)]
    """
    width = round_up(max(map(len, tokens)), 8)
    rows, segments = np.zeros((2, len(tokens), width), np.int32)
    for i, row in enumerate(tokens):
        rows[i, : len(row)], segments[i, : len(row)] = row, 1
    return rows, segments


def shuffled(one: Part, names: Sequence[str], seed: int) -> Part:
    """The control: the named features of each example are those of another one.

    They keep their distribution, place by place, and lose what they say of the text they stand
    beside. Between examples and not between a text's own tokens: a token that got the features of
    a later one would see the future. Donors are of about the same length.

    Raises:
      ValueError: for fewer than two examples.
    """
    count = len(one.examples)
    if count < 2:
        raise ValueError('features are shuffled between examples: at least two are needed')
    lengths = np.array([len(example.tokens) for example in one.examples])
    order = np.lexsort((np.random.default_rng(seed).random(count), lengths))
    donor = np.empty(count, int)
    donor[order] = np.append(order[1:], order[-2])  # the next longer; the longest: the one before
    changed = {name: one.features[name][donor] for name in names}
    return one._replace(features=one.features | changed)


def digest(task: Task) -> str:
    """A checksum of every token, label and feature of the task."""
    found = hashlib.sha256()
    for one in (task.train, task.valid, task.test):
        for example in one.examples:
            found.update(example.tokens.tobytes() + example.labelled.tobytes())
        for name in sorted(one.features):
            found.update(np.ascontiguousarray(one.features[name]).tobytes())
    return found.hexdigest()[:16]
