"""What a comparison has to do: jobs, each with the file that says that it is done.

    base.json                      the untrained base
    sweep/METHOD-lr0.001.json      a short run's validation loss
    runs/METHOD-seed0.json         a run: quality, forgetting, speed, memory, bytes

A file is believed where its `config` is that of its job. Paths are no part of it, so that the files
mean the same on another machine.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from eval.compare import match
from eval.compare.entries import BASE, Entry
from eval.compare.forget import Text
from train import cli, outs
from train import config as configs
from train.config import Config

PATHS = ('model_name', 'dataset')  # known by their names alone
OWN = {
    'method': 'give --methods',
    'seed': 'give --seeds N',
    'lr': 'give --lrs',
    'run_dir': 'give --out_dir',
    'resume': 'what is finished is always kept',
    'out': 'give --out_dir',
    'wandb': 'start that run with train.run',
}  # flags of train.run that a comparison sets for each run


class Job(NamedTuple):
    """One thing to do.

    Attributes:
      kind: 'base', 'sweep' or 'run'.
      label: the entry's.
      file: what says that it is done.
      config: of the run.
      text: what forgetting is measured on.
    """

    kind: str
    label: str
    file: pathlib.Path
    config: Config
    text: Text

    @property
    def identity(self) -> dict[str, Any]:
        """What its figures depend on, as JSON."""
        found = configs.identity(self.config)
        del found['data_dir']
        if self.kind == 'base':
            found = {k: found[k] for k in BASE_KEYS if k in found}
        found |= {key: pathlib.PurePath(found[key]).name for key in PATHS}
        text = self.text._asdict() | {'file': pathlib.PurePath(self.text.file).name}
        return found | ({} if self.kind == 'sweep' else {'forget': text})

    @property
    def done(self) -> bool:
        """Whether its file is there.

        Raises:
          ValueError: where it is there and of another configuration.
        """
        if not self.file.exists():
            return False
        outs.check_free(self.file, self.identity)
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
      text: see Job.
    """

    flags: tuple[str, ...]
    out: pathlib.Path
    work: pathlib.Path
    rank: int
    sweep_rows: int
    text: Text


def check_flags(flags: Sequence[str]) -> None:
    """Refuses flags of train.run that the comparison itself sets.

    Raises:
      ValueError: naming it and what to give instead.
    """
    for name, instead in OWN.items():
        if _given(flags, name):
            raise ValueError(f'--{name} is what eval.compare sets for each run; {instead}')


def resolve(setting: Setting, entry: Entry) -> Config:
    """An entry's configuration, as train.run would resolve it; seed and rate are set later.

    The untrained base has none of its own, and gets that of a method.
    """
    defaults = [] if _given(setting.flags, 'eval_decodings') else ['--eval_decodings=loglik']
    method = 'lora' if entry.method == BASE else entry.method
    config, _ = cli.parse([*defaults, *setting.flags, f'--method={method}', *entry.flags])
    own_rank = any('rank=' in flag or 'r_ab' in flag for flag in entry.flags)
    if setting.rank and match.ranked(config) and not own_rank:
        config = match.with_rank(config, setting.rank)
    return config


def _given(flags: Sequence[str], name: str) -> bool:
    return any(f[2:].split('=')[0].replace('-', '_') == name for f in flags if f.startswith('--'))


def base_job(setting: Setting, config: Config) -> Job:
    """The untrained base: asked, and read the text of forgetting."""
    folder = setting.work / BASE
    there = dataclasses.replace(config, run=dataclasses.replace(config.run, run_dir=str(folder)))
    return Job('base', BASE, setting.out / 'base.json', there, setting.text)


def sweep_jobs(setting: Setting, entry: Entry, config: Config) -> list[Job]:
    """A short run for each learning rate; none where there is no choice."""
    if len(entry.rates) < 2:
        return []
    rows = setting.sweep_rows
    if rows and config.data.train_rows:
        rows = min(rows, config.data.train_rows)
    optim = config.optim
    steps = optim.max_steps
    if rows:
        passes = math.ceil(optim.epoch * rows / (optim.batch * optim.grad_acc))
        steps = min(steps or passes, passes)
    data = dataclasses.replace(config.data, train_rows=rows or config.data.train_rows)
    quiet = dataclasses.replace(config.evaluation, eval_tasks='none')
    jobs = []
    for rate in entry.rates:
        name = f'{entry.slug}-lr{rate:g}'
        jobs.append(
            Job(
                'sweep',
                entry.label,
                setting.out / 'sweep' / f'{name}.json',
                dataclasses.replace(
                    config,
                    data=data,
                    evaluation=quiet,
                    optim=dataclasses.replace(optim, lr=rate, max_steps=steps, seed=0),
                    run=dataclasses.replace(config.run, run_dir=str(setting.work / 'sweep' / name)),
                ),
                setting.text,
            )
        )
    return jobs


def run_jobs(setting: Setting, entry: Entry, config: Config, rate: float) -> list[Job]:
    """A run for each seed."""
    jobs = []
    for seed in range(entry.seeds):
        name = f'{entry.slug}-seed{seed}'
        jobs.append(
            Job(
                'run',
                entry.label,
                setting.out / 'runs' / f'{name}.json',
                dataclasses.replace(
                    config,
                    optim=dataclasses.replace(config.optim, lr=rate, seed=seed),
                    run=dataclasses.replace(config.run, run_dir=str(setting.work / 'runs' / name)),
                ),
                setting.text,
            )
        )
    return jobs


def chosen(entry: Entry, sweep: Sequence[Job]) -> float | None:
    """The rate of the lowest validation loss; None where every one diverged."""
    if not sweep:
        return entry.rates[0]
    losses = {job.config.optim.lr: job.found()['val_loss'] for job in sweep}
    sound = {rate: loss for rate, loss in losses.items() if loss is not None}
    return min(sound, key=lambda rate: (sound[rate], rate)) if sound else None
