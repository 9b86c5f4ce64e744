"""Features of the nodes of a graph that do not depend on how the nodes are numbered.

A whole-graph view: in language modelling it is for graphs that lie wholly in the prompt.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def graph_features(
    edges: Sequence[tuple[int, int]] | np.ndarray,
    num_nodes: int,
    *,
    roots: Sequence[int] | None = None,
    steps: int = 4,
) -> dict[str, np.ndarray]:
    """Degree, BFS depth and random-walk return probabilities: features of the kind 'graph'.

        values[i] = [log(1 + deg_i) / log(1 + max deg),  1 / (1 + depth_i),  (P^k)_ii, k = 1..steps]

    with `P = D^-1 A` of the undirected graph without repeated edges. Numbering the nodes otherwise
    permutes the rows and changes nothing else. Return probabilities: Dwivedi et al. 2022, arXiv
    2110.07875. Dense: `steps` products of [N, N] matrices.

    Args:
      edges: [E, 2] pairs of nodes; direction is ignored, (i, i) is a loop.
      num_nodes: N.
      roots: where the depth is 0; all nodes of the highest degree when None, which needs no order.
        A node that no root reaches has the feature 0.
      steps: walks of up to so many steps; the encoder's `values` is 2 + steps.

    Returns:
      `values [N, 2 + steps]` float32 in [0, 1]. For a text: `values[node_of_token]` is [T, f].

    Raises:
      ValueError: for a node outside [0, num_nodes).

    Example:
      >>> path = graph_features([(0, 1), (1, 2)], 3, steps=2)
      >>> path['values'][:, 1:].tolist()
      [[0.5, 0.0, 0.5], [1.0, 0.0, 1.0], [0.5, 0.0, 0.5]]
    """
    pairs = np.asarray(edges, np.int64).reshape(-1, 2)
    starts = np.asarray([] if roots is None else roots, np.int64)
    for name, nodes in (('edges', pairs), ('roots', starts)):
        if num_nodes < 1 or (nodes.size and not 0 <= nodes.min() <= nodes.max() < num_nodes):
            raise ValueError(
                f'{name} name nodes in [0, num_nodes={num_nodes}), got {nodes.tolist()}'
            )
    adjacent = np.zeros((num_nodes, num_nodes), bool)
    adjacent[pairs[:, 0], pairs[:, 1]] = adjacent[pairs[:, 1], pairs[:, 0]] = True
    degree = adjacent.sum(axis=1)
    at_root = np.isin(np.arange(num_nodes), starts) if roots is not None else degree == degree.max()
    columns: list[Any] = [np.log1p(degree) / max(np.log1p(degree.max()), 1e-9)]
    columns.append(_closeness(adjacent, at_root))
    columns += _returns(adjacent / np.maximum(degree, 1)[:, None], steps)
    return {'values': np.stack(columns, axis=1).astype(np.float32)}


def _closeness(adjacent: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """`1 / (1 + depth)` by breadth-first search from all roots at once; 0 where none leads."""
    reached, front, depth = roots.copy(), roots, 0
    out = roots.astype(np.float64)
    while front.any():
        depth += 1
        front = adjacent[front].any(axis=0) & ~reached
        out[front] = 1.0 / (1.0 + depth)
        reached |= front
    return out


def _returns(walk: np.ndarray, steps: int) -> list[np.ndarray]:
    """The diagonals of `walk^1 .. walk^steps`."""
    power, found = np.eye(len(walk)), []
    for _ in range(steps):
        power = power @ walk
        found.append(np.diagonal(power).copy())
    return found
