"""The answers of runs, drawn: histograms, failures by kind, the worst disagreements."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.analysis import charts, svg
from eval.analysis.answers import CONSTANT, KINDS
from eval.analysis.charts import Bar
from eval.analysis.page import long, note, table
from eval.stats import UNPARSABLE
from eval.table import percent

Figures = Mapping[str, Any]


def histograms(runs: Sequence[Figures]) -> str:
    """How often each label was given, a chart a task and decoding."""
    parts = []
    for decoding in dict.fromkeys(d for run in runs for d in run['quality']):
        own = [run for run in runs if decoding in run['quality']]
        for task in dict.fromkeys(t for run in own for t in run['quality'][decoding]):
            bars: list[Bar] = []
            for run in own:
                found = run['quality'][decoding].get(task)
                if found:
                    bars.append(Bar(f'{run["name"]}, before', _segments(found['said_before'])))
                    bars.append(Bar(f'{run["name"]}, after', _segments(found['said'])))
            parts.append(charts.shares(_once(bars), f'{task}, {decoding}'))
    for run in runs:
        for entry in run['answers']:
            where = f'{run["name"]}, eval/{entry["name"]}.json: beside the right answers'
            parts.append(f'<details><summary>{svg.text(where)}</summary>')
            for task, labels in entry['histogram'].items():
                sides = {
                    side: {k: v[side] for k, v in labels.items()} for side in ('right', 'said')
                }
                bars = [
                    Bar('right answers', _segments(sides['right'])),
                    Bar('given', _segments(sides['said'])),
                ]
                parts.append(charts.shares(bars, task))
            parts.append('</details>')
    text = 'Shares of the labels among the answers. Grey could not be read as any label.'
    return note(text) + ''.join(parts) if parts else ''


def _once(bars: Sequence[Bar]) -> list[Bar]:
    """Runs of one base have one 'before': it stands there once."""
    before = {tuple(segments) for name, segments in bars if name.endswith(', before')}
    if len(before) != 1:
        return list(bars)
    rest = [bar for bar in bars if not bar[0].endswith(', before')]
    return [Bar('base', before.pop()), *rest]


def _segments(counts: Mapping[str, int]) -> list[tuple[str, float, int | None]]:
    return [
        (label, count, None if label == UNPARSABLE else i)
        for i, (label, count) in enumerate(counts.items())
    ]


def failures(runs: Sequence[Figures]) -> str:
    """How wrong answers are wrong, and what changed against the base."""
    parts = []
    for run in runs:
        for entry in run['answers']:
            parts.append(f'<h3>{svg.text(run["name"])}, eval/{svg.text(entry["name"])}.json</h3>')
            parts.append(_kinds(entry))
            if 'transitions' in entry:
                parts.append(_changes(entry['transitions']))
    text = (
        'Every wrong answer counts once, by the first kind that fits: no label could be read; the '
        f'model gives one label in {100 * CONSTANT:.0f} % of the rows or more; it gave the '
        "task's commonest right answer; another label. In brackets the base's."
    )
    return note(text) + ''.join(parts) if parts else ''


def _kinds(entry: Figures) -> str:
    rows = []
    for task, own in entry['failures'].items():
        base = entry.get('base_failures', {}).get(task)
        cell = lambda kind, own=own, base=base: (
            f'{own[kind]}' + (f' ({base[kind]})' if base else '')
        )
        rows.append([task, str(own['rows']), *(cell(kind) for kind in ('right', *KINDS))])
    return table(['task', 'rows', 'right', *KINDS], rows)


def _changes(found: Mapping[str, Figures]) -> str:
    rows = []
    for task, one in found.items():
        n = sum(one[key] for key in ('right', 'gained', 'lost', 'wrong'))
        gain = f'{100 * (one["gained"] - one["lost"]) / n:+.1f}'
        counts = [str(one[key]) for key in ('right', 'gained', 'lost', 'wrong')]
        rows.append([task, *counts, gain, svg.number(one['p'])])
    header = (
        'task',
        'both right',
        'gained',
        'lost',
        'both wrong',
        'change in points',
        'p (sign test)',
    )
    return table(header, rows)


def disagreements(runs: Sequence[Figures]) -> str:
    """The rows on which base and adapted model part ways, the adapted model's surest first."""
    parts = []
    for run in runs:
        for entry in run['answers']:
            if 'lost' not in entry:
                continue
            parts.append(f'<h3>{svg.text(run["name"])}, eval/{svg.text(entry["name"])}.json</h3>')
            for key, title in (
                ('lost', 'Base right, adapted wrong'),
                ('gained', 'Base wrong, adapted right'),
            ):
                parts.append(f'<p><b>{title}</b></p>' + _rows(entry[key]))
    text = (
        "Ordered by the adapted model's confidence: its label's share in the softmax of the "
        "labels' log-likelihoods. Written answers have none and stand in the order of the rows."
    )
    return note(text) + ''.join(parts) if parts else ''


def _rows(found: Sequence[Figures]) -> str:
    if not found:
        return note('None.')
    share = lambda value: '' if value is None else f' ({percent(value)} %)'
    rows = [
        [
            f'{row["task"]} {row["row"]}',
            long(row['question']),
            row['answer'],
            f'<td class="l">{svg.text(row["base"][:60] + share(row["confidence_base"]))}</td>',
            f'<td class="l">{svg.text(row["adapted"][:60] + share(row["confidence"]))}</td>',
        ]
        for row in found
    ]
    return table(['row', 'question', 'right', 'base', 'adapted'], rows, left=5)
