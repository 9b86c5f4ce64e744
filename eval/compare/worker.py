"""A process that does one job, or the jobs of one sweep, and writes their files.

`eval.compare` starts it: `python -m eval.compare.worker JOBS.json`. It ends when its parent does,
so that nothing goes on writing into a run that a second start continues.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax

import jaxpeft as jp
from eval import perplexity, report
from eval.compare import cost, forget
from eval.compare.forget import Text
from eval.compare.jobs import Job
from eval.evaluate import evaluate
from train import config as configs
from train import data, errors, feed, loop, model, results, rundir, sweep
from train.checkpoint import exists
from train.config import Config
from train.model import Built
from train.stop import Stop

STOPPED = 75  # exit code after a SIGTERM: the same command continues


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when it did, 2 after an error that the user can mend."""
    return errors.guard(_program, argv)


def _program(argv: Sequence[str]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    perform(json.loads(pathlib.Path(argv[0]).read_text()))


def perform(task: dict[str, Any]) -> None:
    """Does {'jobs': [as `written` gives them], 'together': as one program, 'threads': of it}.

    With 'costs', a file, it measures what an update of each job costs, in so many 'rounds'.

    Raises:
      SystemExit: with STOPPED, after a SIGTERM; in training after a checkpoint.
    """
    jobs = [read(item) for item in task['jobs']]
    work: dict[str, Callable[..., None]] = {'base': _base, 'sweep': _sweep, 'run': _run}
    with Stop(STOPPED) as stop:
        if 'costs' in task:
            return _costs(pathlib.Path(task['costs']), jobs, task['rounds'], stop)
        if task['together'] and len(jobs) > 1:
            return _together(jobs, stop, task['threads'])
        for job in jobs:
            if not job.done:
                work[job.kind](job, stop)


def _end_with_parent() -> None:
    """Standard input is a pipe that the parent never writes to; it ends when the parent does."""
    os.read(0, 1)  # unbuffered: a thread in sys.stdin would hold its lock at exit
    os._exit(STOPPED)


def written(job: Job) -> dict[str, Any]:
    """The job as JSON, for `read`."""
    parts = {name: getattr(job, name)._asdict() for name in ('text', 'test')}
    config = configs.to_dict(job.config)
    return {**job._asdict(), **parts, 'file': str(job.file), 'config': config}


def read(item: dict[str, Any]) -> Job:
    """The inverse of `written`."""
    texts = {name: Text(**item[name]) for name in ('text', 'test')}
    config = configs.from_dict(item['config'])
    return Job(**item | texts | {'file': pathlib.Path(item['file']), 'config': config})


def _write(job: Job, found: dict[str, Any]) -> None:
    head = {'config': job.identity, 'versions': results.versions(), 'label': job.label}
    rundir.write_json(job.file, head | {'content': dict(job.content)} | found)


def _probe(config: Config, held: Sequence[Any]) -> results.Probe:
    return results.Probe(evaluate, perplexity.measure, results.benchmark_rows(config), held)


def _held(config: Config, built: Built) -> Sequence[Any]:
    """The held-out windows of a data set of plain text."""
    if not data.is_text(config.data.dataset):
        return ()
    return feed.make(config, built.tokenizer, built.mesh).held_text


def _texts(job: Job, built: Built, plan: Any, state: jp.State) -> dict[str, Any]:
    """{'forget': perplexity of the text of forgetting, 'test': of the one that judges}."""
    forward = model.bound(plan, built.model, built.tokenizer)
    found = {}
    for name, text in (('forget', job.text), ('test', job.test)):
        ids = forget.tokens(text, built.tokenizer)
        found[name] = forget.measure(text, ids, forward, state, built.params, built.model)
    return found


def _costs(file: pathlib.Path, jobs: Sequence[Job], rounds: int, stop: Stop) -> None:
    found = cost.measure(jobs, rounds, lambda: stop.asked)
    _check_finished(found is not None)
    assert found is not None
    cost.write(file, jobs, rounds, found)


def _base(job: Job, stop: Stop) -> None:
    """The bare base: the questions, and the texts."""
    del stop
    built = model.setup(job.config, fresh=False)
    none = jp.State({}, {})
    found = results.measure(
        _probe(job.config, _held(job.config, built)), job.config, built, {}, none
    )
    frozen = sum(x.size for x in jax.tree.leaves(built.params))
    _write(job, {'after': found, **_texts(job, built, {}, none), 'frozen': frozen})


def _sweep(job: Job, stop: Stop) -> None:
    """A short run: its best validation loss, or none where it diverged."""
    with rundir.claim(job.config) as place:
        built = model.setup(job.config, fresh=not place.resumed)
        examples = feed.examples(job.config, built.tokenizer)
        fed = feed.from_examples(_fitting(job, examples), examples, built.mesh)
        print(feed.describe(fed))
        try:
            outcome = loop.train(job.config, built, fed, place.folder, stop)
        except FloatingPointError as error:  # what a learning rate too large does
            return _write(job, {'val_loss': None, 'diverged': str(error)})
    _check_finished(outcome.finished)
    _write(job, {'val_loss': outcome.ledger.best_loss, **_speed(outcome.ledger)})


def _fitting(job: Job, examples: Sequence[Any]) -> Config:
    """The configuration; a short run takes all rows there are where `--sweep_rows` is more."""
    config = job.config
    left = max(len(examples) - config.data.val_size, 0)
    if job.kind != 'sweep' or config.data.train_rows <= left:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, train_rows=left))


def _run(job: Job, stop: Stop) -> None:
    """A run of train.run in its own folder, and what the table wants to know beside it."""
    config = job.config
    with rundir.claim(config) as place:
        built = model.setup(config, fresh=not place.resumed)
        fed = feed.make(config, built.tokenizer, built.mesh)
        print(model.summary(built))
        try:
            outcome = loop.train(config, built, fed, place.folder, stop)
            _check_finished(outcome.finished)
            peak = cost.kept(place.folder / 'peak.json')
            built = built._replace(state=outcome.state)
            own = {'process_bytes': peak, **_speed(outcome.ledger)}
            _finish(job, built, place.folder, outcome, fed.held_text, own)
        except FloatingPointError as error:  # in training, or of what it ended with
            _write(job, {'diverged': str(error)})


def _check_finished(finished: bool) -> None:
    if not finished:
        raise SystemExit(STOPPED)


def _finish(
    job: Job,
    built: Built,
    folder: pathlib.Path,
    outcome: loop.Outcome,
    held: Sequence[Any],
    own: dict[str, Any],
) -> None:
    """Evaluates a trained run, writes its results.json and report, and then the job's file.

    Args:
      held: the held-out windows of plain text.
      own: what else the job's file is to hold.
    """
    config, ledger = job.config, outcome.ledger
    probe = _probe(config, held)
    if held:  # each seed holds other windows out
        before = results.before(probe, config, built, folder)
    else:
        before = json.loads((job.file.parents[1] / 'base.json').read_text())['after']
    after = results.after(probe, config, built, folder, outcome)
    _, state = jp.load_adapter(folder / 'adapter', built.params)
    found = results.build(config, jp.count(outcome.state), ledger, before, after)
    rundir.write_json(folder / 'results.json', found)
    report.write(folder)
    size = sum(file.stat().st_size for file in (folder / 'adapter').iterdir())
    facts = {'rank': _rank(config), 'adapter_bytes': size, 'after': after}
    facts |= _texts(job, built, built.plan, state)
    if held:
        facts['before'] = before
    _write(job, {'train': found['train'], **own, **facts})


def _speed(ledger: loop.Ledger) -> dict[str, Any]:
    """Seconds an update, the first left out: it waits for the compiler."""
    rate = ledger.tokens_per_second
    return {
        'steps': ledger.step,
        'seconds_per_step': ledger.tokens / ledger.step / rate if rate else None,
        'tokens_per_second': rate or None,
    }


def _rank(config: Config) -> int | None:
    ranks = {given['rank'] for given in config.options.values() if 'rank' in given}
    return ranks.pop() if len(ranks) == 1 else None


def _together(jobs: Sequence[Job], stop: Stop, threads: int) -> None:
    """Seeds or learning rates as one program; each member's files are those of a run alone.

    The one program has checkpoints of its own. They are of all its members, so those that are
    finished take part where it is continued, and are left out where it begins.
    """
    if not exists(_folder(jobs) / 'checkpoints'):
        jobs = [job for job in jobs if not job.done]
    config = jobs[0].config
    built = model.setup(config, fresh=False)
    examples = feed.examples(config, built.tokenizer)
    config = _fitting(jobs[0], examples)
    members = [sweep.Member(seed=j.config.optim.seed, lr=j.config.optim.lr) for j in jobs]
    outcome = sweep.train(
        config,
        built,
        examples,
        members,
        folder=_folder(jobs),
        stop=stop,
        on_step=_progress(len(jobs)),
        threads=threads or None,
    )
    _check_finished(outcome.finished)
    for job, run in zip(jobs, outcome.runs, strict=True):
        if job.done:
            continue
        if 'not finite' in run.why:
            _write(job, {'val_loss': None, 'diverged': run.why})
        elif job.kind == 'sweep':
            _write(job, {'val_loss': run.ledger.best_loss, **_speed(run.ledger)})
        else:
            try:
                _finish_member(job, built, run, len(jobs))
            except FloatingPointError as error:
                _write(job, {'diverged': str(error)})


def _folder(jobs: Sequence[Job]) -> pathlib.Path:
    """Where the one program of these jobs keeps its checkpoints."""
    names = '+'.join(job.file.stem for job in jobs)
    digest = hashlib.sha256(names.encode()).hexdigest()[:8]
    first = configs.run_dir(jobs[0].config)
    return first.parent / f'together-{first.name}-{digest}'


def _finish_member(job: Job, built: Built, run: sweep.Run, together: int) -> None:
    """A member's run folder as train.run leaves it, without checkpoints: it is finished."""
    config = job.config
    mine = built._replace(plan=model.make_plan(config, built.model, built.params), state=run.state)
    with rundir.claim(config) as place:
        loop.save_adapter(place.folder, mine, run.state)
        lines = [
            {'step': n, 'loss': float(loss)}
            | ({'val_loss': run.validation[n]} if n in run.validation else {})
            for n, loss in enumerate(run.losses, 1)
        ]
        text = ''.join(json.dumps(line) + '\n' for line in lines)
        (place.folder / 'metrics.jsonl').write_text(text)
        outcome = loop.Outcome(run.state, run.ledger, True)
        own: dict[str, Any] = {'steps': run.ledger.step, 'together': together}
        _finish(job, mine, place.folder, outcome, _held(config, mine), own)


def _progress(members: int) -> Callable[[int, Any], None]:
    def show(number: int, losses: Any) -> None:
        mean = sum(losses.values()) / max(len(losses), 1)
        print(f'step {number}: {len(losses)} of {members}, mean loss {mean:.4f}', flush=True)

    return show


if __name__ == '__main__':
    sys.exit(main())
