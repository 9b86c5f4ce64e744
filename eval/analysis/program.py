"""`python -m eval.report RUN...`: one self-contained HTML page on what adaptation did."""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence

import tyro

from eval import cli
from eval.analysis import gather, sections
from train import errors

DESCRIPTION = """Analyse one or several runs: gates, deltas, their ranks and cosines, answers,
failures, disagreements with the base, training curves. Writes one self-contained HTML file."""
MARK = 'python -m eval.report'  # stands in every page that this writes


@dataclasses.dataclass(frozen=True)
class Args:
    """Which runs, and where to."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Directories of runs of train.run."""
    out: str = ''
    """The page. Empty: RUN/report.html, for several runs report.html in the folder they share."""
    json: str = ''
    """Write the figures to this file too."""
    model_name: str = ''
    """Where the runs' base model lies now. Empty: where each run found it."""
    progress: bool = True
    """Show a progress bar."""
    traceback: bool = False
    """Show a refused setting as a whole Python traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when it did, 2 after an error that the user can mend."""
    return errors.guard(_program, argv)


def _program(argv: list[str]) -> None:
    args = cli.parse(Args, argv, 'python -m eval.report', DESCRIPTION)
    if not args.runs:
        raise ValueError('no run was named: python -m eval.report runs/NAME [runs/OTHER ...]')
    folders = [pathlib.Path(run) for run in args.runs]
    out = pathlib.Path(args.out) if args.out else default_out(folders)
    figures_file = pathlib.Path(args.json) if args.json else None
    check_own(out)
    if figures_file is not None:
        gather.check_own(figures_file)
    figures = gather.gather(folders, args.model_name, args.progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(sections.document(figures))
    if figures_file is not None:
        gather.write_json(figures_file, figures)
    for run in figures['runs']:
        for missing in run['missing']:
            print(f'{run["name"]}: missing: {missing}', file=sys.stderr)
    print('\n'.join(str(path) for path in (out, figures_file) if path is not None))


def default_out(folders: Sequence[pathlib.Path]) -> pathlib.Path:
    """Where the page goes without --out.

    Example:
      >>> str(default_out([pathlib.Path('runs/x')]))
      'runs/x/report.html'
      >>> str(default_out([pathlib.Path('/r/x'), pathlib.Path('/r/y')]))
      '/r/report.html'
    """
    if len(folders) == 1:
        return folders[0] / 'report.html'
    return pathlib.Path(os.path.commonpath([f.absolute().parent for f in folders])) / 'report.html'


def check_own(path: pathlib.Path) -> None:
    """Refuses to overwrite what no report of this program is.

    Raises:
      ValueError: naming the file.
    """
    if path.is_dir() or (path.exists() and MARK not in path.read_text(errors='replace')):
        raise ValueError(f'{path} exists and is no page of {MARK}; give another --out')


if __name__ == '__main__':
    sys.exit(main())
