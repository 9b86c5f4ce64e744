"""Whether a loss depends on what comes after it: measured, with the adapter as it was trained.

A gain of a method that knows of a text's structure is a leak where the structure tells the future.
So everything from a cut on is replaced by something else, the features are computed anew, and the
losses in front of the cut are compared: they must not move.
"""

from typing import Any

import numpy as np

import jaxpeft as jp
from eval.structured.engine import Engine, eval_batcher, with_features
from eval.structured.task import Hidden, Part
from train.batching import Shape

TOLERANCE = 1e-4  # nats; the same program on another suffix: float32 gives 1e-6 at most


def check(
    engine: Engine, state: jp.State, hidden: Hidden, batch: int, shape: Shape | None = None
) -> dict[str, Any]:
    """Compares the losses of the same examples with two suffixes.

    Args:
      engine: of an arm.
      state: its trained adapter.
      hidden: the examples, whole and with another suffix.
      batch: examples at once.
      shape: of a batch; None takes the smallest.

    Returns:
      `holds`; `labels` in front of the cuts, and the `worst` and `mean` change of their loss in
      nats; `features_changed`, how many numbers of the features in front of the cuts differ;
      `behind`, the mean change behind the cuts, which shows that the suffix is another one.

    Raises:
      ValueError: where nothing is labelled in front of a cut, or nothing behind one has changed.
    """
    whole, rows, columns = _losses(engine, state, hidden.whole, batch, shape)
    other, _, _ = _losses(engine, state, hidden.replaced, batch, shape)
    change, front = np.abs(whole - other), columns < hidden.cuts[rows]
    if not front.any() or not change[~front].any():
        raise ValueError(
            'the hidden-suffix check needs labels in front of the cuts and another suffix behind '
            f'them, got {int(front.sum())} labels in front and a change of {change.sum()} behind'
        )
    moved = features_changed(hidden)
    worst = float(change[front].max())
    return {
        'holds': worst <= TOLERANCE and moved == 0,
        'rows': len(hidden.cuts),
        'labels': int(front.sum()),
        'worst': worst,
        'mean': float(change[front].mean()),
        'features_changed': moved,
        'behind': float(change[~front].mean()),
    }


def _losses(
    engine: Engine, state: jp.State, one: Part, batch: int, shape: Shape | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The loss of every label, its example and its place there."""
    found = []
    for raw in eval_batcher(one, batch).eval_batches(shape):
        losses = engine.measure.losses(state, with_features(raw, engine.features(one)))
        row, before = np.divmod(raw['select'], raw['tokens'].shape[1])
        real = raw['weights'] > 0
        found.append((losses[real], raw['rows'][row][real], before[real] + 1))
    losses, rows, columns = map(np.concatenate, zip(*found, strict=True))
    return losses, rows, columns


def features_changed(hidden: Hidden) -> int:
    """How many numbers of the features in front of the cuts differ."""
    total = 0
    for name, x in hidden.whole.features.items():
        differs = x != hidden.replaced.features[name]
        in_front = np.arange(x.shape[1])[None, :] < hidden.cuts[:, None]
        total += int((differs & in_front.reshape(*in_front.shape, *[1] * (x.ndim - 2))).sum())
    return total
