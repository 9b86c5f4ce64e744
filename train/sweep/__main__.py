"""`python -m train.sweep --bench`: K runs as one program, measured against the same K in turn."""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Literal

import jax
import tyro
from rich.console import Console
from rich.table import Table

from train import cli, errors, outs, results, rundir
from train.sweep import bench

DESCRIPTION = """Times one update of K runs as one program against one update of each of the K, turn
by turn, and what compiling them takes. Other flags are train.run's (--model_name, --batch, ...);
the default is the embedded model and data."""


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    bench: bool = False
    """Measure. A sweep itself is started by train.tune or eval.compare, or from Python."""
    methods: tuple[str, ...] = ('lora', 'hira')
    """Methods, each measured by itself."""
    k: int = 8
    """Runs."""
    ways: tuple[Literal['vmap', 'map', 'threads'], ...] = ('vmap', 'map', 'threads')
    """All at once by jax.vmap; one by one; one by one in as many threads as there are cores."""
    rounds: int = 5
    """Timed rounds."""
    out: str = ''
    """Write the figures to this file, as JSON."""
    traceback: bool = False
    """Show a refused setting as a whole Python traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when it did, 2 after an error that the user can mend."""
    return errors.guard(_program, argv)


def _program(argv: Sequence[str]) -> None:
    args, rest = tyro.cli(
        Args,
        args=list(argv),
        prog='python -m train.sweep',
        description=DESCRIPTION,
        config=(tyro.conf.OmitArgPrefixes,),
        use_underscores=True,
        return_unknown_args=True,
    )
    if not args.bench:
        raise ValueError('give --bench; sweeps are started by train.tune and eval.compare')
    for flag, least in (('k', 2), ('rounds', 1)):
        if getattr(args, flag) < least:
            raise ValueError(f'--{flag} must be at least {least}, got {getattr(args, flag)}')
    configs = [cli.parse([*rest, f'--method={method}'])[0] for method in args.methods]
    said = {'flags': list(rest), **dataclasses.asdict(args)}
    said = {k: list(v) if isinstance(v, tuple) else v for k, v in said.items()}
    for name in ('out', 'traceback'):
        del said[name]
    if args.out:
        outs.check_free(pathlib.Path(args.out), said)
    jax.config.update('jax_enable_compilation_cache', False)  # compiling is what is timed
    found = []
    for config in configs:
        print(f'{config.adapter.method}: {args.k} runs', flush=True)
        found.append(bench.measure(config, args.k, args.rounds, args.ways))
    _show(found)
    if args.out:
        load = [round(x, 1) for x in os.getloadavg()]
        head = {'config': said, 'versions': results.versions(), 'load': load, 'nice': os.nice(0)}
        rundir.write_json(pathlib.Path(args.out), {**head, 'found': found})
        print(args.out)


def _show(found: Sequence[dict]) -> None:
    table = Table(title='together / in turn; medians', title_justify='left')
    for name in ('method', 'together'):
        table.add_column(name)
    for name in ('a step', 'lowest', 'highest', 'a run', 'compile s', 'in turn', 'temporaries MB'):
        table.add_column(name, justify='right')
    for one in found:
        for way, ratios in one['ratios'].items():
            side = one['sides'][way]
            table.add_row(
                one['method'],
                way,
                *(f'{ratios[name]:.2f}' for name in ('step', 'lowest', 'highest', 'run')),
                f'{side["compile"]:.1f}',
                f'{one["sides"]["in turn"]["compile"]:.1f}',
                f'{side["temporaries"] / 1e6:,.0f}',
            )
    Console(width=results.WIDTH).print(table)


if __name__ == '__main__':
    sys.exit(main())
