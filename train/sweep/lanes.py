"""The members' batches: one for all where they share the seed, else side by side in one shape."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from train import feed
from train import mesh as meshes
from train.batching import Batcher, shared_shapes
from train.config import Config


class Fed(NamedTuple):
    """One update's batches.

    Attributes:
      arrays: on the devices, members in front where they differ, then micro-batches.
      tokens, examples: of each member, counted as in `train.feed.Fed`.
    """

    arrays: dict[str, jax.Array]
    tokens: list[int]
    examples: list[int]


class Lanes(NamedTuple):
    """The data of a sweep.

    Attributes:
      batchers: of the training rows: one, or one a member.
      held: of the validation rows, as many; empty without validation.
      evaluated: the shape of a validation batch.
      mesh: where batches go.
      members: how many there are.
    """

    batchers: list[Batcher]
    held: list[Batcher]
    evaluated: Any
    mesh: Mesh
    members: int

    @property
    def own(self) -> bool:
        """Whether each member has batches of its own."""
        return len(self.batchers) > 1

    @property
    def steps(self) -> int:
        """Updates in a run."""
        return self.batchers[0].steps

    def at(self, step: int, slots: Sequence[int]) -> Fed:
        """The batches of the update that follows `step` updates, of the members in `slots`."""
        chosen = self._chosen(self.batchers, slots)
        least = max(b.fits(step) for b in chosen)
        batches, tokens = [b.at(step, least) for b in chosen], [b.tokens(step) for b in chosen]
        counted = batches if self.own else batches * len(slots)
        return Fed(
            self._put(batches, axis=1),
            tokens if self.own else tokens * len(slots),
            [int((b['rows'] >= 0).sum()) for b in counted],
        )

    def validation(self, slots: Sequence[int]) -> Iterator[dict[str, jax.Array]]:
        """The validation batches of the members in `slots`."""
        chosen = self._chosen(self.held, slots)
        for batches in zip(*(b.eval_batches(self.evaluated) for b in chosen), strict=True):
            yield self._put(batches, axis=0)

    def ends_epoch(self, number: int) -> bool:
        """As `train.feed.Feed.ends_epoch`."""
        one = self.batchers[0]
        return feed.Feed(one, self.mesh, [], one.steps).ends_epoch(number)

    def _chosen(self, batchers: list[Batcher], slots: Sequence[int]) -> list[Batcher]:
        return [batchers[i] for i in slots] if self.own else batchers

    def _put(self, batches: Sequence[dict[str, np.ndarray]], axis: int) -> dict[str, jax.Array]:
        names = [name for name in batches[0] if name not in feed.HOST]
        if not self.own:
            return meshes.put(self.mesh, {name: batches[0][name] for name in names}, axis)
        stacked = {name: np.stack([b[name] for b in batches]) for name in names}
        return meshes.put(self.mesh, stacked, axis + 1)


def make(configs: Sequence[Config], examples: list, mesh: Mesh) -> Lanes:
    """Splits the examples for each member, as `train.feed` does for a run alone.

    Args:
      configs: each member's.
      examples: from `train.feed.examples`.
      mesh: where batches go.
    """
    shared = len({config.optim.seed for config in configs}) == 1
    pairs = [feed.batchers(c, examples, mesh) for c in (configs[:1] if shared else configs)]
    batchers = [batcher for batcher, _ in pairs]
    held = [one for _, one in pairs if one is not None]
    shapes = shared_shapes(batchers)[0]
    for batcher in batchers:
        batcher.shapes = shapes
    return Lanes(batchers, held, shared_shapes(held)[1] if held else None, mesh, len(configs))
