"""`python -m eval.code`: does knowing the structure of code help? LoRA, HyLoRADA v1 and v2."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp

import jaxpeft as jp
from eval import cli
from eval.structured import code, program
from train import errors

DESCRIPTION = """Adapt a base to Python code with LoRA, HyLoRADA v1 and v2 of equal size, v2 also
with the structure of other texts (the control), and compare the loss on held-out code. The
structure of a token (indentation, brackets, quotes, keywords) is read off its prefix; that no loss
changes with the text behind it is measured. Finished runs are kept and never repeated."""


@dataclasses.dataclass(frozen=True)
class Args(program.Flags):
    """The base, the code, and how it is compared."""

    model_name: str = 'embedded'
    """The base: a hub id, a folder, or embedded (a tiny GPT-Neo in the package)."""
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    """Type of the base's weights."""
    data_dir: str = ''
    """Folder with python_stdlib/python_stdlib.jsonl.gz and mbpp/mbpp.jsonl.gz. Empty: the library
    of the running interpreter, split by a hash of each path, and no MBPP."""
    tasks: tuple[str, ...] = ()
    """python (sources, every token) and mbpp (the solution given the task). Empty: those that
    there are data for."""
    window: int = 128
    """Tokens of a window of Python."""
    mbpp_window: int = 256
    """Tokens of an MBPP task at most, prompt and solution; longer ones are left out, counted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when it did, 2 after an error that the user can mend."""
    return errors.guard(_program, argv)


def _program(argv: list[str]) -> None:
    args = cli.parse(Args, argv, 'python -m eval.code', DESCRIPTION)
    program.check(args)
    names = args.tasks or (('python', 'mbpp') if args.data_dir else ('python',))
    for name in names:
        if name not in code.FILES:
            raise ValueError(f'--tasks takes {" and ".join(code.FILES)}, got {name!r}')
    model, params, tokenizer = jp.models.load(args.model_name, dtype=jnp.dtype(args.dtype))
    tasks = []
    for name in names:
        window = args.window if name == 'python' else args.mbpp_window
        most = getattr(model.config, 'max_positions', window)
        if window > most:
            raise ValueError(f'{args.model_name} has {most} positions, the window is {window}')
        rows = args.steps * args.batch
        amount = code.Amount(rows, args.valid_rows, args.test_rows, window)
        tasks.append(code.make(name, args.data_dir, tokenizer, model.config.vocab_size, amount))
    notes = [f'Base: {args.model_name}. Library and solutions are Python; losses are a token.']
    if args.model_name == 'embedded' and 'python' in names:
        notes.append(
            "The embedded base has read 4 % of its text in Python's library, held-out files "
            'perhaps among it: what is compared is the methods, not the base with and without.'
        )
    title = 'Structure-aware code'
    program.finish(args, f'code-{model.config.name}', title, model, params, tasks, notes)


if __name__ == '__main__':
    sys.exit(main())
