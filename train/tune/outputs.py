"""What a search leaves: best.yaml for `train.run --config`, its trials as CSV and JSON, a table."""

import csv
import io
import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.table import Table

from train import config as configs
from train import rundir
from train.config import METHOD_FLAGS, Config
from train.tune import space as spaces
from train.tune.space import Space
from train.tune.study import outcome_of

if TYPE_CHECKING:
    import optuna

WIDTH = 100  # columns of the printed table
SHOWN = 10  # trials in it
# Of a run and not of its settings; the rest of best.yaml says all that a run depends on.
LEFT_OUT = ('run_dir', 'resume', 'wandb', 'out', 'traceback', 'preset', 'config', 'set')


def trials_of(study: 'optuna.Study') -> list[dict[str, Any]]:
    """Every trial that has ended, in order, as plain values.

    `val_loss` is the best validation loss of a complete or pruned trial, None of others; `last` the
    last one that was measured, after `steps` updates.
    """
    found = []
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished():
            continue
        known = trial.user_attrs
        reported = sorted(trial.intermediate_values.items())
        found.append(
            {
                'trial': trial.number,
                'outcome': outcome_of(trial),
                'default': bool(known.get('default', False)),
                'val_loss': known.get('best_loss'),
                'best_step': known.get('best_step'),
                'last': reported[-1][1] if reported else None,
                'steps': known.get('steps', 0),
                'trained': known.get('trained'),
                'seconds': known.get('seconds', 0.0),
                'why': known.get('why', ''),
                'retry_of': known.get('retry_of'),
                'values': dict(trial.params),
                'validation': {str(step): loss for step, loss in reported},
            }
        )
    return found


def best_of(trials: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The complete trial with the lowest validation loss."""
    complete = [trial for trial in trials if trial['outcome'] == 'complete']
    return min(complete, key=lambda trial: trial['val_loss'], default=None)


def write(
    folder: pathlib.Path, config: Config, space: Space, study: 'optuna.Study'
) -> list[dict[str, Any]]:
    """Writes trials.csv, trials.json and best.yaml, each whole or not at all; gives the trials."""
    trials = trials_of(study)
    _replace(folder / 'trials.csv', _csv(trials, space))
    rundir.write_json(folder / 'trials.json', trials)
    best = best_of(trials)
    if best is not None:
        _replace(folder / 'best.yaml', best_yaml(config, best))
    return trials


def _csv(trials: Sequence[dict[str, Any]], space: Space) -> str:
    heads = [k for k in trials[0] if k not in ('values', 'validation')] if trials else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow([*heads, *space])
    for trial in trials:
        cells = [trial[k] for k in heads] + [trial['values'].get(name) for name in space]
        writer.writerow(['' if cell is None else cell for cell in cells])
    return text.getvalue()


def _replace(path: pathlib.Path, text: str) -> None:
    new = path.with_name(f'.{path.name}.tmp')
    new.write_text(text)
    new.replace(path)


def best_yaml(config: Config, best: dict[str, Any]) -> str:
    """A trial's whole configuration as a file of flag: value, what was searched in front."""
    found = spaces.apply(config, best['values'])
    flags = {
        flag: value
        for flag, value in configs.values(found).items()
        if flag not in (*LEFT_OUT, *METHOD_FLAGS)
    }
    flags['set'] = [
        # Bare words: --set takes quotes for a part of them.
        f'{method}.{option}={value if isinstance(value, str) else json.dumps(value)}'
        for method, given in found.options.items()
        for option, value in given.items()
    ]
    searched = {name for name in best['values'] if name in flags}
    searched |= {k for name in searched for k in spaces.IMPLIED.get(name, {})}
    first = {name: flags[name] for name in flags if name in ('method', *searched, 'set')}
    rest = {name: value for name, value in flags.items() if name not in first}
    said = ', '.join(f'{name} {short(value)}' for name, value in best['values'].items())
    return (
        f'# Trial {best["trial"]} of {config.adapter.method}: {said}\n'
        f'# Validation loss {best["val_loss"]:.6f} after {best["best_step"]} updates. '
        'python -m train.run --config best.yaml\n'
        + yaml.safe_dump(first, sort_keys=False)
        + '# The same in every trial:\n'
        + yaml.safe_dump(rest, sort_keys=False)
    )


def short(value: Any) -> str:
    """A value in a few characters: 0.00123 -> '0.00123', 16 -> '16'."""
    return f'{value:.3g}' if isinstance(value, float) else str(value)


def show(trials: Sequence[dict[str, Any]]) -> None:
    """Prints how the trials ended, the best of them, and the default beside the best."""
    counts: dict[str, int] = {}
    for trial in trials:
        counts[trial['outcome']] = counts.get(trial['outcome'], 0) + 1
    print(', '.join(f'{n} {outcome}' for outcome, n in counts.items()))
    table = Table(title='trials by validation loss', title_justify='left')
    for title in ('trial', 'loss', 'updates', 'trained'):
        table.add_column(title, justify='right', no_wrap=True)
    table.add_column('outcome', no_wrap=True)
    table.add_column('values')
    seen = [trial for trial in trials if trial['val_loss'] is not None]
    # Complete ones first: a pruned trial's loss is of fewer updates.
    seen.sort(key=lambda trial: (trial['outcome'] != 'complete', trial['val_loss']))
    for trial in seen[:SHOWN]:
        values = ' '.join(f'{name} {short(v)}' for name, v in trial['values'].items())
        table.add_row(
            f'{trial["trial"]}{" *" if trial["default"] else ""}',
            f'{trial["val_loss"]:.4f}',
            f'{trial["steps"]:,}',
            f'{trial["trained"]:,}',
            trial['outcome'],
            values,
        )
    Console(width=WIDTH).print(table)
    best, default = best_of(trials), [t for t in trials if t['default'] and t['outcome'] != 'cut']
    if default:
        print('* the configuration as it was given, which the others have to beat')
    if best is not None:
        print(f'best: trial {best["trial"]}, validation loss {best["val_loss"]:.4f}')
        print('The loss is of the rows that it was chosen by: on others expect less of the gain.')
