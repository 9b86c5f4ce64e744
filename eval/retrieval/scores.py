"""Accuracy and log-likelihood of the answers, by depth and length; the middle gap."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from eval import likelihood, stats
from eval.bar import rows_bar
from eval.likelihood import Pair
from eval.retrieval.prompts import Item

THIRDS = (1 / 3, 2 / 3)  # depths between them are the middle


def measure(
    forward: Callable,
    state: Any,
    params: Any,
    model: Any,
    items: Sequence[Item],
    *,
    batch: int = 8,
    progress: bool = False,
) -> dict[str, Any]:
    """Asks every question.

    An answer is right when each of its tokens is the likeliest after the prompt and the answer's
    tokens before it: greedy decoding writes exactly the answer. Its nll is that of all its tokens
    together, in nats.

    Args:
      forward: `jp.bind(plan, model.apply)`.
      state: the adapter.
      params: the base.
      model: the Linen module.
      items: what `eval.retrieval.build` gave, for any tasks.
      batch: prompts at once; changes speed and memory only.
      progress: show a bar.

    Returns:
      {task: {"cells": [{"length", "depth", "n", "accuracy", "interval", "answer_nll", "units"}],
      "middle_gap": {length: {"accuracy", "accuracy_interval", "nll", "nll_interval"}, .., "all"}}},
      see `summarise`.
    """
    groups: dict[tuple[str, int], list[Item]] = {}
    for item in items:
        groups.setdefault((item.task, item.length), []).append(item)
    found: dict[str, dict[int, list[tuple[Item, float, bool]]]] = {}
    with rows_bar('retrieval', len(items), progress, 'prompts') as advance:
        for (task, length), own in groups.items():
            pairs = [Pair(item.prompt, item.answer) for item in own]
            scores = likelihood.loglik(
                forward, state, params, model, pairs, batch=batch, advance=advance
            )
            found.setdefault(task, {})[length] = [
                (item, -logp, hit) for item, (logp, hit) in zip(own, scores, strict=True)
            ]
    return {task: summarise(by_length) for task, by_length in found.items()}


def summarise(by_length: Mapping[int, Sequence[tuple[Item, float, bool]]]) -> dict[str, Any]:
    """The figures of a task from (item, nll, right) of every question.

        middle gap = mean(the first and the last depth) - mean(depths in the middle third)

    Positive in accuracy: facts in the middle are lost more often. (In nll it is then negative.) The
    depths of an example share their lines, so an example is one trial: the accuracy's interval is
    Newcombe's with so many trials, the nll's is Student's over the examples' own gaps.

    Returns:
      {"cells": .., "middle_gap": ..}, the latter None where no depth lies in the middle third, or
      the first or the last does.
    """
    cells, gaps = [], {}
    right: dict[int, np.ndarray] = {}
    nll: dict[int, np.ndarray] = {}
    depths: list[float] = []
    for length, own in by_length.items():
        depths = list(dict.fromkeys(item.depth for item, _, _ in own))
        units = np.mean([item.units for item, _, _ in own])
        right[length], nll[length] = _grid(own, depths, 2), _grid(own, depths, 1)
        for column, depth in enumerate(depths):
            hits = right[length][:, column]
            cells.append(
                {
                    'length': length,
                    'depth': depth,
                    'n': len(hits),
                    'accuracy': float(hits.mean()),
                    'interval': list(stats.wilson(int(hits.sum()), len(hits))),
                    'answer_nll': float(nll[length][:, column].mean()),
                    'units': float(units),
                }
            )
    columns = middle_and_ends(depths)
    if columns is None:
        return {'cells': cells, 'middle_gap': None}
    for length in by_length:
        gaps[str(length)] = _gap(right[length], nll[length], *columns)
    gaps['all'] = _gap(_joined(right), _joined(nll), *columns)
    return {'cells': cells, 'middle_gap': gaps}


def middle_and_ends(depths: Sequence[float]) -> tuple[list[int], list[int]] | None:
    """Which depths are the ends, the smallest and the largest, and which the middle third.

    Example:
      >>> middle_and_ends([0, 0.25, 0.5, 0.75, 1]), middle_and_ends([0, 1])
      (([0, 4], [2]), None)
    """
    middle = [i for i, depth in enumerate(depths) if THIRDS[0] <= depth <= THIRDS[1]]
    ends = [int(np.argmin(depths)), int(np.argmax(depths))]
    if not middle or set(ends) & set(middle):
        return None
    return ends, middle


def _grid(own: Sequence[tuple], depths: Sequence[float], which: int) -> np.ndarray:
    """[examples, depths] of one of the three."""
    rows: dict[int, dict[float, float]] = {}
    for one in own:
        rows.setdefault(one[0].number, {})[one[0].depth] = float(one[which])
    return np.array([[row[depth] for depth in depths] for row in rows.values()])


def _joined(grids: Mapping[int, np.ndarray]) -> np.ndarray:
    return np.concatenate(list(grids.values()))


def _gap(right: np.ndarray, nll: np.ndarray, ends: list[int], middle: list[int]) -> dict[str, Any]:
    p, q = float(right[:, ends].mean()), float(right[:, middle].mean())
    own = nll[:, ends].mean(axis=1) - nll[:, middle].mean(axis=1)
    interval = stats.mean_interval(own.tolist())
    return {
        'accuracy': p - q,
        'accuracy_interval': list(stats.difference(p, len(right), q, len(right))),
        'nll': float(own.mean()),
        'nll_interval': None if interval is None else list(interval),
    }
