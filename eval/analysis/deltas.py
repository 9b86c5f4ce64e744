"""What a merged adapter adds to each kernel: norm, effective rank, and how alike two runs' are.

delta = weight(state, W) - W, float32, one layer of one kernel at a time: no more than that layer's
deltas of the runs compared exist at once, whatever the model's size.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxpeft as jp
from eval.analysis import measures
from jaxpeft import paths, tree

NOISE = 1e-5  # of |W|: a delta below it is mostly the rounding of W + delta - W in float32
ROUNDING = 2.0**-24  # half a unit in the last place of float32, of a number of size 1


class Adapter(NamedTuple):
    """A run's adapter: what `jp.load_adapter` gives."""

    plan: dict[str, Any]
    state: jp.State


class Layer(NamedTuple):
    """One layer of one adapted kernel.

    path: canonical, such as 'model/layers/self_attn/q_proj/kernel'.
    number: the layer's, 0 where the kernel is in no layer.
    """

    path: str
    number: int

    @property
    def target(self) -> str:
        """The module's name, such as q_proj; 'c_fc/bias' for a leaf that is no kernel."""
        *_, module, leaf = ('', *self.path.split('/'))
        return module if leaf in ('kernel', 'embedding') else f'{module}/{leaf}'.strip('/')


class Delta(NamedTuple):
    """Figures of one delta.

    norm: |delta|_F.
    relative: |delta|_F / |W|_F; None where W is zero.
    effective_rank: None for a leaf that is no matrix, or a delta below NOISE.
    top_share: s_1^2 / sum(s^2), None as well.
    full_rank: min(n, m).
    """

    layer: Layer
    norm: float
    relative: float | None
    effective_rank: float | None
    top_share: float | None
    full_rank: int | None


class Together(NamedTuple):
    """Sums over the layers that two of K runs both adapt, float64 [K, K].

    inner: `<delta_i, delta_j>`.
    squares: `|delta_i|^2`.
    """

    inner: np.ndarray
    squares: np.ndarray

    def cosine(self) -> np.ndarray:
        """[K, K]; nan where two runs share no layer, or one has no delta there."""
        return measures.cosine(self.inner, self.squares)


class Found(NamedTuple):
    """What `compare` returns.

    deltas: for each run its figures, in order of paths and layers.
    together: target -> what the runs' deltas there have in common.
    without: for each run the adapted places that have no merged weight: path -> method.
    """

    deltas: list[list[Delta]]
    together: dict[str, Together]
    without: list[dict[str, str]]


def compare(
    adapters: Sequence[Adapter],
    params: Any,
    advance: Callable[[int], Any] = lambda layers: None,
) -> Found:
    """The deltas of several adapters of one base.

    Args:
      adapters: of the runs.
      params: the base that they share.
      advance: called with 1 after each layer of each kernel.

    Returns:
      See `Found`.
    """
    sites = [_merging(a.plan, params) for a in adapters]
    deltas: list[list[Delta]] = [[] for _ in adapters]
    together: dict[str, Together] = {}
    leaves = dict(paths.flatten(params))
    for path in sorted({p for own in sites for p in own}):
        members = [i for i, own in enumerate(sites) if path in own]
        for layer, w, index in _layers(path, leaves[path], sites[members[0]][path]):
            found = {i: _delta(adapters[i].state, sites[i][path], w, index) for i in members}
            for i, delta in found.items():
                deltas[i].append(measure(layer, w, delta))
            _add(together, layer.target, members, list(found.values()), len(adapters))
            advance(1)
    return Found(deltas, together, [without(a.plan, params) for a in adapters])


def _add(
    together: dict[str, Together], target: str, members: list[int], found: list, total: int
) -> None:
    """Adds one layer's deltas, of the runs `members` out of `total`, to its target's sums."""
    if target not in together:
        together[target] = Together(np.zeros((total, total)), np.zeros((total, total)))
    inner, at = measures.inner(found), np.ix_(members, members)
    together[target].inner[at] += inner
    together[target].squares[at] += np.diag(inner)[:, None]


def whole(together: Mapping[str, Together]) -> Together:
    """All targets as one."""
    parts = list(together.values())
    inner, squares = (np.sum([part[i] for part in parts], axis=0) for i in (0, 1))
    return Together(inner, squares)


def count(adapters: Sequence[Adapter], params: Any) -> int:
    """How many layers of kernels `compare` goes through."""
    sites = {p: s for a in adapters for p, s in _merging(a.plan, params).items()}
    leaves = dict(paths.flatten(params))
    return sum(math.prod(tree.stack_of(s, leaves[p].shape)) for p, s in sites.items())


def without(plan: dict[str, Any], params: Any) -> dict[str, str]:
    """Adapted places that no merged weight stands for: path -> method.

    Overrides act on a module's call, and some methods depend on their input: they have no delta.
    """
    merging = _merging(plan, params)
    return {
        site.path: str(site.method.spec['name'])
        for site in tree.sites(plan, params)
        if site.path not in merging
    }


def _merging(plan: dict[str, Any], params: Any) -> dict[str, tree.Site]:
    return {
        site.path: site
        for site in tree.sites(plan, params)
        if site.view is not None and site.method.weight is not None
    }


def _layers(
    path: str, leaf: Any, site: tree.Site
) -> Iterator[tuple[Layer, np.ndarray, int | None]]:
    """(layer, its kernel [n, m], its place in the stack or None)."""
    name, number = paths.canonical(path)
    assert site.view is not None
    stack, n, m = site.view.shape(leaf.shape)
    shape = (n, m) if site.view.n_in else leaf.shape[len(stack) :]
    # On the host: slicing there compiles nothing, and one leaf at a time is all it holds.
    flat = np.asarray(leaf).reshape(-1, *shape)
    for i in range(len(flat)):
        yield Layer(name, i if stack else number or 0), flat[i], i if stack else None


def _delta(state: jp.State, site: tree.Site, w: np.ndarray, index: int | None) -> np.ndarray:
    """weight(state, w) - w of one layer, float32."""
    assert site.view is not None
    axes = site.view.stack

    def one(leaf: Any) -> np.ndarray:
        x = np.asarray(leaf)
        x = x if index is None else x.reshape(-1, *x.shape[axes:])[index]
        return x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x

    parts = [tree.leaves_of(part, site) for part in state]
    return np.asarray(_difference(site.method.weight, jp.State(*jax.tree.map(one, parts)), w))


@functools.partial(jax.jit, static_argnums=0)
def _difference(weight: Callable, state: jp.State, w: np.ndarray) -> jax.Array:
    return weight(state, w) - w.astype(jnp.float32)


def measure(layer: Layer, w: Any, delta: np.ndarray) -> Delta:
    """The figures of one delta `[n, m]` (or of a leaf of another shape) over its kernel."""
    size = float(np.linalg.norm(np.asarray(w, np.float64)))
    norm = float(np.linalg.norm(delta.astype(np.float64)))
    relative = norm / size if size else None
    if delta.ndim != 2:
        return Delta(layer, norm, relative, None, None, None)
    full = min(delta.shape)
    if not norm or (relative is not None and relative < NOISE):
        return Delta(layer, norm, relative, None, None, full)
    values = measures.singular_values(delta)
    # Rounding of W + delta is a random matrix of full rank. A random matrix with entries of size e
    # has no singular value above e (sqrt(n) + sqrt(m)): what lies below is no direction of delta.
    floor = ROUNDING * size * (delta.shape[0] ** -0.5 + delta.shape[1] ** -0.5)
    values = np.where(values < min(floor, values[0]), 0.0, values)
    rank, top = measures.effective_rank(values), measures.top_share(values)
    return Delta(layer, norm, relative, rank, top, full)
