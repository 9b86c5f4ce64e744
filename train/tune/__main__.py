"""`python -m train.tune --method hylorada --n_trials 20`: search by the validation loss."""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

import tyro

from train import cli, errors, outs, results, rundir
from train import config as configs
from train.config import Config
from train.stop import Stop
from train.tune import bar, budget, outputs, plots, trials
from train.tune import space as spaces
from train.tune import study as studies
from train.tune.space import Space

DESCRIPTION = """Search a method's hyper-parameters with Optuna (TPE) by the validation loss of
short runs; penalties are left out of it, and no test set is looked at. Bad trials are pruned at
their validations. The same command continues a search that was stopped or killed.

  python -m train.tune --method hylorada --n_trials 20
  python -m train.run --config runs/tune-.../best.yaml

All flags of `python -m train.run` mean what they mean there (--model_name, --dataset, --max_steps,
--eval_steps, --batch, ...); what is searched starts from their values. The folder (--run_dir, else
one under runs/) gets study.db, trials.csv, trials.json, best.yaml, history.png and importance.png.
Needs Optuna: pip install 'jaxpeft[tune]'."""

GIVE_UP = 100  # trials refused one after another


@dataclasses.dataclass(frozen=True)
class Options:
    """How to search."""

    n_trials: int = 20
    """Trials that are trained, pruned ones included; a larger number continues a search."""
    vary: tuple[str, ...] = ()
    """Search these only, such as: lr rank alpha_ratio gate_init. Empty: lr and what the method's
    own file lists."""
    space: str = ''
    """YAML file of name: [float, LOW, HIGH, log], [int, LOW, HIGH] or [choice, A, B, ..]; null
    takes the known range. Its names alone are searched, unless --vary names others."""
    max_params: int = 0
    """Refuse trials that would train more numbers than this, before training; 0: no limit."""
    together: int = 4
    """Trials trained as one program, which is compiled once. They share what decides shapes, the
    rank above all, so a larger number sees fewer ranks."""
    pruner: Literal['median', 'hyperband', 'none'] = 'median'
    """median ends a trial whose best loss so far is worse than the median at that update."""
    startup: int = 5
    """Trials drawn at random before TPE has its say, and complete ones before the median prunes."""
    out: str = ''
    """Write settings, best trial and all trials to this file, as JSON."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when it did, 2 after an error that the user can mend."""
    return errors.guard(_program, argv)


def _program(argv: Sequence[str]) -> None:
    options, rest = tyro.cli(
        Options,
        args=list(argv),
        prog='python -m train.tune',
        description=DESCRIPTION,
        use_underscores=True,
        return_unknown_args=True,
    )
    for flag in ('n_trials', 'together'):
        if getattr(options, flag) < 1:
            raise ValueError(f'--{flag} must be at least 1, got {getattr(options, flag)}')
    studies.need_optuna()
    config, notes = cli.parse(rest)
    for note in notes:
        print(note)
    if config.run.resume != 'auto':
        raise ValueError(
            f'a search takes no --resume {config.run.resume}: the same command continues it, and '
            'another --run_dir begins a new one'
        )
    if config.run.wandb:
        raise ValueError('a search takes no --wandb: its trials are in trials.csv and trials.json')
    space = spaces.make(config, options.vary, options.space)
    settings = settings_of(config, space, options)
    if options.out:
        outs.check_free(pathlib.Path(options.out), settings)
    folder = studies.folder_of(config, space)
    with Stop(), studies.claim(folder, settings):
        found = search(config, space, options, folder, settings)
    if options.out:
        versions = results.versions()
        report = {'config': settings, 'versions': versions, **found}
        rundir.write_json(pathlib.Path(options.out), report)


def settings_of(config: Config, space: Space, options: Options) -> dict[str, Any]:
    """What two commands of one and the same search have in common, as JSON holds it."""
    mine = {
        'space': {name: range_.plain() for name, range_ in space.items()},
        'max_params': options.max_params,
        'pruner': options.pruner,
        'startup': options.startup,
    }
    return json.loads(json.dumps(configs.identity(config) | mine))


def search(
    config: Config,
    space: Space,
    options: Options,
    folder: pathlib.Path,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Asks, trains and tells until `--n_trials` trials are trained; gives what it found.

    Raises:
      ValueError: for a space of which the model or `--max_params` allows nothing; where every trial
        diverged.
    """
    study = studies.open_study(folder)
    print(f'{folder}: {studies.finished(study)} of {options.n_trials} trials are there')
    for name, range_ in space.items():
        print(f'  {name}: {range_.plain()}')
    if studies.finished(study) < options.n_trials:
        bench = prepare(config, space, options)
        studies.settle(folder, settings)
        train(bench, space, options, folder, study)
    rows = outputs.write(folder, config, space, study)
    made = plots.write(folder, study, rows)
    outputs.show(rows)
    best = outputs.best_of(rows)
    if best is None:
        raise ValueError(
            f'no trial went to its end in {folder} (see trials.csv); search smaller rates: '
            '--space FILE.yaml with lr: [float, LOW, HIGH, log]'
        )
    for path in (folder / 'trials.csv', *made, folder / 'best.yaml'):
        print(path)
    print(f'python -m train.run --config {folder / "best.yaml"}')
    return {'best': best, 'trials': rows}


def prepare(config: Config, space: Space, options: Options) -> trials.Bench:
    """Loads base and data, and refuses what no trial could be.

    Raises:
      ValueError: a value in the space that the model or the method refuses; a `--max_params` below
        everything.
    """
    bench = trials.prepare(config, options.pruner)
    smallest = budget.smallest(config, space, bench.built)
    limit = options.max_params
    if limit and (size := budget.count(spaces.apply(config, smallest), bench.built)) > limit:
        named = ', '.join(f'{name}={value}' for name, value in smallest.items())
        raise ValueError(
            f'--max_params {limit:,} refuses every trial: the smallest trains {size:,} numbers '
            f'({named or "as all do"}). Narrow the space to smaller ranks, or give more'
        )
    return bench


def train(
    bench: trials.Bench, space: Space, options: Options, folder: pathlib.Path, study: Any
) -> None:
    """Trains what is missing, batch by batch; the files are whole after each.

    Raises:
      ValueError: where `--max_params` refuses trial after trial.
    """
    config = bench.config
    study.pruner = studies.pruner_of(options.pruner, options.startup, bench.looks)
    studies.begin(study, spaces.current(config, space), space)
    shared = trials.fixed(config, space)
    refused = 0
    with bar.Bar(options.n_trials, bench.steps) as shown:
        while (left := options.n_trials - studies.finished(study)) > 0:
            began = time.perf_counter()
            asked = studies.ask(
                study,
                space,
                min(options.together, left),
                shared,
                seed=config.optim.seed,
                startup=options.startup,
            )
            admitted = admit(bench, study, asked, options.max_params)
            refused = 0 if admitted else refused + len(asked)
            if refused >= GIVE_UP:
                raise ValueError(
                    f'--max_params {options.max_params:,} refused {refused} trials one after '
                    'another: narrow the space to smaller ranks, or give more'
                )
            shown.begin(len(admitted), studies.finished(study))
            trials.train(bench, study, admitted, shown.step)
            for one in outputs.write(folder, config, space, study)[-len(asked) :]:
                shown.line(one)
            shown.spent(time.perf_counter() - began, len(admitted))


def admit(
    bench: trials.Bench,
    study: Any,
    asked: Sequence[studies.Asked],
    limit: int,
) -> list[studies.Asked]:
    """The trials within `--max_params`; the others are told as refused."""
    kept = []
    for one in asked:
        numbers = budget.count(spaces.apply(bench.config, one.values), bench.built) if limit else 0
        if numbers > limit:
            studies.refuse(study, one, numbers)
        else:
            kept.append(one)
    return kept


if __name__ == '__main__':
    sys.exit(main())
