"""`python -m eval.perplexity --model_name DIR --text FILE`: perplexity of a text, by three names.

What they mean is said in `eval.windows`.
"""

import dataclasses
import hashlib
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Literal

import numpy as np

from eval import cli, files, subject, table
from eval.windows import measure as measure
from train import errors, texts
from train.results import versions
from train.rundir import write_json

DESCRIPTION = """Perplexity of a text file: of the corpus, the mean over its texts, and by position.
Every token but a text's first is scored exactly once, in a window that slides by --stride."""

DEFAULT_WINDOW = 1024  # where the model has more positions: what most published figures use


@dataclasses.dataclass(frozen=True)
class Args:
    """Which model, which text, and how it is read."""

    text: str = ''
    """The file: .txt(.gz), one text; or .jsonl(.gz), .json or .parquet with a column text."""
    ckpt: str = ''
    """Directory of a run of train.run: its adapter on its base."""
    model_name: str = ''
    """A bare base model (hub id, folder, or embedded). Beside --ckpt: where that run's base lies
    now."""
    method: Literal['', 'none'] = ''
    """none: without the adapter, of a run."""
    window: int = 0
    """Tokens in a window. 0: the model's positions, but at most 1024."""
    stride: int = 0
    """New tokens in a window; smaller gives each more context. 0: half the window."""
    split: Literal['file', 'paragraph', 'line'] = 'file'
    """What one text is: a whole file (or record), what lies between blank lines, or a line."""
    limit: int = 0
    """The first texts; 0 is all."""
    max_tokens: int = 0
    """The first tokens of each text; 0 is all."""
    batch: int = 8
    """Windows at once; no figure depends on it."""
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    """Type of a bare base's weights; a run has its own."""
    skip_bad_rows: bool = False
    """Leave malformed records out, counted and reported, instead of stopping at the first."""
    out: str = ''
    """Write the figures to this file too, as JSON."""
    progress: bool = True
    """Show a progress bar."""
    traceback: bool = False
    """Show a refused setting as a whole Python traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when it did, 2 after an error that the user can mend."""
    return errors.guard(_program, argv)


def _program(argv: list[str]) -> None:
    args = cli.parse(Args, argv, 'python -m eval.perplexity', DESCRIPTION)
    for flag, least in (('limit', 0), ('max_tokens', 0), ('batch', 1)):
        if getattr(args, flag) < least:
            raise ValueError(f'--{flag} must be at least {least}, got {getattr(args, flag)}')
    if not args.text:
        raise ValueError(f'give --text FILE, ending in one of {texts.SUFFIXES + texts.RECORDS}')
    documents = split_up(texts.load(args.text, args.skip_bad_rows), args.split)
    documents = documents[: args.limit or None]
    model = subject.load(args.ckpt, args.model_name, args.method, args.dtype)
    window = args.window or min(model.model.config.max_positions, DEFAULT_WINDOW)
    stride = args.stride or max(window // 2, 1)
    config = model.identity | {
        'texts': len(documents),
        'texts_sha256': hashlib.sha256('\0'.join(documents).encode()).hexdigest()[:16],
        'max_tokens': args.max_tokens,
        'window': window,
        'stride': stride,
    }
    if args.out:
        files.check_free(pathlib.Path(args.out), config)
    ids = model.tokenizer(documents, return_attention_mask=False, verbose=False)['input_ids']
    begun = time.perf_counter()
    found = measure(
        *(model.forward, model.state, model.params, model.model),
        [np.asarray(one[: args.max_tokens or None], np.int32) for one in ids],
        window=window,
        stride=stride,
        batch=args.batch,
        progress=args.progress,
    )
    found['seconds'] = round(time.perf_counter() - begun, 2)
    print(table.perplexity(found, f'{pathlib.Path(args.text).name}, {window} by {stride} tokens'))
    if args.out:
        write_json(pathlib.Path(args.out), {'config': config, 'versions': versions(), **found})
        print(args.out)


def split_up(documents: Sequence[str], by: str) -> list[str]:
    """Documents as texts; parts without any text are none.

    Example:
      >>> split_up(['a\\nb\\n\\nc\\n'], 'paragraph'), split_up(['a\\nb\\n\\nc\\n'], 'line')
      (['a\\nb', 'c'], ['a', 'b', 'c'])
    """
    if by == 'file':
        return list(documents)
    end = {'paragraph': r'\n\s*\n', 'line': r'\n'}[by]
    parts = (part.strip('\n') for one in documents for part in re.split(end, one))
    return [part for part in parts if part.strip()]


if __name__ == '__main__':
    sys.exit(main())
