"""How many numbers train, and the table that says where."""

import math
from typing import Any

import numpy as np

from jaxpeft import base, methods, paths, ranks, tree


def count(state: base.State) -> int:
    """The trainable numbers that act: all of `state.params`, padded ranks left out.

    Where a site's `consts['rank']` says that layers use less than the padded rank, only the used
    columns and rows are counted. Works on shapes (`jax.eval_shape`) where no rank is padded.
    """
    used = {p.rsplit('/', 1)[0]: v for p, v in paths.flatten(state.consts) if p.endswith('/rank')}
    return sum(
        _acting(p.rsplit('/', 1)[-1], leaf, used.get(p.rsplit('/', 1)[0]))
        for p, leaf in paths.flatten(state.params)
    )


def _acting(name: str, leaf: Any, rank: Any) -> int:
    """A leaf's numbers, or the part of them that lies in used ranks."""
    size = math.prod(leaf.shape)
    axis = ranks.COUNTED.get(name)
    if rank is None or axis is None or leaf.ndim == rank.ndim:
        return size
    layers = max(math.prod(rank.shape), 1)
    return size // (layers * leaf.shape[axis]) * int(np.asarray(rank).sum())


def summary(plan: tree.Plan, state: base.State, params: base.Tree) -> str:
    """A table of what is adapted: path, shape, rank, trainable numbers, total and percent.

    Args:
      plan: the plan.
      state: its state (arrays, or shapes where no rank is padded).
      params: the base's parameters (arrays or shapes).

    Returns:
      Text of at most 100 columns, one line a path.
    """
    leaves = dict(paths.flatten(params))
    rows: list[tuple[str, ...]] = [('path', 'method', 'kernel', 'rank', 'trainable')]
    for site in tree.sites(plan, params):
        shape = 'shared' if site.shared else 'module'
        if site.view is not None:
            shape = 'x'.join(map(str, leaves[site.path].shape))
        spec = site.method.spec
        numbers = f'{_count_at(site, state):,}'
        rows.append((site.path, spec['name'], shape, str(spec.get('rank', '-')), numbers))
    total = sum(math.prod(leaf.shape) for leaf in leaves.values())
    trained = count(state)
    last = f'{trained:,} trainable over {total:,} frozen numbers: {100 * trained / total:.4f} %'
    idle = trained - _active(plan, state, params)
    more = [f'{trained - idle:,} of them active in each forward pass'] if idle else []
    return '\n'.join([*_table(rows), last, *more])


def _active(plan: tree.Plan, state: base.State, params: base.Tree) -> int:
    """The trainable numbers that one forward pass uses: a method may choose among its own."""
    total = 0
    for site in tree.sites(plan, params):
        name = site.method.spec['name']
        chosen = getattr(methods.module(name), 'active', None) if name in methods.names() else None
        total += _count_at(site, state) if chosen is None else chosen(site.method.spec)
    return total


def _count_at(site: tree.Site, state: base.State) -> int:
    """The trainable numbers of one site that act."""
    one = (tree.leaves_of(part, site) for part in state)
    return count(base.State(*({'site': leaves} for leaves in one)))


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
