"""Rows to token ids: the prompt, then the target, with the targets marked.

Tokens of an example = [BOS if the tokenizer begins texts with one] + prompt + target + [EOS].
Prompt and target are tokenised apart, so the tokens that evaluation feeds (`prompt_tokens`) are a
prefix of those that training saw, with the same BOS. GPT-Neo and Qwen have no BOS, Llama has.

What is too long loses tokens from the beginning of the prompt (with an input: from the beginning of
the input, then of the head). At least KEPT tokens of the question's end (and of the input's), the
'### Response:' and the answer always stay; where they do not fit, that is an error.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from train import template
from train.rows import Row

KEPT = 16  # tokens of a question's end that truncation leaves in any case
CHUNK = 4096  # rows tokenised in one call: keeps the lists of Python ints small beside the arrays


class Example(NamedTuple):
    """One row as tokens; `labelled[i]` says that token i is a target (never the first token)."""

    tokens: np.ndarray  # int32 [n]
    labelled: np.ndarray  # bool [n]
    row: int  # its number in the list that was encoded


def begin(tokenizer: Any) -> list[int]:
    """[bos] where the tokenizer itself begins a text with it, else []."""
    ids = tokenizer('')['input_ids']
    return [ids[0]] if ids and ids[0] == tokenizer.bos_token_id else []


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text alone; a text that repeats (the targets do) is tokenised once."""
    once = list(dict.fromkeys(texts))
    # verbose=False: a text longer than the model's positions would be logged, and is cut later.
    ids = tokenizer(once, add_special_tokens=False, return_attention_mask=False, verbose=False)
    known = dict(zip(once, ids['input_ids'], strict=True))
    return [known[text] for text in texts]


def continued(
    tokenizer: Any, texts: Sequence[str], endings: Sequence[str]
) -> list[tuple[list[int], list[int]]]:
    """(text, ending) as token ids of the two together, parted where the text's own end.

    A tokenizer may put a blank in front of whatever it is given (SentencePiece does): an ending
    tokenised alone then holds a token that never follows the text.
    """
    wholes = [text + ending for text, ending in zip(texts, endings, strict=True)]
    found = []
    ids = (token_ids(tokenizer, parts) for parts in (texts, wholes))
    for alone, whole in zip(*ids, strict=True):
        pairs = zip(alone, whole, strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        found.append((whole[:same], whole[same:]))
    return found


class _Prompts(NamedTuple):
    """The prompts of some rows in tokens, and how to cut one."""

    bos: list[int]
    heads: list[list[int]]
    bodies: list[list[int]]
    closing: int  # tokens of the '### Response:' that ends each body

    def least(self, i: int) -> tuple[int, int]:
        """Tokens of head and body that always stay: the last KEPT of each, and the closing."""
        return min(len(self.heads[i]), KEPT), min(len(self.bodies[i]), KEPT + self.closing)

    def needed(self, i: int) -> int:
        return len(self.bos) + sum(self.least(i))

    def cut(self, i: int, room: int) -> list[int] | None:
        """Prompt i in at most `room` tokens, or None where what must stay does not fit."""
        if self.needed(i) > room:
            return None
        head, body = self.heads[i], self.bodies[i]
        over = len(self.bos) + len(head) + len(body) - room
        from_body = min(max(over, 0), len(body) - self.least(i)[1])
        from_head = max(over - from_body, 0)
        return self.bos + head[from_head:] + body[from_body:]


def _prompts(rows: Sequence[Row], tokenizer: Any, style: str) -> _Prompts:
    heads, bodies = zip(*(template.parts(row, style) for row in rows), strict=True)
    closing = len(token_ids(tokenizer, [template.closing(style)])[0])
    return _Prompts(
        begin(tokenizer), token_ids(tokenizer, heads), token_ids(tokenizer, bodies), closing
    )


def _name(row: Row, number: int) -> str:
    return f'row {number} of {row.task!r} ({row.instruction[:60]!r}...)'


def prompt_tokens(
    rows: Sequence[Row], tokenizer: Any, *, style: str = 'flat', room: int
) -> list[np.ndarray]:
    """The prompts as evaluation feeds them: int32 arrays of at most `room` tokens.

    Equal to the beginning of what `encode` makes of the same rows, wherever neither had to cut.

    Raises:
      ValueError: `room` does not hold the end of a prompt.
    """
    if not rows:
        return []
    prompts, result = _prompts(rows, tokenizer, style), []
    for i, row in enumerate(rows):
        ids = prompts.cut(i, room)
        if ids is None:
            raise ValueError(
                f"{_name(row, i)}: the prompt's end takes {prompts.needed(i)} tokens, "
                f'there is room for {room}'
            )
        result.append(np.asarray(ids, np.int32))
    return result


def _chunk(rows, first, tokenizer, max_length, style, train_on_inputs, end) -> Iterator[Example]:
    prompts = _prompts(rows, tokenizer, style)
    targets = token_ids(tokenizer, [template.target(row.output, style) for row in rows])
    for i, row in enumerate(rows):
        answer = targets[i] + end
        prompt = prompts.cut(i, max_length - len(answer))
        if prompt is None:
            least = prompts.needed(i) + len(answer)
            raise ValueError(
                f'{_name(row, first + i)}: its answer of {len(answer)} tokens and the end of the '
                f'prompt need max_length of at least {least}, got {max_length}'
            )
        tokens = np.asarray(prompt + answer, np.int32)
        labelled = np.arange(len(tokens)) >= (1 if train_on_inputs else max(1, len(prompt)))
        yield Example(tokens, labelled, first + i)


def encode(
    rows: Sequence[Row],
    tokenizer: Any,
    *,
    max_length: int = 256,
    style: str = 'flat',
    train_on_inputs: bool = False,
    eos: bool = True,
) -> list[Example]:
    """Rows as examples to train on.

    Args:
      rows: what `load` gave; `Example.row` numbers them from 0, so encode first, then split.
      tokenizer: a Hugging Face tokenizer (its call, bos_token_id and eos_token_id are used).
      max_length: the longest example in tokens; longer ones lose the beginning of the prompt.
      style: see train.template.
      train_on_inputs: label the prompt too, all but the very first token.
      eos: end each answer with the tokenizer's EOS, so that the model learns to stop.

    Raises:
      ValueError: an answer that does not fit beside the prompt's end (names the row); no EOS.
    """
    template.check_style(style)
    if eos and tokenizer.eos_token_id is None:
        raise ValueError(
            'the tokenizer has no EOS token: set tokenizer.eos_token, or pass eos=False'
        )
    end = [tokenizer.eos_token_id] if eos else []
    return [
        example
        for first in range(0, len(rows), CHUNK)
        for example in _chunk(
            rows[first : first + CHUNK], first, tokenizer, max_length, style, train_on_inputs, end
        )
    ]
