"""SIGTERM: ends the program at once, inside the training loop after a checkpoint."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

MESSAGE = 'SIGTERM: stopped; the same command continues here'


class Stop:
    """Whether the program was asked to end. Use it as a context manager around the whole run.

    Args:
      code: what the program ends with.

    Attributes:
      asked: a SIGTERM has come.
    """

    def __init__(self, code: int = 0) -> None:
        self.asked, self._code = False, code
        self._deferred = False

    def __enter__(self) -> 'Stop':
        self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """While in here a SIGTERM only sets `asked`: who is in here looks at it and saves first."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.asked = True
        if not self._deferred:
            print(MESSAGE, flush=True)
            raise SystemExit(self._code)
