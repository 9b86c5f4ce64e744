"""The gates of a run, drawn: shares against singular values, blends and magnitudes by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.analysis import charts, svg
from eval.analysis.page import in_order, note, table

Figures = Mapping[str, Any]


def section(runs: Sequence[Figures]) -> str:
    """Of all runs that have gates; '' where none has."""
    parts = []
    for run in runs:
        own = _against(run['gates'], 'sigma', 'gate', 'sigmoid(gate)', 'sigma')
        own += _against(run['gates'], 'tail', 'diag', 'diag', 'singular values taken out')
        own += _by_layer(run['gates'])
        if own:
            parts += [f'<h3>{svg.text(run["name"])}</h3>', *own]
    return ''.join(parts)


def _against(
    entries: Sequence[Figures],
    x: str,
    y: str,
    title: str,
    xlabel: str,
) -> list[str]:
    """A panel a target: y of each rank over x, a shade a layer."""
    own = [e for e in entries if x in e and y in e]
    if not own:
        return []
    last = max(e['layer'] for e in own) or 1
    panels = []
    for target in in_order({e['target'] for e in own}):
        series = [
            charts.Series(
                f'layer {e["layer"]}',
                list(zip(e[x], e[y], strict=True)),
                _shade(e['layer'] / last),
                'dots',
            )
            for e in own
            if e['target'] == target
        ]
        panels.append(charts.plot(series, xlabel, f'{target}: {title}'))
    layers = sorted({e['layer'] for e in own})
    shown = layers if len(layers) <= 12 else [layers[0], layers[len(layers) // 2], layers[-1]]
    legend = charts.legend([(f'layer {n}', _shade(n / last)) for n in shown])
    return [legend, f'<div class="grid2">{"".join(panels)}</div>', *_spread(own, y, title)]


def _spread(entries: Sequence[Figures], key: str, title: str) -> list[str]:
    """A row a layer of a kernel: mean, least and largest, and how they go with sigma."""
    rows = []
    for e in entries:
        values = e[key]
        cells = [sum(values) / len(values), min(values), max(values)]
        rows.append([e['target'], str(e['layer']), *map(svg.number, cells)])
        if 'correlation' in e:
            rows[-1].append(svg.number(e['correlation']))
    header = ['target', 'layer', f'mean {title}', 'least', 'largest']
    told = ''
    if 'correlation' in entries[0]:
        header.append('correlation with sigma')
        told = note(
            'Correlation is of the ranks of one layer; - where all gates or all sigma agree.'
        )
    folded = f'<details><summary>Every layer</summary>{table(header, rows)}</details>'
    return [told, folded]


def _by_layer(entries: Sequence[Figures]) -> list[str]:
    """One number a layer: a line a target."""
    titles = {
        'gamma': 'gamma: share of the trained magnitude',
        'beta': "beta: LoRA's share",
        'magnitude': 'mean |m / norm - 1|: how far the magnitude moved',
    }
    panels, targets = [], in_order({e['target'] for e in entries})
    for key, title in titles.items():
        own = [e for e in entries if key in e]
        if not own:
            continue
        series = [
            charts.Series(t, [(e['layer'], e[key]) for e in own if e['target'] == t], i, 'dash')
            for i, t in enumerate(targets)
        ]
        panels.append(charts.plot(series, 'layer', title, whole=True))
    if not panels:
        return []
    return [
        charts.legend([(t, i) for i, t in enumerate(targets)]),
        f'<div class="grid2">{"".join(panels)}</div>',
    ]


def _shade(share: float) -> float:
    """A layer's place on the ramp, whose palest part would not show as a dot."""
    return 0.4 + 0.6 * share
