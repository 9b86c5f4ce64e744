"""`python -m eval.bench [--only NAME ...] [--list] [--quick] --out bench.json`."""

import argparse
import json
import math
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial

from eval.bench import budget, machine, measure, report, table
from eval.bench import rows as rows_lib
from eval.bench.context import Context

DATA = pathlib.Path(__file__).resolve().parents[3] / 'shared' / 'data'


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser('python -m eval.bench', description=__doc__)
    made.add_argument('--only', nargs='+', default=[], metavar='NAME', help='rows, groups, or *')
    made.add_argument('--list', action='store_true', help='name the rows and their targets')
    made.add_argument('--quick', action='store_true', help='tiny shapes: whether it runs at all')
    made.add_argument('--out', default='', help='write the list of rows to this file')
    made.add_argument(
        '--rounds',
        type=int,
        default=0,
        help='timed repetitions, however long they '
        'take (without: 5, 2 if quick; 3 or 4 where --minutes would not do)',
    )
    made.add_argument(
        '--minutes',
        type=float,
        default=budget.MINUTES,
        metavar='M',
        help='what the run should take without --rounds (%(default)g)',
    )
    made.add_argument('--data', default=str(DATA), help='folder with commonsense/, tokenizers/gpt2')
    made.add_argument('--work', default='', help='folder for weights and adapters, kept')
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when every row was measured and met its target, else 1."""
    args = parser().parse_args(argv)
    try:
        rows = rows_lib.chosen(args.only, rows_lib.every())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if args.list:
        print(table.listing(rows))
        return 0
    with tempfile.TemporaryDirectory(prefix='jaxpeft-bench-') as temporary:
        rounds = args.rounds or (2 if args.quick else 5)
        minutes = math.inf if args.rounds else args.minutes
        work = os.path.abspath(args.work or temporary)
        os.makedirs(work, exist_ok=True)
        entries = run(rows, Context(work, args.data, args.quick, rounds), args.out, minutes)
    print(table.render(entries, _title(args.quick, rounds)))
    return 0 if all(one['ok'] for one in entries) else 1


def run(
    rows: Sequence[rows_lib.Row], context: Context, out: str, minutes: float = math.inf
) -> list[dict]:
    """Measures group after group; the file is written after each, lest a long run be lost.

    Args:
      rows: what to measure.
      context: the shape, and how many rounds.
      out: the file; '' writes none.
      minutes: what it should take; see `eval.bench.budget`.

    Returns:
      An entry of `report.entry` for each row, in the order of `rows`.
    """
    found: dict[str, dict] = {}
    say = partial(print, flush=True)
    groups = list(dict.fromkeys(row.group for row in rows))
    began = time.monotonic()
    for name, until in budget.deadlines(groups, minutes).items():
        group = [row for row in rows if row.group == name]
        passed = (time.monotonic() - began) / 60
        say(f'{name}, after {passed:.1f} minutes: {", ".join(row.name for row in group)}')
        samples = measure.group(group, context, say=say, until=until)
        facts = machine.facts(context)
        found |= {row.name: report.entry(row, samples, facts) for row in group}
        if out:
            path = pathlib.Path(out)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(list(found.values()), indent=1) + '\n')
    return [found[row.name] for row in rows]


def _title(quick: bool, rounds: int) -> str:
    shape = 'QUICK, tiny shapes: these ratios mean nothing' if quick else 'GPT-Neo-125M shape'
    return f'ours / theirs, medians of up to {rounds} rounds with least and greatest ratio; {shape}'


if __name__ == '__main__':
    sys.exit(main())
