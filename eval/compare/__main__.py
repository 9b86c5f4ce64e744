"""`python -m eval.compare --methods none lora hira --seeds 3`: methods on equal terms."""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Literal

import jax
import tyro

from eval.compare import content, cost, entries, figures, jobs, match, plots, run, table
from eval.compare.entries import BASE, Entry
from eval.compare.forget import NO_TEXT, Text
from eval.compare.jobs import Job, Setting
from eval.compare.match import Found
from jaxpeft.near import nearest
from train import cli, data, errors, rundir
from train.config import Config

COSTS = 'costs.json'  # in --out_dir

DESCRIPTION = """Train and evaluate methods on the same base, data and budget: a learning rate for
each by the validation loss of short runs, then a run a seed; quality with intervals, forgetting,
speed, memory and bytes in one table with Pareto plots. Every other flag is train.run's and holds
for all: --model_name, --dataset, --batch, --max_steps, --eval_limit, --eval_decodings, ...

The same command continues what was stopped or killed; what is finished is never done again. Only
the small files in --out_dir are needed for that, on any machine."""


@dataclasses.dataclass(frozen=True)
class Args:
    """What to compare, and where the figures go."""

    methods: tuple[str, ...] = ('none', 'lora', 'hira', 'knowhira')
    """Methods: none is the untrained base, full trains everything; options behind a colon, as in
    hylorada:init=kaiming or lora:rslora=true,alpha=8 (options of the method, or flags of
    train.run)."""
    seeds: int = 3
    """Runs a method."""
    seeds_of: tuple[str, ...] = ()
    """Other numbers of runs for some: lora=3 hira=3, or lora=3,hira=3."""
    lrs: tuple[float, ...] = ()
    """Learning rates to choose from, for every method; one is taken as it is. Empty: a third, once
    and three times the method's usual one."""
    lrs_of: tuple[str, ...] = ()
    """Others for some methods: hira=1e-3,3e-3 full=1e-5,3e-5."""
    sweep_rows: int = 500
    """Training rows of the short runs that choose the rate, at most; 0: as many as the runs
    have."""
    match: Literal['none', 'params'] = 'none'
    """params: each method's rank is the one that trains nearest to as many numbers as the
    reference."""
    match_to: str = ''
    """The reference of --match; empty: the first method with a rank."""
    r_ab: int = 0
    """Rank of every method (of the reference with --match); 0: that of train.run."""
    only: tuple[str, ...] = ()
    """Work on these methods only; the table shows what is finished of all."""
    forget_text: str = ''
    """Text like what the base was pretrained on (.txt, .gz, .jsonl with a column text). Empty: for
    the embedded base new documents of its own corpus, else none is read."""
    forget_tokens: int = 20_000
    """How many tokens of it are read; 0: all."""
    forget_window: int = 512
    """Tokens in a window of it, and of --test_text."""
    forget_stride: int = 256
    """New tokens in a window of it, and of --test_text."""
    test_text: str = ''
    """For plain text as --dataset: a file that quality is measured on, the same for all, and that
    nothing is chosen by. Empty: the windows that a run holds out, which choose rate and step."""
    test_tokens: int = 0
    """How many tokens of it are read; 0: all."""
    together: bool = True
    """Train the rates, and then the seeds, of a method as one program (train.sweep): on CPU a part
    in each of as many threads as cores, measured at 0.6 of the time of one after the other; mapped
    elsewhere. It takes the memory of as many runs as train at once. --no_together: one after the
    other, each a process."""
    threads: int = 0
    """Threads of --together on CPU, each with the memory of a run; 0: one a core."""
    cost_rounds: int = 6
    """Updates of each method that are timed at the end, in turns; 0: none."""
    out_dir: str = 'compare'
    """Folder of the figures: JSON a run, compare.md, plots. Small, without weights."""
    work_dir: str = ''
    """Folder of the runs with their checkpoints and weights; empty: work/ in --out_dir, which
    git is told to leave out."""
    table_only: bool = False
    """Train nothing; write the table of what is finished."""
    traceback: bool = False
    """Show a refused setting as a whole Python traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when it did, 2 after an error that the user can mend."""
    return errors.guard(_program, argv)


def parse(argv: Sequence[str]) -> tuple[Args, list[str]]:
    """The comparison's own flags, and those that it hands on to train.run."""
    args, rest = tyro.cli(
        Args,
        args=list(argv),
        prog='python -m eval.compare',
        description=DESCRIPTION,
        config=(tyro.conf.OmitArgPrefixes,),
        use_underscores=True,
        return_unknown_args=True,
    )
    entries.check_flags(rest)
    return args, rest


def _program(argv: Sequence[str]) -> None:
    args, rest = parse(argv)
    # Jobs are processes of their own; this one only counts shapes, and leaves the accelerator to
    # them.
    jax.config.update('jax_platforms', 'cpu')
    listed = _entries(args)
    first = next(entry for entry in listed if entry.method != BASE)
    shared, _ = cli.parse([*rest, f'--method={first.method}', *first.flags])
    setting = _setting(args, rest, shared)
    found = [_resolved(setting, entry, first) for entry in listed]
    matched = ''
    if args.match == 'params':
        found, matched = match.equalise(found, args.match_to)
    with rundir.lock(setting.out):
        ignored = setting.out / '.gitignore'
        if not ignored.exists():
            ignored.write_text('work/\n.lock\n')
        _compare(args, setting, found, matched)


def _resolved(setting: Setting, entry: Entry, first: Entry) -> tuple[Entry, Config]:
    """The entry with its configuration; the untrained base gets that of the first method."""
    if entry.method == BASE:
        return entry, jobs.resolve(setting, first)
    config = jobs.resolve(setting, entry)
    return entries.with_rates(entry, config), config


def _setting(args: Args, rest: Sequence[str], config: Config) -> Setting:
    """Checks what the flags say by themselves.

    Args:
      args: the comparison's own flags.
      rest: those of train.run.
      config: any entry's: the base and the data are the same for all.
    """
    for flag, least in (
        ('sweep_rows', 0),
        ('r_ab', 0),
        ('forget_tokens', 0),
        ('test_tokens', 0),
        ('threads', 0),
        ('cost_rounds', 0),
    ):
        if getattr(args, flag) < least:
            raise ValueError(f'--{flag} must be at least {least}, got {getattr(args, flag)}')
    for flag in ('forget_tokens', 'test_tokens'):
        if getattr(args, flag) == 1:
            raise ValueError(f'--{flag} must be 0 (all) or at least 2: one token predicts nothing')
    for flag in ('forget_text', 'test_text'):
        name = getattr(args, flag)
        if name and not pathlib.Path(name).is_file():
            raise FileNotFoundError(f'--{flag} names a file; there is no {name}')
    if args.test_text and not data.is_text(config.data.dataset):
        raise ValueError(
            f'--test_text judges runs on plain text, and --dataset {config.data.dataset} holds '
            'questions, which have test rows of their own'
        )
    out = pathlib.Path(args.out_dir)
    windows = args.forget_window, args.forget_stride
    own = 'embedded' if config.model.model_name == 'embedded' else ''
    text = Text(args.forget_text or own, args.forget_tokens, *windows)
    test = Text(args.test_text, args.test_tokens, *windows) if args.test_text else NO_TEXT
    work = pathlib.Path(args.work_dir) if args.work_dir else out / 'work'
    made_of = content.of(config, {'text of --forget_text': text, 'text of --test_text': test})
    return Setting(tuple(rest), out, work, args.r_ab, args.sweep_rows, text, test, made_of)


def _entries(args: Args) -> list[Entry]:
    found = entries.parse(args.methods, args.seeds, args.seeds_of, args.lrs, args.lrs_of)
    labels = [entry.label for entry in found]
    for label in args.only:
        if label not in labels:
            raise ValueError(f'--only {label!r} is none of --methods; {nearest(label, labels)}')
    return found


def _compare(args: Args, setting: Setting, found: Found, matched: str) -> None:
    """Does what is not done, and writes the table after each step of it."""
    trained = [(entry, config) for entry, config in found if entry.method != BASE]
    base = jobs.base_job(setting, trained[0][1])
    sweeps = {entry.label: jobs.sweep_jobs(setting, entry, config) for entry, config in trained}
    if args.table_only:
        if not base.done:
            raise ValueError(f'--table_only: {setting.out} holds no finished base.json yet')
    else:
        wanted = [pair for pair in trained if not args.only or pair[0].label in args.only]
        runner = run.Runner(setting.work, args.together, args.threads)
        tally = run.Tally(1 + sum(e.seeds + len(sweeps[e.label]) for e, _ in wanted))
        runner.do([base], tally)
        for entry, _ in wanted:
            runner.do(sweeps[entry.label], tally)
        plan = [_runs(setting, e, c, sweeps[e.label]) for e, c in wanted]
        for group in runner.ordered(plan):
            if runner.do(group, tally):
                _write(setting, found, base, sweeps, matched)
        finished = _finished(setting, found, sweeps)
        if args.cost_rounds and finished:
            runner.measure(setting.out / COSTS, finished, args.cost_rounds)
    lines = _write(setting, found, base, sweeps, matched)
    table.show(lines)
    print(setting.out / 'compare.md')


def _finished(setting: Setting, found: Found, sweeps: dict[str, list[Job]]) -> list[Job]:
    """The first finished run of each entry that has one."""
    each = [_runs(setting, e, c, sweeps[e.label]) for e, c in found if e.method != BASE]
    sound = [[job for job in own if job.done and 'diverged' not in job.found()] for own in each]
    return [own[0] for own in sound if own]


def _runs(setting: Setting, entry: Entry, config: Config, sweep: Sequence[Job]) -> list[Job]:
    """An entry's runs, none where every rate diverged or the sweep is not finished."""
    if not all(job.done for job in sweep):
        return []
    rate = jobs.chosen(entry, sweep)
    return [] if rate is None else jobs.run_jobs(setting, entry, config, rate)


def _write(
    setting: Setting, found: Found, base: Job, sweeps: dict[str, list[Job]], matched: str
) -> list[figures.Line]:
    """Writes compare.md, compare.json and the plots, of what is finished; the table's lines."""
    lines = []
    costs = cost.read(setting.out / COSTS, _finished(setting, found, sweeps))
    for entry, config in found:
        if entry.method == BASE:
            continue
        sweep = sweeps[entry.label]
        runs = _runs(setting, entry, config, sweep)
        lines.append(figures.line(entry, sweep, runs, costs.get(entry.label)))
    for place, (entry, _) in enumerate(found):
        if entry.method == BASE:
            others = [run for one in lines for run in one.runs]
            lines.insert(place, figures.base_line(entry, base.found(), others))
    names = plots.write(lines, setting.out / 'plots')
    (setting.out / 'compare.md').write_text(table.render(lines, sweeps, matched, names))
    rundir.write_json(setting.out / 'compare.json', figures.summary(lines))
    return lines


if __name__ == '__main__':
    sys.exit(main())
