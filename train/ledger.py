"""What a run has counted so far; saved with every checkpoint, so that a second start counts on."""

import math
from typing import NamedTuple


class Ledger(NamedTuple):
    """Counts of a run. Every number but the seconds is the same however often the run was cut.

    Attributes:
      step: updates made.
      tokens: tokens seen, padding left out.
      examples: examples seen.
      seconds: wall time of training, compilation and validation included.
      warm_tokens, warm_seconds: of the updates that did not wait for a compilation: the speed.
      best_loss, best_step: the best validation loss and the update after which it was found.
      worse: validations since then.
      stopped: early stopping has ended the run.
    """

    step: int = 0
    tokens: int = 0
    examples: int = 0
    seconds: float = 0.0
    warm_tokens: int = 0
    warm_seconds: float = 0.0
    best_loss: float | None = None
    best_step: int = 0
    worse: int = 0
    stopped: bool = False

    def after(self, tokens: int, examples: int, seconds: float, warm: bool) -> 'Ledger':
        """One more update."""
        return self._replace(
            step=self.step + 1,
            tokens=self.tokens + tokens,
            examples=self.examples + examples,
            seconds=self.seconds + seconds,
            warm_tokens=self.warm_tokens + tokens * warm,
            warm_seconds=self.warm_seconds + seconds * warm,
        )

    def judged(self, loss: float, patience: int, seconds: float) -> 'Ledger':
        """One more validation: the best so far, or one more that is not.

        Raises:
          FloatingPointError: for a loss that is not finite, which no comparison would notice.
        """
        if not math.isfinite(loss):
            raise FloatingPointError(f'the validation loss after step {self.step} is {loss}')
        spent = self._replace(seconds=self.seconds + seconds)
        if self.best_loss is None or loss < self.best_loss:
            return spent._replace(best_loss=loss, best_step=self.step, worse=0)
        worse = self.worse + 1
        return spent._replace(worse=worse, stopped=0 < patience <= worse)

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second, compilation left out; 0 before the second update."""
        return self.warm_tokens / self.warm_seconds if self.warm_seconds else 0.0
