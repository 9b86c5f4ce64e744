"""`python -m eval.structures --task series`: does knowing times, or a graph, help an adapter?"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, Literal

from eval import bar, cli
from eval.structured import base, graph, program, series
from train import errors

DESCRIPTION = """A small generated task whose answers depend on a structure: signals at irregular
times, or questions about a graph. A tiny base is pretrained without the structure, then adapted
with LoRA, HyLoRADA v1 and v2 of equal size, v2 also with the structure of other rows (the control).
Every method reads the same tokens, from which the structure could be worked out."""

TASKS: dict[str, Any] = {'series': series, 'graph': graph}


@dataclasses.dataclass(frozen=True)
class Args(program.Flags):
    """The task, its base, and how it is compared."""

    task: Literal['series', 'graph'] = 'series'
    """series: interleaved periodic signals at irregular times. graph: degree and depth of nodes."""
    rank: int = 4
    """Rank of hylorada_v2; the others get the ranks that train as many numbers."""
    lrs: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    """Learning rates of the sweep on validation rows, each method its own."""
    valid_rows: int = 200
    """Validation rows, which choose the rate."""
    test_rows: int = 400
    """Test rows."""
    base_steps: int = 300
    """Updates of the base's pretraining, on rows of another world without structure."""
    world: int = 1
    """Seed of the generated task."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when it did, 2 after an error that the user can mend."""
    return errors.guard(_program, argv)


def _program(argv: list[str]) -> None:
    args = cli.parse(Args, argv, 'python -m eval.structures', DESCRIPTION)
    program.check(args)
    for name, least in (('base_steps', 1), ('valid_rows', 2), ('test_rows', 2)):
        if getattr(args, name) < least:  # the control takes the structure of another row
            raise ValueError(f'--{name} must be at least {least}, got {getattr(args, name)}')
    kind = TASKS[args.task]
    model = base.model_of(kind.VOCABULARY, kind.LENGTH + 8)
    rows = kind.pretraining(args.base_steps * args.batch, args.world + 1)
    with bar.rows_bar('base', args.base_steps, args.progress, unit='updates') as advance:
        params, loss = base.pretrain(model, rows, args.base_steps, args.batch, args.world, advance)
    task = kind.make(args.steps * args.batch, args.valid_rows, args.test_rows, args.world)
    notes = [
        f'Base: a GPT-Neo of {base.LAYERS} layers of {base.HIDDEN}, {args.base_steps} updates of '
        f'{args.batch} rows of another world without structure (its last loss {loss:.3f} a token, '
        'all tokens).',
    ]
    program.finish(
        args, f'structures-{args.task}', f'Structure-aware {args.task}', model, params, [task],
        notes, {'base_loss': loss},
    )  # fmt: skip


if __name__ == '__main__':
    sys.exit(main())
