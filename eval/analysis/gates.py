"""The small learned numbers of a method, layer by layer, beside what they weigh.

KnowHiRA: sigmoid(gate) of each rank against sigma. KaSA: diag against the singular values of the
tail that was taken out. HyLoRADA: the two blending shares. DoRA and HyLoRADA: how far the magnitude
moved from the norm that it started at.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from eval.analysis import measures
from eval.analysis.deltas import Layer

Leaves = Mapping[str, np.ndarray]
BY_RANK = ('gate', 'sigma', 'diag', 'u')  # leaves whose last axis is the rank


def of_run(leaves: Leaves, sites: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The gates of an adapter, an entry a layer of a kernel.

    Args:
      leaves: 'params/<path>/<leaf>' or 'consts/<path>/<leaf>' -> array, as saved.
      sites: adapter.json's entries by path: 'stack' says how many leading axes are layers.

    Returns:
      Entries {'path', 'target', 'layer', ...} with those of these that the method has:
      'gate' and 'sigma' (lists of r) with 'correlation'; 'diag' and 'tail' (lists of r);
      'gamma' and 'beta'; 'magnitude', mean |m / norm - 1|.
    """
    found = []
    for path, site in sites.items():
        own = _leaves_of(leaves, path)
        axes = len(site.get('stack') or ())
        numbers = site.get('layers')
        for i in range(int(np.prod(site['stack'])) if axes else 1):
            one = {k: v.reshape(-1, *v.shape[axes:])[i] if axes else v for k, v in own.items()}
            figures = of_layer({k: np.asarray(v, np.float64) for k, v in one.items()})
            if figures:
                layer = Layer(path, numbers[i] if numbers else i)
                head = {'path': path, 'target': layer.target, 'layer': layer.number}
                found.append(head | figures)
    return found


def _leaves_of(leaves: Leaves, path: str) -> dict[str, np.ndarray]:
    parts = (f'params/{path}/', f'consts/{path}/')
    return {k[len(p) :]: v for p in parts for k, v in leaves.items() if k.startswith(p)}


def of_layer(one: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The figures of one layer's leaves; {} where the method has no such numbers.

    Where ranks differ between layers, `rank` says how many act: the others never trained.

    Example:
      >>> of_layer({'gate': np.zeros(2), 'sigma': np.array([1.0, 0.5])})['gate']
      [0.5, 0.5]
    """
    found: dict[str, Any] = {}
    if 'rank' in one:
        acting = slice(int(one['rank']))
        one = {k: v[..., acting] if k in BY_RANK and v.ndim else v for k, v in one.items()}
    if {'gate', 'sigma'} <= one.keys():
        share = _sigmoid(one['gate'])
        found |= {'gate': share.tolist(), 'sigma': one['sigma'].tolist()}
        found['correlation'] = measures.correlation(one['sigma'], share)
    if {'gate', 'residual'} <= one.keys():
        gamma, beta = _sigmoid(one['gate']), _sigmoid(one['residual'])
        found |= {'gamma': float(gamma), 'beta': float(beta)}
    if {'diag', 'u'} <= one.keys():
        # vt has orthonormal rows and u carries the singular values
        found |= {'diag': one['diag'].tolist(), 'tail': np.linalg.norm(one['u'], axis=0).tolist()}
    if {'m', 'norm'} <= one.keys() and one['norm'].size:
        safe = np.where(one['norm'] > 0, one['norm'], 1.0)
        moved = np.abs(one['m'] / safe - 1.0)[one['norm'] > 0]
        if moved.size:
            found['magnitude'] = float(moved.mean())
    return found


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))
