"""What a run directory holds, read for the report; whatever is not there yet is empty."""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

LEAVES = ('gate', 'sigma')
_ORDER = {'q': 0, 'k': 1, 'v': 2, 'o': 3}  # first letters of the projections, as people list them


class RunData(NamedTuple):
    """The parts of a run directory.

    config: config.json, {} without one (the folder of a bare base has none).
    metrics: lines of metrics.jsonl.
    results: results.json, {} while the run is not finished.
    evaluations: name -> eval/<name>.json.
    sites: adapter.json's entries, canonical path -> {'layers', 'stack', 'kernel', ...}.
    leaves: 'params/<path>/<leaf>' or 'consts/<path>/<leaf>' -> array, of the adapter.
    """

    folder: pathlib.Path
    config: dict[str, Any]
    metrics: list[dict[str, float]]
    results: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]
    sites: dict[str, dict[str, Any]]
    leaves: dict[str, np.ndarray]


def read(folder: pathlib.Path) -> RunData:
    """Reads a run directory.

    Raises:
      FileNotFoundError: no such directory.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder} is no run directory')
    metrics = folder / 'metrics.jsonl'
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    sites, leaves = _adapter(folder / 'adapter')
    return RunData(
        folder,
        _json(folder / 'config.json'),
        [json.loads(line) for line in lines],
        _json(folder / 'results.json'),
        {path.stem: _json(path) for path in sorted(folder.glob('eval/*.json'))},
        sites,
        leaves,
    )


def spectra(run: RunData) -> dict[str, dict[str, np.ndarray]]:
    """Module name -> {'gate': [layers, r] as sigmoid, 'sigma': [layers, r]}, what there is of it.

    A module is named by the end of its path, such as q_proj. Where ranks differ between layers,
    those that a layer does not have are NaN.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, value in sorted(run.leaves.items()):
        path, _, leaf = key.rpartition('/')
        if leaf in LEAVES and value.ndim:
            rows = value.reshape(-1, value.shape[-1]).astype(np.float64)
            ranks = run.leaves.get(f'consts/{path.partition("/")[2]}/rank')
            if ranks is not None:
                rows[np.arange(rows.shape[1]) >= ranks.reshape(-1, 1)] = np.nan
            name = path.removesuffix('/kernel').rpartition('/')[2]
            found.setdefault(name, {})[leaf] = 1 / (1 + np.exp(-rows)) if leaf == 'gate' else rows
    return dict(sorted(found.items(), key=lambda item: (_ORDER.get(item[0][:1], 4), item[0])))


def _json(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _adapter(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not (folder / 'adapter.json').exists():
        return {}, {}
    import safetensors.numpy

    leaves = safetensors.numpy.load_file(folder / 'adapter_model.safetensors')
    return _json(folder / 'adapter.json')['sites'], leaves
