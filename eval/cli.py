"""Command lines of the evaluation programs: parsing, and errors that are messages."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from train import cache, errors

A = TypeVar('A')


def parse(kind: type[A], argv: Sequence[str], prog: str, description: str) -> A:
    """Fills the dataclass `kind` from a command line; dashes and underscores mean the same.

    Raises:
      SystemExit: by tyro, after --help (0) or for an unknown flag (2, naming the nearest).
    """
    return tyro.cli(
        kind,
        args=list(argv),
        prog=prog,
        description=description,
        config=(tyro.conf.OmitArgPrefixes,),
        use_underscores=True,
    )


def guard(program: Callable[[list[str]], Any], argv: Sequence[str] | None) -> int:
    """Runs a program on a command line.

    Returns:
      0, or 2 after an error that the user can mend, printed as one line ('error: ...'). Every other
      error is a defect and keeps its traceback; `--traceback` keeps it for all.
    """
    args = sys.argv[1:] if argv is None else list(argv)
    try:
        cache.enable()
        program(args)
    except errors.MESSAGES as error:
        if '--traceback' in args or not errors.is_message(error):
            raise
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0
