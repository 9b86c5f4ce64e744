"""A batch of trials through `train.sweep`: each validation is reported, and Optuna may prune."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jaxpeft as jp
from train import config as configs
from train import feed, loop, model, sweep
from train.config import Config
from train.model import Built
from train.sweep import members as members_lib
from train.tune import space as spaces
from train.tune.space import RATIO, Space
from train.tune.study import Asked

if TYPE_CHECKING:
    import optuna

MEMBERS = ('lr', 'weight_decay')  # what a sweep's member may have of its own, beside options


class Bench(NamedTuple):
    """What all trials share.

    Attributes:
      config: the configuration that the trials change.
      built: the base, once.
      examples: the data, encoded once.
      steps: updates of a trial.
      looks: the updates after which it is validated.
    """

    config: Config
    built: Built
    examples: list
    steps: int
    looks: tuple[int, ...]


def prepare(config: Config, pruner: str) -> Bench:
    """Loads base and data.

    Raises:
      ValueError: without validation there is nothing to search by; with a single one a pruner can
        never act.
    """
    if config.validation.eval_strategy == 'no':
        raise ValueError('the search goes by the validation loss, got --eval_strategy no')
    built = model.setup(config, fresh=False)
    examples = feed.examples(config, built.tokenizer)
    fed = feed.from_examples(config, examples, built.mesh)
    looks = tuple(n for n in range(1, fed.steps + 1) if loop.validates(config, fed, n))
    if len(looks) < 2 and pruner != 'none':
        raise ValueError(
            f'{fed.steps} updates with --eval_steps {config.validation.eval_steps} are validated '
            f'{len(looks)} time, at the end, so that --pruner {pruner} could never prune: give '
            f'--eval_steps {max(fed.steps // 4, 1)}, or --pruner none'
        )
    print(feed.describe(fed))
    return Bench(config, built, examples, fed.steps, looks)


def fixed(config: Config, space: Space) -> list[str]:
    """The names that trials of one program must share: all but numbers of the formulas."""
    found = []
    for name in space:
        method, _, last = name.rpartition('.')
        option = 'alpha' if last == RATIO else last
        takers = {m: o for m, o in config.options.items() if method in ('', m) and option in o}
        numbers = {m: given | {option: _example(space, name)} for m, given in takers.items()}
        free = name in MEMBERS or (
            name not in spaces.FLAGS
            and all(members_lib.traceable(m, option, given) for m, given in numbers.items())
        )
        if not free:
            found.append(name)
    return found


def _example(space: Space, name: str) -> Any:
    """A value that the option may have; a float for a range of floats, whatever its default."""
    return space[name].values[0]


def groups(config: Config, asked: Sequence[Asked]) -> list[tuple[Config, list[int]]]:
    """(what they share, numbers into `asked`) of the trials that can train as one program."""
    shared: dict[str, tuple[Config, list[int]]] = {}
    for number, one in enumerate(asked):
        base = _shared(config, spaces.apply(config, one.values))
        key = json.dumps(configs.identity(base), sort_keys=True)
        shared.setdefault(key, (base, []))[1].append(number)
    return [
        (base, [numbers[i] for i in group])
        for base, numbers in shared.values()
        for group in sweep.groups(base, [member(config, asked[n].values) for n in numbers])
    ]


def _shared(config: Config, mine: Config) -> Config:
    """A trial's configuration without what its member says."""
    own = {name: getattr(config.optim, name) for name in MEMBERS}
    optim = dataclasses.replace(mine.optim, **own)
    return dataclasses.replace(mine, optim=optim, options=config.options)


def member(config: Config, values: Mapping[str, Any]) -> sweep.Member:
    """A trial as the member of a sweep."""
    mine = spaces.apply(config, values)
    options = {f'{name}.{o}': v for name, given in mine.options.items() for o, v in given.items()}
    return sweep.Member(lr=mine.optim.lr, weight_decay=mine.optim.weight_decay, options=options)


def train(
    bench: Bench,
    study: 'optuna.Study',
    asked: Sequence[Asked],
    on_step: Callable[[int, Mapping[int, float]], None] | None = None,
) -> None:
    """Trains a batch, group by group, and tells the study how each trial ended.

    The objective is the best validation loss of the run, penalties left out: that of the adapter
    which `train.run` would keep. A trial whose loss is not finite counts as pruned.

    Args:
      bench: what all trials share.
      study: Optuna's.
      asked: the trials.
      on_step: see `train.sweep.train`.
    """
    for shared, numbers in groups(bench.config, asked):
        trials = [asked[n] for n in numbers]

        def judge(look: sweep.Look, trials: Sequence[Asked] = trials) -> Iterable[int]:
            for i, loss in look.losses.items():
                trials[i].trial.report(loss, look.step)
            if look.step == bench.steps:
                return ()  # it is trained: nothing is saved by pruning it now
            return [i for i in look.losses if trials[i].trial.should_prune()]

        outcome = sweep.train(
            shared,
            bench.built,
            bench.examples,
            [member(bench.config, one.values) for one in trials],
            on_eval=judge,
            on_step=on_step,
        )
        for one, run in zip(trials, outcome.runs, strict=True):
            tell(study, one, run)


def tell(study: 'optuna.Study', asked: Asked, run: sweep.Run) -> None:
    """Tells the study how a trial ended."""
    from optuna.trial import TrialState

    trial, ledger = asked.trial, run.ledger
    outcome = 'complete'
    if run.why.startswith('pruned'):
        outcome = 'pruned'
    elif 'not finite' in run.why:
        outcome = 'diverged'
    for key, value in {
        'outcome': outcome,
        'why': run.why,
        'trained': jp.count(run.state),
        'steps': ledger.step,
        'best_step': ledger.best_step,
        'best_loss': ledger.best_loss,
        'seconds': round(ledger.seconds, 3),
    }.items():
        trial.set_user_attr(key, value)
    if outcome == 'complete':
        study.tell(trial, ledger.best_loss)
    else:
        study.tell(trial, state=TrialState.PRUNED)
