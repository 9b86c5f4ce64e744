"""Code as language-model text: Python sources, and MBPP's reference solutions given their tasks.

A token's features come from its prefix within its window (`jaxpeft.structure.token_features`), as
`train.run` and decoding have them: a syntax tree of the whole source would tell the future.
"""

import functools
import gzip
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eval.structured.task import Features, Hidden, Part, Task, padded, part
from jaxpeft import structure
from train.embedded import stdlib
from train.encoding import begin, continued, token_ids

FILES = {'python': 'python_stdlib/python_stdlib.jsonl.gz', 'mbpp': 'mbpp/mbpp.jsonl.gz'}
SPLITS = ('train', 'valid', 'test')
CHUNK = 64  # rows whose features are computed at once, in one program
NUM_BUCKETS = 64


class Amount(NamedTuple):
    """How many rows at most of each part, and how long; 0 is all."""

    train: int
    valid: int
    test: int
    window: int


class Rows(NamedTuple):
    """Tokenised rows of one split, and which tokens are labelled."""

    tokens: list[np.ndarray]
    labelled: list[np.ndarray]


def sources(data_dir: str) -> dict[str, list[str]]:
    """Split -> Python sources, from `--data_dir` or from the running interpreter's library.

    Raises:
      FileNotFoundError: for a folder without them.
      ValueError: for records of another form.
    """
    if not data_dir:
        found: dict[str, list[str]] = {name: [] for name in SPLITS}
        for name, text in stdlib.sources():
            found[split_of(name)].append(text)
        return found
    records = _records(data_dir, 'python', ('path', 'split', 'text'))
    return {name: [r['text'] for r in records if r['split'] == name] for name in SPLITS}


def split_of(path: str) -> str:
    """The split of a file, by the hash of its path: 5 % test, 5 % valid.

    Example:
      >>> split_of('json/decoder.py')
      'train'
    """
    number = int(hashlib.sha1(path.encode()).hexdigest()[:8], 16) % 100
    return 'test' if number < 5 else 'valid' if number < 10 else 'train'


def _records(data_dir: str, name: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    path = pathlib.Path(data_dir) / FILES[name]
    if not path.is_file():
        raise FileNotFoundError(
            f'the task {name} reads {path}, which is not there; --data_dir is a folder with '
            f'{" and ".join(FILES.values())}'
        )
    with gzip.open(path, 'rt', encoding='utf-8') as lines:
        records = [json.loads(line) for line in lines]
    for number, record in enumerate(records, 1):
        missing = [key for key in keys if key not in record]
        if missing:
            raise ValueError(f'{path}, line {number}: no {", ".join(missing)}')
    return records


def python_rows(texts: Sequence[str], tokenizer: Any, newline: np.ndarray, window: int) -> Rows:
    """Sources as windows that begin with a line; every token but a file's first is labelled once.

    Args:
      texts: the sources.
      tokenizer: of the base.
      newline: [V], whether an entry of the vocabulary holds a line break.
      window: tokens of a window at most.
    """
    rows = Rows([], [])
    bos = begin(tokenizer)
    for ids in token_ids(tokenizer, texts):
        for piece in by_lines(np.asarray([*bos, *ids], np.int32), newline, window):
            rows.tokens.append(piece)
            rows.labelled.append(np.arange(len(piece)) > 0)
    return rows


def by_lines(tokens: np.ndarray, newline: np.ndarray, window: int) -> Iterable[np.ndarray]:
    """Cuts behind line breaks, so that a window's indentation can be read; a long line anywhere.

    Windows overlap by one token, the context of the next one's first target.

    Example:
      >>> [x.tolist() for x in by_lines(np.array([1, 0, 2, 2, 0, 3]), np.array([1, 0, 0, 0]), 4)]
      [[1, 0], [0, 2, 2, 0], [0, 3]]
    """
    first = 0
    while first + 1 < len(tokens):
        last = min(first + window, len(tokens))
        if last < len(tokens):
            (breaks,) = np.nonzero(newline[tokens[first + 1 : last]])
            last = first + 2 + int(breaks[-1]) if len(breaks) else last
        yield tokens[first:last]
        first = last - 1


def mbpp_rows(records: Sequence[dict[str, Any]], tokenizer: Any, window: int) -> tuple[Rows, int]:
    """Tasks as prompt and solution, the solution labelled; and how many were too long.

    The prompt is the task's text and its first test, as a doc string. A task that does not fit
    whole is left out: cut, it would be another task.

    Raises:
      ValueError: for a tokenizer without EOS.
    """
    rows, left_out = Rows([], []), 0
    if tokenizer.eos_token_id is None:
        raise ValueError('the tokenizer has no EOS token, which ends a solution: set eos_token')
    bos, end = begin(tokenizer), [tokenizer.eos_token_id]
    asks = [f'"""\n{r["text"]}\n{r["test_list"][0]}\n"""\n' for r in records]
    codes = [r['code'].replace('\r\n', '\n').strip() + '\n' for r in records]
    for ask, code in continued(tokenizer, asks, codes):
        tokens = np.asarray([*bos, *ask, *code, *end], np.int32)
        if len(tokens) > window:
            left_out += 1
            continue
        rows.tokens.append(tokens)
        rows.labelled.append(np.arange(len(tokens)) >= len(bos) + len(ask))
    return rows, left_out


def mbpp_split(task_id: int) -> str:
    """The usual splits: 1-10 prompt, 11-510 test, 511-600 valid, 601-974 train."""
    return next(
        name
        for last, name in ((10, 'prompt'), (510, 'test'), (600, 'valid'), (974, 'train'))
        if task_id <= last
    )


def make(name: str, data_dir: str, tokenizer: Any, vocab_size: int, amount: Amount) -> Task:
    """The task 'python' or 'mbpp' for one base.

    Args:
      name: of the task.
      data_dir: where its file lies.
      tokenizer: of the base.
      vocab_size: rows of the base's embedding.
      amount: how many rows and tokens.

    Raises:
      ValueError: for no tokenizer, mbpp without a data_dir, a window below 8, or an empty split.
      FileNotFoundError: for a file that is not there.
    """
    if tokenizer is None:
        raise ValueError('the code task is text, and this model has no tokenizer files')
    if amount.window < 8:
        raise ValueError(f'a window must hold at least 8 tokens, got {amount.window}')
    tables = structure.token_tables(tokenizer, vocab_size)
    notes = []
    if name == 'python':
        texts = sources(data_dir)
        newline = tables['newline'] != 0
        rows = {k: python_rows(v, tokenizer, newline, amount.window) for k, v in texts.items()}
        notes.append(f'{" / ".join(str(len(texts[k])) for k in SPLITS)} files by split of the path')
    else:
        if not data_dir:
            raise ValueError(
                'the task mbpp needs --data_dir, a folder with ' + FILES['mbpp'] + '; without one '
                'there is --tasks python, the sources of the running interpreter'
            )
        records = _records(data_dir, 'mbpp', ('text', 'code', 'task_id', 'test_list'))
        rows, out = {}, []
        for split in SPLITS:
            mine = [r for r in records if mbpp_split(r['task_id']) == split]
            rows[split], dropped = mbpp_rows(mine, tokenizer, amount.window)
            out.append(f'{dropped} of {len(mine)}')
        notes.append(
            f'tasks longer than {amount.window} tokens left out: {" / ".join(out)} '
            f'({" / ".join(SPLITS)})'
        )
    parts = {}
    for number, split in enumerate(SPLITS):
        most = getattr(amount, split)
        parts[split] = _part(_chosen(rows[split], most, number, name, split), tables)
    notes.append(_sizes(parts))
    longest = max(len(e.tokens) for one in parts.values() for e in one.examples)
    return Task(
        name,
        {'kind': 'tokens', 'max_len': max(longest, NUM_BUCKETS), 'num_buckets': NUM_BUCKETS},
        parts['train'],
        parts['valid'],
        parts['test'],
        shuffled=('ids',),
        hide=functools.partial(_hide, parts['test'], tables),
        notes=tuple(notes),
    )


def _sizes(parts: dict[str, Part]) -> str:
    count = lambda one: f'{sum(int(e.labelled.sum()) for e in one.examples):,}'
    return (
        f'rows {" / ".join(f"{len(parts[k].examples):,}" for k in SPLITS)}, labelled tokens '
        f'{" / ".join(count(parts[k]) for k in SPLITS)} (train / valid / test)'
    )


def _chosen(rows: Rows, most: int, seed: int, name: str, split: str) -> Rows:
    """At most so many rows, drawn over all files, in a drawn order."""
    count = len(rows.tokens)
    if count < 2:
        raise ValueError(f'the split {split} of {name} has {count} rows; at least 2 are needed')
    order = np.random.default_rng(seed).permutation(count)[: most or None]
    return Rows([rows.tokens[i] for i in order], [rows.labelled[i] for i in order])


def _part(rows: Rows, tables: dict[str, np.ndarray]) -> Part:
    return part(rows.tokens, rows.labelled, features(rows.tokens, tables))


def features(tokens: Sequence[np.ndarray], tables: dict[str, np.ndarray]) -> Features:
    """`token_features` of rows of different lengths, numpy [N, T, ..]."""
    grid, segments = padded(tokens)
    found: dict[str, list[np.ndarray]] = {'positions': [], 'ids': []}
    for first in range(0, len(grid), CHUNK):
        at = np.minimum(np.arange(first, first + CHUNK), len(grid) - 1)  # the last one repeats
        one = _features(tables, jnp.asarray(grid[at]), jnp.asarray(segments[at]))
        for name, x in one.items():
            found[name].append(np.asarray(x))
    return {name: np.concatenate(x)[: len(grid)] for name, x in found.items()}


@jax.jit
def _features(tables: Any, tokens: jax.Array, segments: jax.Array) -> dict[str, jax.Array]:
    return structure.token_features(tables, tokens, segments)[0]


def _hide(test: Part, tables: dict[str, np.ndarray], rows: int, seed: int) -> Hidden:
    """The first test rows, each with the tokens of another row from a drawn cut on."""
    whole = test.examples[:rows]
    rng = np.random.default_rng(seed)
    tokens, cuts = [], []
    for number, one in enumerate(whole):
        first = int(np.argmax(one.labelled)) + 1  # one label lies in front at least
        cut = int(rng.integers(first, max(len(one.tokens), first + 1)))
        other = np.resize(whole[number - 1].tokens[::-1], len(one.tokens))
        tokens.append(np.concatenate([one.tokens[:cut], other[cut:]]))
        cuts.append(cut)
    labelled = [one.labelled for one in whole]
    same = [one.tokens for one in whole]
    return Hidden(
        part(same, labelled, features(same, tables)),
        part(tokens, labelled, features(tokens, tables)),
        np.array(cuts),
    )
