"""`python -m eval.retrieval --ckpt RUN`: is a fact found wherever in a long prompt it stands?"""

import dataclasses
import hashlib
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

from eval import cli, files, subject
from eval.retrieval import prompts, show, words
from eval.retrieval.scores import measure
from train import config as configs
from train import errors, texts
from train.near import nearest
from train.results import versions
from train.rundir import write_json

DESCRIPTION = """Lost in the middle: accuracy and likelihood of an answer that stands in the prompt,
by its depth and the prompt's length. With --out FILE.json it writes FILE.md and FILE.png too."""

USUAL = (256, 512, 1024, 2048)  # lengths unless told otherwise, those the model has positions for


@dataclasses.dataclass(frozen=True)
class Args:
    """Which model, and what it is asked."""

    ckpt: str = ''
    """Directory of a run of train.run: its adapter on its base."""
    model_name: str = ''
    """A bare base model (hub id, folder, or embedded). Beside --ckpt: where that run's base lies
    now."""
    method: Literal['', 'none'] = ''
    """none: without the adapter, of a run."""
    task: str = 'kv,needle'
    """kv: the number of a name in a list; needle: a number told in a text."""
    lengths: str = ''
    """Tokens of a prompt and its answer, comma-separated. Empty: those of 256,512,1024,2048 that
    the model has positions for."""
    depths: str = '0,0.25,0.5,0.75,1'
    """Where the fact stands: 0 the beginning, 1 the end, comma-separated."""
    n: int = 20
    """Examples for each length and depth."""
    seed: int = 0
    """Of names, numbers and lines."""
    haystack: str = ''
    """A text file whose sentences hide the needle, instead of generated ones."""
    batch: int = 8
    """Prompts at once; changes speed and memory only."""
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    """Type of a bare base's weights; a run has its own."""
    out: str = ''
    """Write the figures to this .json file, and .md and .png beside it."""
    progress: bool = True
    """Show a progress bar."""
    traceback: bool = False
    """Show a refused setting as a whole Python traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when it did, 2 after an error that the user can mend."""
    return errors.guard(_program, argv)


def _program(argv: list[str]) -> None:
    args = cli.parse(Args, argv, 'python -m eval.retrieval', DESCRIPTION)
    tasks, depths = _tasks(args), numbers('depths', args.depths, float)
    out = pathlib.Path(args.out) if args.out else None
    if out is not None and out.suffix != '.json':
        raise ValueError(f'--out must end in .json, got {args.out}; nearest: {out}.json')
    model = subject.load(args.ckpt, args.model_name, args.method, args.dtype)
    lengths = chosen_lengths(args.lengths, model.model.config.max_positions)
    hay = ' '.join(texts.load(args.haystack)) if args.haystack else ''
    config = model.identity | {
        'tasks': tasks,
        'lengths': lengths,
        'depths': depths,
        'n': args.n,
        'seed': args.seed,
        'haystack_sha256': hashlib.sha256(hay.encode()).hexdigest()[:16] if hay else None,
    }
    if out is not None:
        files.check_free(out, config)
    sentences = words.split(hay)
    items: list[prompts.Item] = []
    for task in tasks:
        items += prompts.build(
            task, model.tokenizer, lengths, depths, args.n, args.seed, haystack=sentences
        )
    begun = time.perf_counter()
    found = measure(
        *(model.forward, model.state, model.params, model.model),
        items,
        batch=args.batch,
        progress=args.progress,
    )
    seconds = round(time.perf_counter() - begun, 2)
    for task in tasks:
        print(show.table(task, found[task]))
    if out is not None:
        result = {'config': config, 'versions': versions(), 'seconds': seconds, 'tasks': found}
        write_json(out, result)
        print('\n'.join(map(str, [out, *show.write(found, who(config), out)])))


def who(config: dict[str, Any]) -> str:
    """'lora on smollm2', 'smollm2'."""
    name = pathlib.PurePath(config['model_name']).name
    return name if config['method'] == 'none' else f'{config["method"]} on {name}'


def _tasks(args: Args) -> list[str]:
    for flag, least in (('n', 1), ('seed', 0), ('batch', 1)):
        if getattr(args, flag) < least:
            raise ValueError(f'--{flag} must be at least {least}, got {getattr(args, flag)}')
    tasks = list(dict.fromkeys(configs.listed(args.task)))
    for task in tasks:
        if task not in prompts.TASKS:
            raise ValueError(f'no retrieval task {task!r}; {nearest(task, prompts.TASKS)}')
    if not tasks:
        raise ValueError(f'--task takes some of {", ".join(prompts.TASKS)}, got none')
    return tasks


def numbers(flag: str, text: str, kind: type) -> list[Any]:
    """'0,0.5' -> [0.0, 0.5], ascending, each once.

    Raises:
      ValueError: for text of another form, naming the flag.
    """
    try:
        found = sorted({kind(part) for part in configs.listed(text)})
    except ValueError:
        found = []
    if not found:
        raise ValueError(f'--{flag} takes numbers such as 1,2,3, got {text!r}')
    return found


def chosen_lengths(text: str, positions: int) -> list[int]:
    """The lengths asked for, or the usual ones that fit.

    Raises:
      ValueError: one that the model has no positions for, with the longest that it has.

    Example:
      >>> chosen_lengths('', 1024)
      [256, 512, 1024]
    """
    if not text:
        return [n for n in USUAL if n <= positions] or [positions]
    lengths = numbers('lengths', text, int)
    if lengths[-1] > positions:
        raise ValueError(
            f'--lengths {lengths[-1]}: the model has {positions} positions; nearest: {positions}'
        )
    return lengths


if __name__ == '__main__':
    sys.exit(main())
