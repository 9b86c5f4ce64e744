"""Optuna's study in the search's folder: who asks, what was told, what a killed process left."""

import contextlib
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from train import config as configs
from train import rundir
from train.config import Config
from train.tune.space import Space

if TYPE_CHECKING:
    import optuna

MISSING = "the search needs Optuna, which is an extra: pip install 'jaxpeft[tune]' (or optuna)"


class Asked(NamedTuple):
    """A trial that Optuna has drawn.

    Attributes:
      trial: Optuna's, to report to.
      values: name -> value.
    """

    trial: 'optuna.Trial'
    values: dict[str, Any]


def need_optuna() -> None:
    """Refuses where Optuna is not installed.

    Raises:
      ValueError: with the command that installs it.
    """
    if importlib.util.find_spec('optuna') is None:
        raise ValueError(MISSING)


def folder_of(config: Config, space: Space) -> pathlib.Path:
    """`--run_dir`, or a folder under runs/ named by what is searched, so that it is found again."""
    if config.run.run_dir:
        return pathlib.Path(config.run.run_dir)
    plain = {name: range_.plain() for name, range_ in space.items()}
    known = json.dumps([configs.identity(config), plain], sort_keys=True)
    model = pathlib.PurePath(config.model.model_name).name
    data = pathlib.PurePath(config.data.dataset).name.split('.')[0]
    digest = hashlib.sha256(known.encode()).hexdigest()[:8]
    return pathlib.Path('runs') / f'tune-{config.adapter.method}-{model}-{data}-{digest}'


@contextlib.contextmanager
def claim(folder: pathlib.Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Takes the folder for this process: a trial that runs there by itself is then nobody's.

    Args:
      folder: made where it is not there.
      settings: what two commands of one and the same search have in common, as JSON would hold it.

    Raises:
      ValueError: for a folder of another search (naming what differs) or of a run, or one that
        another process works in.
    """
    with rundir.lock(folder):
        saved = folder / 'tune.json'
        if (folder / 'config.json').exists():
            raise ValueError(f'{folder} holds a run of another program; give another --run_dir')
        if saved.exists():
            rundir.check_same(dict(settings), json.loads(saved.read_text()), folder)
        yield


def settle(folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Says whose folder it is, once nothing was refused: trials may begin."""
    if not (folder / 'tune.json').exists():
        rundir.write_json(folder / 'tune.json', settings)


def open_study(folder: pathlib.Path) -> 'optuna.Study':
    """The study in `folder`/study.db, made where there is none.

    A trial that still runs was left by a killed process (the folder is ours, see `claim`): it is
    failed, and its values are asked for again.
    """
    import optuna
    from optuna.trial import TrialState
    from sqlalchemy.pool import NullPool

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f'sqlite:///{folder.absolute() / "study.db"}'
    study = optuna.create_study(
        # A connection an operation: none is left open, wherever an error leaves the search.
        storage=optuna.storages.RDBStorage(url, engine_kwargs={'poolclass': NullPool}),
        study_name='tune',
        direction='minimize',
        load_if_exists=True,
    )
    for left in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(left.number, state=TrialState.FAIL)
        again = {key: value for key, value in left.user_attrs.items() if key == 'default'}
        study.enqueue_trial(left.params, user_attrs=again | {'retry_of': left.number})
    return study


def pruner_of(name: str, startup: int, looks: Sequence[int]) -> 'optuna.pruners.BasePruner':
    """The pruner: 'median', 'hyperband' or 'none'.

    Args:
      name: which.
      startup: complete trials before the median prunes.
      looks: the updates after which a trial is validated, the last of them its end.
    """
    import optuna

    pruners: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        'median': lambda: optuna.pruners.MedianPruner(n_startup_trials=startup),
        'hyperband': lambda: optuna.pruners.HyperbandPruner(looks[0], looks[-1], 2),
        'none': lambda: optuna.pruners.NopPruner(),
    }
    return pruners[name]()


def ask(
    study: 'optuna.Study',
    space: Space,
    together: int,
    fixed: Sequence[str],
    *,
    seed: int,
    startup: int,
) -> list[Asked]:
    """Draws a batch of trials that can train as one program.

    TPE sees the running ones as bad (a constant liar), so that a batch spreads. What decides shapes
    is drawn for the first of a batch, and the others take its values.

    Args:
      study: the study.
      space: what is searched.
      together: trials in the batch.
      fixed: names that all of a batch must share.
      seed: with the trial's number it decides the draw: a search that was cut draws on as one that
        was not.
      startup: trials drawn at random before TPE has anything to go by.
    """
    from optuna.trial import TrialState

    batch: list[Asked] = []
    for _ in range(together):
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        number = waiting[0].number if waiting else len(study.get_trials(deepcopy=False))
        if batch and fixed and not waiting:
            study.enqueue_trial({name: batch[0].values[name] for name in fixed})
        study.sampler = _sampler(seed, number, startup)
        trial = study.ask()
        batch.append(Asked(trial, {name: _suggest(trial, name, space) for name in space}))
    return batch


def _sampler(seed: int, number: int, startup: int) -> Any:
    from optuna.samplers import TPESampler

    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return TPESampler(n_startup_trials=startup, constant_liar=True, seed=own)


def _suggest(trial: 'optuna.Trial', name: str, space: Space) -> Any:
    range_ = space[name]
    if range_.kind == 'choice':
        return trial.suggest_categorical(name, range_.values)
    low, high = range_.values
    draw = trial.suggest_int if range_.kind == 'int' else trial.suggest_float
    return draw(name, low, high, log=range_.log)


def begin(study: 'optuna.Study', defaults: Mapping[str, Any], space: Space) -> None:
    """The first trial of a new study: the configuration as it is, which a search has to beat.

    A value outside its range cannot be tried: that one is drawn, and the trial is not called the
    configuration's.
    """
    if study.get_trials(deepcopy=False):
        return
    drawn = [name for name in space if name not in defaults]
    if drawn:
        print(
            f'the configuration has a value of {", ".join(drawn)} outside the range searched: the '
            'first trial is as configured but for that'
        )
    study.enqueue_trial(dict(defaults), user_attrs={} if drawn else {'default': True})


def outcome_of(trial: 'optuna.trial.FrozenTrial') -> str:
    """complete, pruned, diverged, refused (too many numbers), or cut (its process was killed)."""
    from optuna.trial import TrialState

    if trial.state == TrialState.COMPLETE:
        return 'complete'
    return trial.user_attrs.get('outcome', 'cut') if trial.state == TrialState.PRUNED else 'cut'


def finished(study: 'optuna.Study') -> int:
    """Trials that count: those that were trained, to their end or until they were pruned."""
    from optuna.trial import TrialState

    told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return sum(outcome_of(trial) != 'refused' for trial in told)


def refuse(study: 'optuna.Study', asked: Asked, numbers: int) -> None:
    """Tells Optuna that a trial would train too much; no number of it is trained."""
    from optuna.trial import TrialState

    asked.trial.set_user_attr('outcome', 'refused')
    asked.trial.set_user_attr('trained', numbers)
    study.tell(asked.trial, state=TrialState.PRUNED)
