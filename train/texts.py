"""Plain text to train on: files of documents, and documents as windows of tokens.

Tokens of a document = [BOS if the tokenizer begins texts with one] + text + EOS. A document is cut
into windows of `max_length` tokens that overlap by one, the context of the next window's first
target: every token but the document's first is labelled, once. A document's last window may be
shorter; windows of several documents share a row when packed, and never see each other. Nothing is
dropped but documents without any text, which are counted and reported.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from train import files
from train.encoding import Example, begin, token_ids
from train.rows import Collector, text_of
from train.windows import cut

SUFFIXES = ('.txt', '.txt.gz')
RECORDS = files.SUFFIXES  # whose records have the column:
COLUMN = 'text'
_OF_ROWS = ('instruction', 'prompt', 'output')  # any of them makes a file one of rows

Report = Callable[[str], None]


def is_text(dataset: str | pathlib.Path) -> bool:
    """Whether a data set is text: a .txt file, or one whose records have the column `text`.

    A file with the columns of rows is one of rows, whatever else it holds. A name that is no file
    of a known format is not text either: whoever loads it says what is wrong with it.

    Raises:
      ValueError: a file whose records have neither form, naming both.
    """
    path = pathlib.Path(dataset)
    if path.name.endswith(SUFFIXES):
        return True
    if not (path.name.endswith(RECORDS) and path.is_file()):
        return False
    seen = None
    for _, item in files.records(path)[1]:
        record = _mapping(item)
        if record is None:
            continue  # malformed: told, with its line, by whoever reads the file
        if any(name in record for name in _OF_ROWS):
            return False
        if COLUMN in record:
            return True
        seen = seen or sorted(map(str, record))
    if seen is None:
        return False
    raise ValueError(
        f'{path} has neither the columns instruction, input, output, answer (questions) nor the '
        f'column {COLUMN} (plain text): its first record has {seen}'
    )


def load(
    path: str | pathlib.Path, skip_bad_rows: bool = False, *, report: Report = print
) -> list[str]:
    """The documents of a file: a .txt file is one, each record with a column `text` is one.

    Args:
      path: .txt, .txt.gz, .json, .jsonl (also .gz) or .parquet.
      skip_bad_rows: leave malformed records out and `report` how many, which and why.
      report: also told how many documents without text were left out.

    Raises:
      FileNotFoundError: no such file (lists the nearest names in its folder).
      ValueError: a malformed record (file, line, reason), not UTF-8, no text at all.
    """
    path = files.find(path, SUFFIXES + RECORDS)
    if path.name.endswith(SUFFIXES):
        found = [_whole(path)]
    else:
        unit, numbered = files.records(path)
        collector = Collector(str(path), unit, skip_bad_rows)
        for number, item in numbered:
            collector.add(number, _text, item)
        found = collector.finish(report)
    texts = [text for text in found if text.strip()]
    if not texts:
        raise ValueError(f'{path} holds no text')
    if len(texts) < len(found):
        report(f'{path}: left out {len(found) - len(texts)} of {len(found)} texts, which are empty')
    return texts


def encode(
    texts: Sequence[str], tokenizer: Any, *, max_length: int, report: Report = print
) -> list[Example]:
    """Documents as windows to train on; `Example.row` numbers the windows from 0.

    Raises:
      ValueError: a tokenizer without EOS.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            'the tokenizer has no EOS token, which ends a document: set tokenizer.eos_token'
        )
    bos, end = begin(tokenizer), [tokenizer.eos_token_id]
    examples: list[Example] = []
    tokens = 0
    for ids in token_ids(tokenizer, texts):
        document = [*bos, *ids, *end]
        tokens += len(document)
        examples += cut(document, max_length, max_length)
    report(
        f'{len(texts):,} text{"s" * (len(texts) > 1)} of {tokens:,} tokens in '
        f'{len(examples):,} windows of at most {max_length}; a window counts as a row'
    )
    return [one._replace(row=number) for number, one in enumerate(examples)]


def _whole(path: pathlib.Path) -> str:
    """A text file; its line ends are made \\n, as Python reads text."""
    data = files.unzipped(path)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        where = 1 + data.count(b'\n', 0, error.start)
        raise ValueError(f'{path}, line {where}: not UTF-8: {error.reason}') from error
    return text.replace('\r\n', '\n').replace('\r', '\n')


def _mapping(item: Any) -> Mapping[str, Any] | None:
    try:
        record = files.parse(item)
    except ValueError:
        return None
    return record if isinstance(record, Mapping) else None


def _text(item: Any) -> str:
    record = files.parse(item)
    if not isinstance(record, Mapping):
        raise ValueError(
            f'a record must be an object of columns, got {type(record).__name__} {record!r:.60}'
        )
    return text_of(record, COLUMN, empty=True)
