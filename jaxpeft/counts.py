"""How many numbers train, and the table that says where."""

import math
from typing import Any

import numpy as np

from jaxpeft import base, paths, tree


def count(state: base.State) -> int:
    """The trainable numbers that act: all of `state.params`, padded ranks left out.

    Where a site's `consts['rank']` says that layers use less than the padded rank, only the used
    columns and rows are counted. Works on shapes (`jax.eval_shape`) where no rank is padded.
    """
    ranks = {p.rsplit('/', 1)[0]: v for p, v in paths.flatten(state.consts) if p.endswith('/rank')}
    return sum(
        _acting(leaf, ranks.get(p.rsplit('/', 1)[0])) for p, leaf in paths.flatten(state.params)
    )


def _acting(leaf: Any, rank: Any) -> int:
    """A leaf's numbers, or the part of them that lies in used ranks."""
    size = math.prod(leaf.shape)
    if rank is None:
        return size
    used = np.asarray(rank)
    padded = int(used.max()) if used.size else 0
    if padded not in leaf.shape[used.ndim :]:
        return size
    return size // (padded * max(used.size, 1)) * int(used.sum())


def summary(plan: tree.Plan, state: base.State, params: base.Tree) -> str:
    """A table of what is adapted: path, shape, rank, trainable numbers, total and percent.

    Args:
      plan: the plan.
      state: its state (arrays or shapes).
      params: the base's parameters (arrays or shapes).

    Returns:
      Text of at most 100 columns, one line a path.
    """
    leaves = dict(paths.flatten(params))
    rows: list[tuple[str, ...]] = [('path', 'method', 'kernel', 'rank', 'trainable')]
    for site in tree.sites(plan, params):
        one = tree.site_state(state, site)
        shape = 'x'.join(map(str, leaves[site.path].shape)) if site.view is not None else 'module'
        spec = site.method.spec
        numbers = count(base.State({'site': one.params}, {'site': one.consts}))
        rows.append((site.path, spec['name'], shape, str(spec.get('rank', '-')), f'{numbers:,}'))
    total = sum(math.prod(leaf.shape) for leaf in leaves.values())
    trained = count(state)
    return '\n'.join(
        [
            *_table(rows),
            f'{trained:,} trainable over {total:,} frozen numbers: {100 * trained / total:.4f} %',
        ]
    )


def _table(rows: list[tuple[str, ...]], width: int = 100) -> list[str]:
    """Aligned columns, the first shortened from the left where the table would be too wide."""
    rest = [max(len(row[i]) for row in rows) for i in range(1, len(rows[0]))]
    first = min(max(len(row[0]) for row in rows), width - sum(rest) - 2 * len(rest))
    lines = []
    for row in rows:
        path = row[0] if len(row[0]) <= first else '…' + row[0][-(first - 1) :]
        cells = [
            c.rjust(n) if i > 1 else c.ljust(n)
            for i, (c, n) in enumerate(zip(row[1:], rest, strict=True))
        ]
        lines.append('  '.join([path.ljust(first), *cells]).rstrip())
    lines.insert(1, '-' * max(map(len, lines)))
    return lines
