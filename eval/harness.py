"""`python -m eval.harness --ckpt RUN --tasks arc_easy`: lm-evaluation-harness on a run or a base.

Where lm_eval is installed (the extra `harness`), importing this file registers the model class
`JaxPEFT` under the name `jaxpeft`, so that `lm_eval.simple_evaluate(model='jaxpeft',
model_args='ckpt=RUN')` works. lm_eval's own command line, with all its options, is

    python -m eval.harness lm_eval --model jaxpeft --model_args ckpt=RUN --tasks arc_easy
"""

import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

from eval import cli, files, harness_table
from train import errors
from train.near import nearest
from train.results import versions
from train.rundir import write_json

INSTALLED = importlib.util.find_spec('lm_eval') is not None
if INSTALLED:
    from eval.lm import JaxPEFT as JaxPEFT

DESCRIPTION = """Evaluate a run, or a bare base model, on tasks of lm-evaluation-harness.
Writes eval/NAME.json in the run directory. Its own command line, with all its options:
python -m eval.harness lm_eval --model jaxpeft --model_args ckpt=RUN --tasks TASK"""


@dataclasses.dataclass(frozen=True)
class Args:
    """What to evaluate, on which tasks, and how."""

    ckpt: str = ''
    """Directory of a run of train.run."""
    model_name: str = ''
    """A bare base model (hub id, folder, or embedded) instead of a run; with --ckpt too,
    where that run's base lies now."""
    method: str = ''
    """none: without the adapter."""
    tasks: str = ''
    """Comma-separated tasks or groups of lm_eval, or .yaml files of tasks."""
    include_path: str = ''
    """Folder with more .yaml tasks."""
    num_fewshot: int = -1
    """Examples in the prompt; -1: as many as each task says."""
    limit: float = 0
    """The first documents of each task, or a share of them below 1; 0 is all."""
    gen_kwargs: str = ''
    """Options of generation over the tasks' own: max_gen_toks=64,temperature=0."""
    chat_template: bool = False
    """Ask through the tokenizer's chat template."""
    batch: int = 16
    """Contexts at once; no answer depends on it."""
    max_length: int = 0
    """Tokens that the model reads at most; 0 is all its positions."""
    seed: int = 0
    """Of few-shot examples and of samples."""
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    """Type of a bare base's weights; a run has its own."""
    name: str = ''
    """Name of the result, eval/NAME.json. Empty: made of the tasks."""
    out: str = ''
    """Write the result to this file too."""
    predictions: bool = False
    """Keep every document with its answers in eval/NAME.samples.jsonl."""
    progress: bool = True
    """Show progress bars."""
    traceback: bool = False
    """Show a refused setting as a whole Python traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when it did, 2 after an error that the user can mend."""
    return errors.guard(_program, argv)


def _program(argv: list[str]) -> None:
    if not INSTALLED and not {'-h', '--help'} & set(argv):
        raise ValueError("this needs lm-evaluation-harness: pip install 'jaxpeft[harness]'")
    if argv[:1] == ['lm_eval']:
        _theirs(argv[1:])
        return
    args = cli.parse(Args, argv, 'python -m eval.harness', DESCRIPTION)
    manager, tasks = _tasks(args)
    lm = JaxPEFT(
        args.ckpt, args.model_name, args.method, args.dtype, args.batch, args.max_length,
        seed=args.seed, progress=args.progress,
    )  # fmt: skip
    config = configuration(args, lm.subject.identity)
    folder = lm.subject.folder / 'eval'
    file = folder / f'{args.name or default_name(args)}.json'
    outs = [file, pathlib.Path(args.out)] if args.out else [file]
    for path in outs:
        files.check_free(path, config)
    found, seconds = _measure(args, lm, manager, tasks)
    record = {'config': config, 'versions': versions(), 'seconds': seconds, 'cut': dict(lm.cut)}
    record['harness'] = {
        k: found[k] for k in ('results', 'groups', 'n-shot', 'n-samples') if k in found
    }
    for path in outs:
        write_json(path, record)
    if args.predictions:
        outs.append(_write_samples(file, found))
    print(harness_table.text(record))
    print('\n'.join(map(str, outs)))


def _theirs(argv: list[str]) -> None:
    """lm_eval's own command line, which knows the model class now."""
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ['lm_eval', *argv]
    cli_evaluate()


def _tasks(args: Args) -> tuple[Any, list[str]]:
    """lm_eval's task manager, and the tasks asked for, each of which it knows."""
    from lm_eval.tasks import TaskManager

    asked = [part.strip() for part in args.tasks.split(',') if part.strip()]
    if not asked:
        raise ValueError('no task was asked for: --tasks takes names of lm_eval or .yaml files')
    if args.include_path and not pathlib.Path(args.include_path).is_dir():
        raise FileNotFoundError(f'--include_path {args.include_path} is no folder')
    named = [task for task in asked if not task.endswith('.yaml')]
    for file in asked:
        if file not in named and not pathlib.Path(file).is_file():
            raise FileNotFoundError(f'no task file {file}')
    where = args.include_path or None
    manager = TaskManager(include_path=where, include_defaults=False)
    if not all(manager.match_tasks([task]) for task in named):
        manager = TaskManager(include_path=where)  # reads thousands of files: where it is needed
    for task in named:
        if not manager.match_tasks([task]):
            raise ValueError(f'lm_eval has no task {task!r}; {nearest(task, manager.all_tasks)}')
    return manager, asked


def _measure(args: Args, lm: Any, manager: Any, tasks: list[str]) -> tuple[dict[str, Any], float]:
    import lm_eval

    begun = time.perf_counter()
    found = lm_eval.simple_evaluate(
        model=lm,
        tasks=tasks,
        task_manager=manager,
        num_fewshot=None if args.num_fewshot < 0 else args.num_fewshot,
        limit=args.limit or None,
        gen_kwargs=args.gen_kwargs or None,
        apply_chat_template=args.chat_template,
        log_samples=args.predictions,
        bootstrap_iters=1000,
        random_seed=args.seed,
        numpy_random_seed=args.seed,
        torch_random_seed=args.seed,
        fewshot_random_seed=args.seed,
    )
    return found, round(time.perf_counter() - begun, 2)


def configuration(args: Args, identity: dict[str, Any]) -> dict[str, Any]:
    """Everything that the figures depend on, and nothing else (no batch size, no paths)."""
    import lm_eval

    own = ('tasks', 'num_fewshot', 'limit', 'gen_kwargs', 'chat_template', 'max_length', 'seed')
    flags = dataclasses.asdict(args)
    local = [pathlib.Path(t) for t in args.tasks.split(',') if t.strip().endswith('.yaml')]
    local += sorted(pathlib.Path(args.include_path).rglob('*.yaml')) if args.include_path else []
    text = b'\0'.join(path.read_bytes() for path in local)
    return (
        identity
        | {key: flags[key] for key in own}
        | {'lm_eval': lm_eval.__version__}
        | ({'task_files_sha256': hashlib.sha256(text).hexdigest()[:16]} if local else {})
    )


def default_name(args: Args) -> str:
    """'harness-arc_easy-limit100', '...-base' of a run without its adapter."""
    tasks = [pathlib.PurePath(t.strip()).name.removesuffix('.yaml') for t in args.tasks.split(',')]
    parts = ['harness', *tasks]
    if args.num_fewshot >= 0:
        parts.append(f'{args.num_fewshot}shot')
    if args.limit:
        parts.append(f'limit{args.limit:g}')
    if args.ckpt and args.method == 'none':
        parts.append('base')
    return '-'.join(parts)


def _write_samples(file: pathlib.Path, found: dict[str, Any]) -> pathlib.Path:
    path = file.with_suffix('.samples.jsonl')
    lines = [
        json.dumps({'task': task, **sample}, default=str)
        for task, samples in found['samples'].items()
        for sample in samples
    ]
    path.write_text(''.join(line + '\n' for line in lines))
    return path


if __name__ == '__main__':
    sys.exit(main())
