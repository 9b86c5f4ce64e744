"""Command lines of the evaluation programs."""

from collections.abc import Sequence
from typing import TypeVar

import tyro

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
