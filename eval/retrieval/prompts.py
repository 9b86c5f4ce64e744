"""Prompts that hold one fact at a chosen depth, of a chosen number of tokens.

    kv       a list of names with numbers; the number of one of them is asked for.
    needle   a text of sentences, one of which tells a number; it is asked for.

Both end where the number must follow. Example i of a length has the same fact, the same question
and the same other lines at every depth: only the fact's place differs, so depths can be compared
pair by pair.
"""

import bisect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from eval.retrieval import words
from train.encoding import begin, continued, token_ids

TASKS = ('kv', 'needle')
LEAST_UNITS = 2  # lines besides the fact: with fewer there is no middle
_TOKENS_PER_UNIT = 3  # fewer than any line has: bounds how many lines are drawn


class Item(NamedTuple):
    """One question.

    task: 'kv' or 'needle'.
    length: tokens that prompt and answer may have together; they come as near as whole lines do.
    depth: where the fact was asked to stand, 0 the beginning and 1 the end of the lines.
    number: of the example, the same at all depths.
    at: how many lines stand before the fact, round(depth * units).
    units: lines besides the fact.
    text: the prompt.
    said: the right answer.
    prompt, answer: both as int32 tokens.
    """

    task: str
    length: int
    depth: float
    number: int
    at: int
    units: int
    text: str
    said: str
    prompt: np.ndarray
    answer: np.ndarray


class Parts(NamedTuple):
    """A prompt in parts: head, some of the units with the fact among them, tail; and the answer."""

    head: str
    units: list[str]
    fact: str
    tail: str
    answer: str

    def text(self, count: int, at: int) -> str:
        """The prompt of the first `count` units with the fact after the first `at` of them."""
        lines = [*self.units[:at], self.fact, *self.units[at:count]]
        return self.head + ''.join(lines) + self.tail


def kv(rng: np.random.Generator, count: int, haystack: Sequence[str]) -> Parts:
    """A list of `count` names with numbers, and one more that is asked for."""
    del haystack  # the list is its own
    name, *others = words.names(rng, count + 1)
    number, *rest = words.numbers(rng, len(others) + 1)
    return Parts(
        'Below is a list of names, each with its number.\n\n',
        [f'{n}: {v}\n' for n, v in zip(others, rest, strict=True)],
        f'{name}: {number}\n',
        f'\nWhat is the number of the {name} in the list above?\n{name}:',
        f' {number}',
    )


def needle(rng: np.random.Generator, count: int, haystack: Sequence[str]) -> Parts:
    """A text of `count` sentences, and one more that tells a number."""
    (name,), (number,) = words.names(rng, 1), words.numbers(rng, 1)
    text = words.stretch(rng, haystack, count) if haystack else words.sentences(rng, count)
    fact = f'The secret number of the {name} is {number}'
    return Parts(
        'Read this text. A secret number is told in it.\n\n',
        [f'{sentence} ' for sentence in text if number not in sentence],
        f'{fact}. ',
        f'\n\nWhat is the secret number of the {name}?\n{fact.removesuffix(f" {number}")}',
        f' {number}',
    )


_MAKERS = {'kv': kv, 'needle': needle}


def build(
    task: str,
    tokenizer: Any,
    lengths: Sequence[int],
    depths: Sequence[float],
    n: int,
    seed: int = 0,
    haystack: Sequence[str] = (),
) -> list[Item]:
    """The questions of a task: `n` for each length and depth, a function of the arguments alone.

    Args:
      task: 'kv' or 'needle'.
      tokenizer: of the model.
      lengths: tokens of prompt and answer together, at most.
      depths: from 0 to 1.
      n: examples for each length and depth.
      seed: of the names, numbers and lines.
      haystack: sentences that take the place of the generated ones ('needle' only).

    Returns:
      length by length, example by example, depth by depth.

    Raises:
      ValueError: an unknown task, a depth outside [0, 1], a length with no room for the question
        and two more lines (it names the least), or one that all the lines there are do not fill.
    """
    if task not in TASKS:
        raise ValueError(f'no retrieval task {task!r}; there are {", ".join(TASKS)}')
    for depth in depths:
        if not 0 <= depth <= 1:
            raise ValueError(f'a depth must be from 0 (beginning) to 1 (end), got {depth:g}')
    made: list[Item] = []
    for length in lengths:
        for number in range(n):
            rng = np.random.default_rng([seed, TASKS.index(task), length, number])
            parts = _MAKERS[task](rng, max(length // _TOKENS_PER_UNIT, LEAST_UNITS), haystack)
            made += _placed(task, tokenizer, parts, length, depths, number)
    return made


def _placed(task, tokenizer, parts: Parts, length: int, depths, number: int) -> list[Item]:
    """One example at every depth, with as many units as fit at all of them."""
    bos = begin(tokenizer)
    count = _fits(tokenizer, parts, length - len(bos))
    while True:
        places = [round(depth * count) for depth in depths]
        texts = [parts.text(count, at) for at in places]
        pairs = continued(tokenizer, texts, [parts.answer] * len(texts))
        longest = len(bos) + max(len(prompt) + len(answer) for prompt, answer in pairs)
        if longest <= length and count >= LEAST_UNITS:
            break
        if count <= LEAST_UNITS:
            raise ValueError(
                f'a context of {length} tokens has no room for a {task} question with '
                f'{LEAST_UNITS} other lines, which takes {longest}; nearest: {longest}'
            )
        count -= 1
    return [
        Item(
            task, length, depth, number, at, count, text, parts.answer,
            np.asarray([*bos, *prompt], np.int32), np.asarray(answer, np.int32),
        )
        for depth, at, text, (prompt, answer) in zip(depths, places, texts, pairs, strict=True)
    ]  # fmt: skip


def _fits(tokenizer: Any, parts: Parts, room: int) -> int:
    """How many units fit with the fact in their middle; elsewhere a token more may be needed."""

    def too_long(count: int) -> bool:
        (ids,) = token_ids(tokenizer, [parts.text(count, count // 2) + parts.answer])
        return len(ids) > room

    if not too_long(len(parts.units)):
        raise ValueError(
            f'all {len(parts.units)} lines there are do not fill a prompt of {room} tokens: give '
            'shorter --lengths, or a longer --haystack'
        )
    counts = range(LEAST_UNITS, len(parts.units) + 1)
    return max(counts.start + bisect.bisect_left(counts, True, key=too_long) - 1, LEAST_UNITS)
