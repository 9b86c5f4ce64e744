"""report.md of a run directory: settings, adapted layers, accuracy, predictions, plots."""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from eval import plots, rundata
from eval.rundata import RunData
from eval.table import interval, mean_of, percent
from train.results import questions


def write(run_dir: str | pathlib.Path) -> pathlib.Path:
    """Writes report.md and plots/*.png from what the run directory holds.

    Args:
      run_dir: the folder of a run, finished or not, or of a bare base's evaluations.

    Returns:
      The path of report.md.

    Raises:
      FileNotFoundError: no such folder.
    """
    run = rundata.read(pathlib.Path(run_dir))
    drawn = plots.write(run)
    parts = [
        f'# {run.folder.absolute().name}',
        _summary(run),
        *_perplexity(run),
        *_before_after(run),
        *_evaluations(run),
        *_histograms(run),
        *_plots(drawn),
        *_adapted(run),
        *_settings(run),
    ]
    path = run.folder / 'report.md'
    path.write_text('\n\n'.join(parts) + '\n')
    return path


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    rule = ['---', *['---:'] * (len(header) - 1)]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in (header, rule, *rows))


def _summary(run: RunData) -> str:
    config, train = run.config, run.results.get('train', {})
    if not config:
        names = {e['config']['model_name'] for e in run.evaluations.values() if 'config' in e}
        return f'The bare base model {", ".join(sorted(names))}, without an adapter.'
    lines = [
        f'{config["method"]} on {config["model_name"]} ({config["dtype"]}), '
        f'trained on {config["dataset"]}, seed {config["seed"]}.'
    ]
    if not run.results:
        lines.append('There is no results.json: the run is not finished.')
    else:
        best = train['best_val_loss']
        lines.append(
            f'{train["trainable"]:,} trainable parameters, {train["steps"]} steps in '
            f'{train["seconds"]:.0f} s, {train["tokens_per_second"]:,.0f} tokens/s'
            + (
                ''
                if best is None
                else f', best validation loss {best:.4f} at step {train["best_step"]}'
            )
            + '.'
        )
    return '\n'.join(lines)


def _perplexity(run: RunData) -> list[str]:
    """The held-out windows' perplexity, of a run on plain text."""
    found = {
        when: run.results[when]['perplexity']
        for when in ('before', 'after')
        if 'perplexity' in (run.results.get(when) or {})
    }
    if not found:
        return []
    rows = [
        [when, *(f'{one[name]:.3f}' for name in ('corpus_ppl', 'mean_text_ppl'))]
        for when, one in found.items()
    ]
    one = next(iter(found.values()))
    note = f'{one["texts"]:,} held-out windows, {one["tokens"]:,} tokens.'
    return ['## Perplexity', note, markdown(('', 'corpus', 'mean of windows'), rows)]


def _before_after(run: RunData) -> list[str]:
    """Accuracy before and after, a table a decoding."""
    before, after = (questions(run.results.get(when) or {}) for when in ('before', 'after'))
    if not after:
        return []
    parts = ['## Accuracy in %, before and after', _NOTE]
    for decoding, found in after.items():
        then = before[decoding]
        rows = []
        for task, now in found['tasks'].items():
            old = then['tasks'][task]
            rows.append(
                [
                    task,
                    str(now['n']),
                    percent(now['majority']),
                    f'{percent(old["accuracy"])} ({interval(old["interval"])})',
                    f'{percent(now["accuracy"])} ({interval(now["interval"])})',
                    _verdict(now),
                    f'{percent(old["parsable"])}, {percent(now["parsable"])}',
                ]
            )
        means = [percent(e) for e in (found['majority_mean'], then['mean'], found['mean'])]
        gain = f'{100 * (found["mean"] - found["majority_mean"]):+.1f}'
        rows.append([f'**{mean_of(found)}**', '', *means, gain, ''])
        header = ('task', 'n', 'majority', 'before', 'after', 'after - majority', 'parsable')
        parts += [f'### {decoding}', markdown(header, rows)]
    return parts


_NOTE = (
    'In brackets the 95 % interval (Wilson). `majority` is the share of the most frequent right '
    'answer among the same rows: what a constant guess scores. A difference from it is marked * '
    'where the interval leaves it out.'
)


def _verdict(now: Mapping[str, Any]) -> str:
    low, high = now['interval']
    outside = not low <= now['majority'] <= high
    return f'{100 * (now["accuracy"] - now["majority"]):+.1f}' + ('*' if outside else '')


def _evaluations(run: RunData) -> list[str]:
    """What eval.run has added, an evaluation a table."""
    parts = []
    for name, one in run.evaluations.items():
        for found in one.get('eval', {}).values():
            rows = [
                [
                    task,
                    str(now['n']),
                    percent(now['majority']),
                    f'{percent(now["accuracy"])} ({interval(now["interval"])})',
                    _verdict(now),
                    percent(now['parsable']),
                ]
                for task, now in found['tasks'].items()
            ]
            gain = f'{100 * (found["mean"] - found["majority_mean"]):+.1f}'
            means = [percent(found['majority_mean']), percent(found['mean'])]
            rows.append([f'**{mean_of(found)}**', '', *means, gain, ''])
            header = ('task', 'n', 'majority', 'accuracy', 'accuracy - majority', 'parsable')
            what = ', '.join(
                f'{key} {one["config"][key]}'
                for key in ('method', 'max_new_tokens', 'num_beams', 'seed')
                if key in one['config']
            )
            speed = f'{one["seconds"]:.0f} s, {one["rows_per_second"]:.1f} rows/s'
            parts += [f'### eval/{name}.json', f'{what}; {speed}.', markdown(header, rows)]
    return ['## Evaluations by eval.run', _NOTE, *parts] if parts else []


def _histograms(run: RunData) -> list[str]:
    """How often each label was predicted: a model that always says one thing shows here."""
    sources = {
        f'{d}, {when}': e
        for when in ('before', 'after')
        for d, e in questions(run.results.get(when) or {}).items()
    }
    sources |= {
        f'eval/{name}.json': e
        for name, one in run.evaluations.items()
        for e in one.get('eval', {}).values()
    }
    tasks = dict.fromkeys(task for e in sources.values() for task in e['tasks'])
    parts = []
    for task in tasks:
        own = {
            name: e['tasks'][task]['histogram'] for name, e in sources.items() if task in e['tasks']
        }
        labels = list(dict.fromkeys(label for counts in own.values() for label in counts))
        rows = [[name, *(str(c.get(label, 0)) for label in labels)] for name, c in own.items()]
        parts += [f'### {task}', markdown(['', *labels], rows)]
    return ['## Predictions', *parts] if parts else []


def _plots(drawn: Sequence[pathlib.Path]) -> list[str]:
    titles = {
        'loss': 'Loss',
        'accuracy': 'Accuracy against the majority baseline',
        'gate_sigma': 'Gates and singular values, layer by rank',
    }
    if not drawn:
        return []
    return ['## Plots', *(f'![{titles[p.stem]}](plots/{p.name})' for p in drawn)]


def _adapted(run: RunData) -> list[str]:
    """The adapted kernels: path, layers, shape, rank, numbers."""
    rows, total = [], 0
    for path, entry in run.sites.items():
        own = {
            k.rpartition('/')[2]: v
            for k, v in run.leaves.items()
            if k.rpartition('/')[0] == f'params/{path}'
        }
        count = sum(v.size for v in own.values())
        total += count
        layers = len(entry['layers']) if entry.get('layers') else (entry.get('stack') or [1])[0]
        shape = ' x '.join(map(str, entry.get('kernel', [])))
        rank = str(own['a'].shape[-1]) if 'a' in own else '-'
        rows.append([f'`{path}`', str(layers), shape, rank, f'{count:,}'])
    if not rows:
        return []
    rows.append(['**all**', '', '', '', f'{total:,}'])
    header = ('adapted', 'layers', 'kernel', 'rank', 'numbers stored')
    return ['## Adapted layers', markdown(header, rows)]


def _settings(run: RunData) -> list[str]:
    if not run.config:
        return []
    lines = [f'{key}: {value}' for key, value in run.config.items()]
    versions = ', '.join(f'{k} {v}' for k, v in run.results.get('versions', {}).items())
    block = '```\n' + '\n'.join(lines) + '\n```'
    return ['## Settings', block, *([f'Made with {versions}.'] if versions else [])]


if __name__ == '__main__':  # the analysis of one or several runs, as one HTML page
    from eval.analysis import program

    sys.exit(program.main())
