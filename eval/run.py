"""`python -m eval.run --ckpt RUN`: the eight benchmarks on a run's adapter, or on a bare base."""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

from eval import cli, files, report, rows, subject, table
from eval.evaluate import Answer
from eval.evaluate import evaluate as evaluate
from eval.subject import Subject
from train import benchmarks, errors
from train.results import versions
from train.rundir import write_json

DESCRIPTION = """Evaluate a run, or a bare base model, on the eight commonsense benchmarks.
Writes eval/NAME.json, report.md and plots/ in the run directory. No question is ever shortened."""

ASKED = ('model_name', 'dataset', 'data_dir', 'limit')  # what the rows were asked for by


@dataclasses.dataclass(frozen=True)
class Args:
    """What to evaluate, on which rows, and how."""

    ckpt: str = ''
    """Directory of a run of train.run."""
    model_name: str = ''
    """A bare base model (hub id, folder, or embedded) instead of a run. Beside --ckpt: where the
    run's base lies now."""
    method: str = ''
    """none: the run's base without the adapter."""
    dataset: str = 'all'
    """Comma-separated benchmarks, or all: boolq, piqa, social_i_qa (siqa),
    hellaswag (hellas), winogrande (winog), ARC-Easy (arce), ARC-Challenge (arcc),
    openbookqa (obqa)."""
    data_dir: str = ''
    """Folder with TASK.test.jsonl.gz files. Empty: that of the run, else the hub."""
    limit: int = 0
    """The first rows of each task; 0 is all."""
    decoding: Literal['loglik', 'greedy', 'beam', 'fixed'] = 'loglik'
    """loglik compares the labels' likelihoods; greedy and beam write text, which is
    parsed; fixed is the reference program's sampling, defects included."""
    batch: int = 32
    """Rows at once; no prediction depends on it."""
    max_new_tokens: int = 16
    """Tokens that a decoding may write."""
    num_beams: int = 4
    """Beams of --decoding beam."""
    seed: int = 0
    """Seed of --decoding fixed."""
    template: Literal['', 'flat', 'llm-adapters'] = ''
    """The prompt's layout. Empty: the one the run was trained with, flat for a bare base."""
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    """Type of a bare base's weights; a run has its own."""
    name: str = ''
    """Name of the result, eval/NAME.json. Empty: made of data set, decoding and limit."""
    out: str = ''
    """Write the result to this file too."""
    predictions: bool = False
    """Keep every answer in eval/NAME.predictions.jsonl."""
    progress: bool = True
    """Show a progress bar."""
    traceback: bool = False
    """Show a refused setting as a whole Python traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when it did, 2 after an error that the user can mend."""
    return errors.guard(_program, argv)


def _program(argv: list[str]) -> None:
    args = cli.parse(Args, argv, 'python -m eval.run', DESCRIPTION)
    if pathlib.PurePath(args.name).name != args.name:
        raise ValueError(f"--name is a name in the run's eval/, without folders, got {args.name!r}")
    model = subject.load(args.ckpt, args.model_name, args.method, args.dtype)
    asked = rows.load(args.dataset, args.data_dir or model.data_dir, args.limit)
    config = configuration(args, model, asked)
    file = model.folder / 'eval' / f'{args.name or default_name(args)}.json'
    outs = [file, pathlib.Path(args.out)] if args.out else [file]
    for path in outs:
        files.check_free(path, config)
    answers: list[Answer] = []
    found = _measure(args, model, asked, config, answers)
    for path in outs:
        write_json(path, found)
    if args.predictions:
        outs.append(_write_predictions(file, answers))
    print(table.evaluation(found['eval'][args.decoding], args.decoding))
    outs.append(report.write(model.folder))
    print('\n'.join(map(str, outs)))


def _measure(args: Args, model: Subject, asked, config, answers: list[Answer]) -> dict[str, Any]:
    begun = time.perf_counter()
    found = evaluate(
        model.forward,
        model.state,
        model.params,
        model.model,
        model.tokenizer,
        tasks=list(asked),
        rows=asked,
        style=config['template'],
        decoding=args.decoding,
        batch=args.batch,
        max_new_tokens=args.max_new_tokens,
        progress=args.progress,
        beams=args.num_beams,
        seed=args.seed,
        answers=answers,
    )
    seconds = time.perf_counter() - begun
    return {
        'config': config,
        'asked': {key: getattr(args, key) for key in ASKED if getattr(args, key)},
        'versions': versions(),
        'seconds': round(seconds, 2),
        'rows_per_second': round(len(answers) / seconds, 3),
        'eval': {args.decoding: found},
    }


def configuration(args: Args, model: Subject, asked) -> dict[str, Any]:
    """Everything that the figures depend on, and nothing else (no batch size, no paths)."""
    config = model.identity | {
        'decoding': args.decoding,
        'template': args.template or model.style,
        'rows': {task: len(own) for task, own in asked.items()},
        'rows_sha256': rows.digest(asked),
    }
    if args.decoding != 'loglik':
        config['max_new_tokens'] = args.max_new_tokens
    if args.decoding == 'beam':
        config['num_beams'] = args.num_beams
    if args.decoding == 'fixed':
        config['seed'] = args.seed
    return config


def default_name(args: Args) -> str:
    """'all-loglik', 'boolq-greedy-limit100', 'all-loglik-base' (of a run, without its adapter)."""
    sets = [part.strip() for part in args.dataset.split(',') if part.strip()]
    parts = [
        benchmarks.get(s).NAME if benchmarks.known(s) else pathlib.PurePath(s).name.split('.')[0]
        for s in sets
    ]
    parts.append(args.decoding)
    if args.limit:
        parts.append(f'limit{args.limit}')
    if args.ckpt and args.method == 'none':
        parts.append('base')
    return '-'.join(parts)


def _write_predictions(file: pathlib.Path, answers: list[Answer]) -> pathlib.Path:
    path = file.with_suffix('.predictions.jsonl')
    path.write_text(''.join(json.dumps(a.record()) + '\n' for a in answers))
    return path


if __name__ == '__main__':
    sys.exit(main())
