"""Marks in the text of the pretraining, and what they say of each token.

The generator knows more than the text shows: which words answer, which option a number stands for,
which words ask. It encloses them in characters that are removed before the tokenizer sees them:

    ANSWER .. ANSWER   what a reader can work out; weighs more in the loss
    OPEN .. CLOSE      the text of an option; options of a document count from 1
    ASK .. ASKED       what is looked up; the next number that answers is about it
"""

import re
from typing import NamedTuple

import numpy as np

ANSWER, OPEN, CLOSE, ASK, ASKED = '\x01\x02\x03\x04\x05'
MARKS = f'[{ANSWER}{OPEN}{CLOSE}{ASK}{ASKED}]'
OPTIONS, ASKS = 10, 20  # a document's numbers of options and of asks stay below these


class Encoded(NamedTuple):
    """Tokens of one or many documents, [n] each.

    Attributes:
      tokens: int32 ids; each document ends with token 0.
      weights: float32, weight of the token as a label of the loss.
      label: int32, how many tokens back the number of the option stands that this token is part
        of; 0: in no option.
      option: int32, which option of which document this token is part of; 0: none.
      wanted: int32, the option whose number is the next token; 0: the next token is none.
      asked: int32, which ask of which document this token is part of; 0: none.
      about: int32, the ask that the next token, a number, answers; 0: it is none.
    """

    tokens: np.ndarray
    weights: np.ndarray
    label: np.ndarray
    option: np.ndarray
    wanted: np.ndarray
    asked: np.ndarray
    about: np.ndarray


def plain(text: str) -> str:
    """Returns the text without marks."""
    return re.sub(MARKS, '', text)


def encode(bpe, texts: list[str], low: float, first: int = 0) -> list[Encoded]:
    """Encodes marked texts and adds the end-of-text token to each.

    Args:
      bpe: the tokenizer.
      texts: with marks.
      low: weight of the tokens outside of ANSWER marks, which weigh 1.
      first: number of the first document.
    """
    encodings = bpe.encode_batch([plain(text) for text in texts])
    pairs = zip(texts, encodings, strict=True)
    return [_document(text, each, low, d) for d, (text, each) in enumerate(pairs, first)]


def _document(text: str, encoding, low: float, d: int) -> Encoded:
    last = [end - 1 for _, end in encoding.offsets]
    answer, option, asked = (each[last] for each in _characters(text))
    label, wanted, about = np.zeros((3, len(last)), np.int32)
    if option.any():
        start = 0
        for i, token in enumerate(encoding.tokens):
            if option[i]:
                if option[i] != option[i - 1]:
                    start = _digit_before(encoding.tokens, i)
                label[i] = i - start
            elif answer[i] and token.isdigit():
                wanted[i - 1] = d * OPTIONS + int(token)
                about[i - 1] = d * ASKS + max(asked[:i])
    columns = (
        encoding.ids, np.where(answer, 1.0, low), label,
        np.where(option, d * OPTIONS + option, 0), wanted,
        np.where(asked, d * ASKS + asked, 0), about,
    )  # fmt: skip
    ends, kinds = (0, low, 0, 0, 0, 0, 0), (np.int32, np.float32, *[np.int32] * 5)
    zipped = zip(columns, ends, kinds, strict=True)
    return Encoded(*(np.append(column, end).astype(kind) for column, end, kind in zipped))


def _digit_before(tokens: list[str], i: int) -> int:
    return next(j for j in range(i - 1, -1, -1) if tokens[j].isdigit())


def _characters(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each character but the marks: in an answer?, number of its option, number of its ask."""
    found = []
    answer, option, options, ask, asks = False, 0, 0, 0, 0
    for each in text:
        if each == ANSWER:
            answer = not answer
        elif each == OPEN:
            options += 1
            option = options
        elif each == CLOSE:
            option = 0
        elif each == ASK:
            asks += 1
            ask = asks
        elif each == ASKED:
            ask = 0
        else:
            found.append((answer, option, ask))
    table = np.array(found, np.int32).reshape(-1, 3)
    return table[:, 0] > 0, table[:, 1], table[:, 2]
