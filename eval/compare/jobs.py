"""What a comparison has to do: jobs, each with the file that says that it is done.

    base.json                      the untrained base
    sweep/METHOD-lr0.001.json      a short run's validation loss
    runs/METHOD-seed0.json         a run: quality, forgetting, speed, memory, bytes

A file is believed where its `config` is that of its job. Paths are no part of it, so that the files
mean the same on another machine; what lies there is known by its content, see `content`.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eval.compare import content, entries, match
from eval.compare.entries import BASE, Entry
from eval.compare.forget import NO_TEXT, Text
from train import cli, outs
from train import config as configs
from train.config import Config

PATHS = ('model_name', 'dataset')  # known by their names alone


class Job(NamedTuple):
    """One thing to do.

    Attributes:
      kind: 'base', 'sweep' or 'run'.
      label: the entry's.
      file: what says that it is done.
      config: of the run.
      text: what forgetting is measured on.
      test: text that a run on plain text is judged by; nothing is chosen by it.
      content: what all this was made of, see `content.of`.
    """

    kind: str
    label: str
    file: pathlib.Path
    config: Config
    text: Text = NO_TEXT
    test: Text = NO_TEXT
    content: Mapping[str, str] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """What its figures depend on, as JSON."""
        found = configs.identity(self.config)
        del found['data_dir']
        if self.kind == 'base':
            found = {k: found[k] for k in BASE_KEYS if k in found}
        found |= {key: pathlib.PurePath(found[key]).name for key in PATHS}
        if self.kind == 'sweep':
            return found
        test = {'test': self.test.identity} if self.test.file else {}
        return found | {'forget': self.text.identity} | test

    @property
    def done(self) -> bool:
        """Whether its file is there.

        Raises:
          ValueError: where it is there and of another configuration, or made of other files.
        """
        if not self.file.exists():
            return False
        outs.check_free(self.file, self.identity)
        changed = content.differences(self.found().get('content', {}), self.content)
        if changed:
            raise ValueError(
                f'{self.file} was made with other content of the {" and the ".join(changed)} '
                'than is there now. Give another --out_dir, or remove the file'
            )
        return True

    def found(self) -> dict[str, Any]:
        """What its file holds."""
        return json.loads(self.file.read_text())


BASE_KEYS = (
    'model_name', 'dtype', 'dataset', 'template', 'eval_tasks', 'eval_limit', 'eval_decodings',
    'max_new_tokens', 'max_length', 'val_size',
)  # fmt: skip


class Setting(NamedTuple):
    """What all entries share.

    Attributes:
      flags: of train.run, as typed.
      out, work: the two folders.
      rank: of every method; 0 is the method's own.
      sweep_rows: of a sweep's runs.
      text, test, content: see Job.
    """

    flags: tuple[str, ...]
    out: pathlib.Path
    work: pathlib.Path
    rank: int
    sweep_rows: int
    text: Text
    test: Text = NO_TEXT
    content: Mapping[str, str] = {}

    def job(self, kind: str, label: str, file: str, config: Config, folder: str) -> Job:
        """A job whose figures go to a file in `out`, and whose run works in a folder of `work`."""
        run = dataclasses.replace(config.run, run_dir=str(self.work / folder))
        there = dataclasses.replace(config, run=run)
        own = dict(self.content)
        if kind == 'sweep':
            own = {name: own[name] for name in content.OF_TRAINING if name in own}
        return Job(kind, label, self.out / file, there, self.text, self.test, own)


def resolve(setting: Setting, entry: Entry) -> Config:
    """An entry's configuration, as train.run would resolve it; seed and rate are set later."""
    defaults = [] if entries.given(setting.flags, 'eval_decodings') else ['--eval_decodings=loglik']
    config, _ = cli.parse([*defaults, *setting.flags, f'--method={entry.method}', *entry.flags])
    if setting.rank and match.ranked(config) and not entry.own_rank:
        config = match.with_rank(config, setting.rank)
    return config


def base_job(setting: Setting, config: Config) -> Job:
    """The untrained base: asked, and read the text of forgetting."""
    return setting.job('base', BASE, 'base.json', config, BASE)


def sweep_jobs(setting: Setting, entry: Entry, config: Config) -> list[Job]:
    """A short run for each learning rate; none where there is no choice."""
    if len(entry.rates) < 2:
        return []
    if config.validation.eval_strategy == 'no':
        raise ValueError(
            f'{entry.label}: one of {len(entry.rates)} learning rates is chosen by validation, and '
            '--eval_strategy no leaves it out; give one rate (--lrs), or another strategy'
        )
    count = setting.sweep_rows
    if count and config.data.train_rows:
        count = min(count, config.data.train_rows)
    optim = config.optim
    steps = optim.max_steps
    if count:
        passes = math.ceil(optim.epoch * count / (optim.batch * optim.grad_acc))
        steps = min(steps or passes, passes)
    rows = dataclasses.replace(config.data, train_rows=count or config.data.train_rows)
    quiet = dataclasses.replace(config.evaluation, eval_tasks='none')
    jobs = []
    for rate in entry.rates:
        name = f'sweep/{entry.slug}-lr{rate:g}'
        own = dataclasses.replace(optim, lr=rate, max_steps=steps, seed=0)
        short = dataclasses.replace(config, data=rows, evaluation=quiet, optim=own)
        jobs.append(setting.job('sweep', entry.label, f'{name}.json', short, name))
    return jobs


def run_jobs(setting: Setting, entry: Entry, config: Config, rate: float) -> list[Job]:
    """A run for each seed."""
    jobs = []
    for seed in range(entry.seeds):
        name = f'runs/{entry.slug}-seed{seed}'
        own = dataclasses.replace(config.optim, lr=rate, seed=seed)
        there = dataclasses.replace(config, optim=own)
        jobs.append(setting.job('run', entry.label, f'{name}.json', there, name))
    return jobs


def chosen(entry: Entry, sweep: Sequence[Job]) -> float | None:
    """The rate of the lowest validation loss; None where every one diverged."""
    if not sweep:
        return entry.rates[0]
    losses = {job.config.optim.lr: job.found()['val_loss'] for job in sweep}
    sound = {rate: loss for rate, loss in losses.items() if loss is not None}
    return min(sound, key=lambda rate: (sound[rate], rate)) if sound else None
