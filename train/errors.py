"""Which errors are messages to the user, and which are defects to be shown whole."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from train import cache

MESSAGES = (ValueError, FileNotFoundError, ConnectionError, FloatingPointError)
PACKAGES = ('jaxpeft', 'train', 'eval')


def is_message(error: BaseException) -> bool:
    """Whether this project raised the error itself, to tell the user something.

    The same types raised inside a library mean that we called it wrongly.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, MESSAGES):
        return False
    module = trace.tb_frame.f_globals
    spec = module.get('__spec__')  # of a program under `python -m` the name is '__main__'
    name = spec.name if spec else module.get('__name__', '')
    return name.split('.')[0] in PACKAGES


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
    except MESSAGES as error:
        if '--traceback' in args or not is_message(error):
            raise
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0
