"""All figures of some runs as one JSON-able dict; what the page draws, and --json writes."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxpeft as jp
from eval import rundata
from eval.analysis import answers, deltas, gates
from eval.bar import rows_bar
from eval.rundata import RunData
from train.results import questions

Figures = dict[str, Any]
TOLD = ('decoding', 'template', 'max_new_tokens', 'num_beams', 'seed')  # flags of eval.run
_TRAINED = ('steps', 'seconds', 'tokens_per_second', 'trainable', 'best_step', 'best_val_loss')


def gather(folders: Sequence[pathlib.Path], base: str = '', progress: bool = True) -> Figures:
    """The figures of runs.

    Args:
      folders: run directories.
      base: where their base model lies now; empty: where each run found it.
      progress: show a bar while deltas are measured.

    Returns:
      {'runs': [one dict a run], 'cosine': [one dict a base that several runs share]}. A part that a
      run does not have is empty, and the reason stands in its 'missing' list.

    Raises:
      FileNotFoundError: for a folder that is no run with an adapter.
      ValueError: for an adapter that its base does not fit.
    """
    names = short_names(folders)
    data = [_read(folder) for folder in folders]
    runs = [_run(name, run) for name, run in zip(names, data, strict=True)]
    bases = _bases(data)
    for one, run in zip(runs, data, strict=True):
        one['answers'] = _answers(run, bases, one['missing'])
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, run in enumerate(data):
        key = base or run.config['model_name'], run.config['dtype'], str(run.config['scan'])
        groups.setdefault(key, []).append(i)
    cosine = []
    for (model, dtype, scan), members in groups.items():
        found = _deltas(model, dtype, scan == 'True', [data[i] for i in members], progress)
        for i, own, without in zip(members, found.deltas, found.without, strict=True):
            runs[i]['deltas'] = [_delta(d) for d in own]
            runs[i]['without'] = without
        if len(members) > 1:
            cosine.append(_cosine(model, [names[i] for i in members], found))
        elif len(data) > 1:
            runs[members[0]]['missing'].append(
                f'Cosines: no other run has its base {model} with dtype {dtype}, scan {scan}.'
            )
    return {'runs': runs, 'cosine': cosine}


def short_names(folders: Sequence[pathlib.Path]) -> list[str]:
    """The folders' own names, with as many parents as tell them apart.

    Example:
      >>> short_names([pathlib.Path('/x/a/run'), pathlib.Path('/x/b/run')])
      ['a/run', 'b/run']
    """
    parts = [folder.absolute().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        found = ['/'.join(p[-depth:]) for p in parts]
        if len(set(found)) == len(found):
            return found
    raise ValueError(f'the same run twice among {[str(f) for f in folders]}')


def _read(folder: pathlib.Path) -> RunData:
    run = rundata.read(folder)
    if not run.config or not run.sites:
        raise FileNotFoundError(
            f'{folder} is no run directory with an adapter: it needs config.json and '
            'adapter/adapter.json; python -m train.run makes one'
        )
    return run


def _run(name: str, run: RunData) -> Figures:
    """What needs no model: settings, curves, quality, gates."""
    config, train = run.config, run.results.get('train', {})
    missing = [] if run.results else ['results.json: the run is not finished']
    curves = {
        key: [[m['step'], m[key]] for m in run.metrics if key in m]
        for key in ('loss', 'val_loss', 'penalty', 'grad_norm')
    }
    if not curves['loss']:
        missing.append('metrics.jsonl: no training curves')
    return {
        'name': name,
        'folder': str(run.folder),
        'method': config['method'],
        'base': config['model_name'],
        'dataset': config['dataset'],
        'seed': config['seed'],
        'lr': config['lr'],
        'train': {key: train.get(key) for key in _TRAINED},
        'curves': {k: v for k, v in curves.items() if v},
        'quality': _quality(run),
        'gates': gates.of_run(run.leaves, run.sites),
        'missing': missing,
    }


def _quality(run: RunData) -> dict[str, dict[str, Figures]]:
    """decoding -> task -> {'n', 'majority', 'before', 'after', ...}, by the run itself."""
    before, after = (questions(run.results.get(when) or {}) for when in ('before', 'after'))
    found: dict[str, dict[str, Figures]] = {}
    for decoding, end in after.items():
        start = before[decoding]['tasks']
        found[decoding] = {
            task: {
                'n': now['n'],
                'majority': now['majority'],
                'before': start[task]['accuracy'],
                'after': now['accuracy'],
                'interval': now['interval'],
                'parsable': [start[task]['parsable'], now['parsable']],
                'said_before': start[task]['histogram'],
                'said': now['histogram'],
            }
            for task, now in end['tasks'].items()
        }
    return found


def _key(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What two evaluations have in common that are of one base, on the same rows, asked alike."""
    own = (
        'model_name', 'dtype', 'decoding', 'template', 'rows_sha256', 'max_new_tokens', 'num_beams',
        'seed',
    )  # fmt: skip
    return tuple(str(config.get(key)) for key in own)


def _kept(run: RunData) -> list[tuple[str, Figures, pathlib.Path]]:
    """(name, what its file holds, file of answers) of the evaluations whose answers were kept."""
    files = [
        (n, e, run.folder / 'eval' / f'{n}.predictions.jsonl') for n, e in run.evaluations.items()
    ]
    return [(n, e, f) for n, e, f in files if 'config' in e and f.exists()]


def _bases(data: Sequence[RunData]) -> dict[tuple[str, ...], pathlib.Path]:
    """The kept answers of bare bases, of whichever run's folder: the base is the same."""
    found: dict[tuple[str, ...], pathlib.Path] = {}
    for run in data:
        for _, kept, file in _kept(run):
            if kept['config']['method'] == 'none':
                found.setdefault(_key(kept['config']), file)
    return found


def _answers(
    run: RunData, bases: Mapping[tuple[str, ...], pathlib.Path], missing: list[str]
) -> list[Figures]:
    """What the kept answers say, an entry an evaluation; what is not there is told in `missing`."""
    found = []
    for name, kept, file in _kept(run):
        config = kept['config']
        if config['method'] == 'none':
            continue
        records = answers.read(file)
        own = answers.by_task(records)
        entry: Figures = {
            'name': name,
            'decoding': config['decoding'],
            'rows': len(records),
            'failures': {task: answers.failures(r) for task, r in own.items()},
            'histogram': {task: answers.histogram(r) for task, r in own.items()},
        }
        there = bases.get(_key(config))
        if there is None:
            missing.append(f'answers of the base to compare {name} with: {_how(run, kept)}')
        else:
            before = answers.read(there)
            both = answers.pairs(before, records)
            entry |= {
                'base_failures': {
                    t: answers.failures(r) for t, r in answers.by_task(before).items()
                },
                'transitions': {
                    task: answers.transitions([p for p in both if p[1]['task'] == task])
                    for task in own
                },
                'gained': answers.disagreements(both, gained=True),
                'lost': answers.disagreements(both, gained=False),
            }
        found.append(entry)
    if not found:
        missing.append(f'answers row by row: {_how(run)}')
    return found


def _how(run: RunData, kept: Figures | None = None) -> str:
    """The command for answers: of the run, or of its base to the questions of an evaluation."""
    parts = [f'python -m eval.run --ckpt {run.folder}']
    if kept is not None:
        parts.append('--method none')
        told = {k: v for k, v in kept['config'].items() if k in TOLD}
        parts += [f'--{flag} {value}' for flag, value in {**kept.get('asked', {}), **told}.items()]
    return ' '.join([*parts, '--predictions'])


def _deltas(
    model: str, dtype: str, scan: bool, runs: Sequence[RunData], progress: bool
) -> deltas.Found:
    """Loads the base once and goes through its kernels."""
    _, params, _ = jp.models.load(model, dtype=jnp.dtype(dtype), scan=scan)
    adapters = [deltas.Adapter(*jp.load_adapter(run.folder / 'adapter', params)) for run in runs]
    total = deltas.count(adapters, params)
    with rows_bar('deltas', total, progress, 'layers') as advance:
        return deltas.compare(adapters, params, advance)


def _delta(one: deltas.Delta) -> Figures:
    found = one._asdict()
    layer = found.pop('layer')
    return {'path': layer.path, 'target': layer.target, 'layer': layer.number, **found}


def _cosine(base: str, names: list[str], found: deltas.Found) -> Figures:
    """Cosines of the runs of one base that have deltas: of all kernels, and target by target."""
    have = [i for i, own in enumerate(found.deltas) if own]
    table = lambda one: [
        [_finite(x) for x in row] for row in one.cosine()[np.ix_(have, have)].tolist()
    ]
    return {
        'base': base,
        'runs': [names[i] for i in have],
        'all': table(deltas.whole(found.together)) if len(have) > 1 else None,
        'targets': {target: table(one) for target, one in found.together.items()},
    }


def _finite(x: float) -> float | None:
    """JSON has no nan."""
    return float(x) if math.isfinite(x) else None


def write_json(path: pathlib.Path, figures: Figures) -> None:
    """Writes the figures; inf and nan are errors, for JSON has neither."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1, allow_nan=False) + '\n')


def check_own(path: pathlib.Path) -> None:
    """Refuses to overwrite what are no figures of this program.

    Raises:
      ValueError: naming the file.
    """
    if not path.exists():
        return
    try:
        own = json.loads(path.read_text()).keys() == {'runs', 'cosine'}
    except (ValueError, AttributeError, IsADirectoryError):
        own = False
    if not own:
        raise ValueError(f'{path} exists and holds no figures of eval.report; give another --json')
