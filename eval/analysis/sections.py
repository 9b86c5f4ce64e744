"""From the dict of `gather` to the page's sections: settings, quality, curves, deltas, cosines."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.analysis import answers_html, charts, gates_html, svg
from eval.analysis.page import in_order, note, page, table
from eval.table import interval, percent

Figures = Mapping[str, Any]


def document(figures: Figures) -> str:
    """The whole page.

    Args:
      figures: what `gather.gather` gave.
    """
    runs = figures['runs']
    names = [run['name'] for run in runs]
    title = f'{"Run" if len(runs) == 1 else f"{len(runs)} runs"}: {", ".join(names)}'
    parts = [('', overview(runs))]
    parts += [
        (name, made)
        for name, made in (
            ('Accuracy', quality(runs)),
            ('Training', curves(runs)),
            ('Deltas', deltas(runs)),
            ('Cosine between runs', cosines(figures['cosine'])),
            ('Gates', gates_html.section(runs)),
            ('Answers', answers_html.histograms(runs)),
            ('Failures', answers_html.failures(runs)),
            ('Disagreements', answers_html.disagreements(runs)),
        )
        if made
    ]
    return page(title, parts, 'Written by python -m eval.report of jaxpeft.')


def overview(runs: Sequence[Figures]) -> str:
    """What the runs are, and what is missing of them."""
    rows = []
    for run in runs:
        train = run['train']
        rows.append(
            [
                run['name'], run['method'], run['base'], run['dataset'], str(run['seed']),
                f'{run["lr"]:g}', svg.number(train['trainable']),
                svg.number(train['steps']), svg.number(train['best_val_loss'], 4),
                svg.number(train['seconds']),
            ]
        )  # fmt: skip
    header = (
        'run', 'method', 'base', 'data', 'seed', 'lr', 'trained numbers', 'steps',
        'validation loss', 'seconds',
    )  # fmt: skip
    items = [f'<b>{svg.text(r["name"])}</b>: {_command(m)}' for r in runs for m in r['missing']]
    absent = ''.join(f'<li>{item}</li>' for item in items)
    box = f'<div class="missing">Not in this report:<ul>{absent}</ul></div>' if items else ''
    return table(header, rows, left=4) + box


def _command(missing: str) -> str:
    """'what: how' with the command as code."""
    what, colon, how = missing.partition(': ')
    if not how.startswith('python'):
        return svg.text(missing)
    return f'{svg.text(what)}{colon}<code>{svg.text(how)}</code>'


def quality(runs: Sequence[Figures]) -> str:
    """Accuracy before and after, a table a decoding."""
    parts = []
    for decoding in dict.fromkeys(d for run in runs for d in run['quality']):
        alike: dict[str, list[Figures]] = {}
        for run in runs:
            if decoding in run['quality']:
                alike.setdefault(_rows_asked(run['quality'][decoding]), []).append(run)
        parts.append(f'<h3>{svg.text(decoding)}</h3>')
        for own in alike.values():
            tasks = own[0]['quality'][decoding]
            rows = [[task, *_measured(own, decoding, task)] for task in tasks]
            parts.append(table(['task', 'n', 'commonest', 'base', *(r['name'] for r in own)], rows))
    if not parts:
        return ''
    text = (
        'In %, of the base and of the adapted models, on the rows that each run was measured on by '
        'itself (runs of the same rows and base share a table); in brackets the 95 % interval. '
        '"commonest" is what always giving the most frequent right answer scores. Coloured where '
        'the interval leaves the base out.'
    )
    return note(text) + ''.join(parts)


def _rows_asked(tasks: Mapping[str, Figures]) -> str:
    """The same for runs whose base answered the same rows in the same way."""
    return str([(task, one['n'], one['majority'], one['before']) for task, one in tasks.items()])


def _measured(runs: Sequence[Figures], decoding: str, task: str) -> list[str]:
    """The cells of a task, of runs that were measured on the same rows."""
    found = [run['quality'][decoding][task] for run in runs]
    base = found[0]['before']
    cells = [str(found[0]['n']), percent(found[0]['majority']), percent(base)]
    for one in found:
        low, high = one['interval']
        kind = 'good' if low > base else 'bad' if high < base else ''
        shown = f'{percent(one["after"])} ({interval(one["interval"])})'
        cells.append(f'<td class="{kind}">{svg.text(shown)}</td>')
    return cells


def curves(runs: Sequence[Figures]) -> str:
    """Losses and gradient norms by step, a colour a run."""
    wanted = {
        'loss': 'training loss (dashed: validation)',
        'grad_norm': 'norm of the gradient',
        'penalty': "the method's penalty",
    }
    plots = []
    for key, title in wanted.items():
        series = []
        for i, run in enumerate(runs):
            own = run['curves']
            if any(value for _, value in own.get(key, ())):
                series.append(charts.Series(run['name'], own[key], i))
            if key == 'loss' and own.get('val_loss'):
                series.append(
                    charts.Series(f'{run["name"]}, validation', own['val_loss'], i, 'dash')
                )
        if series:
            plots.append(charts.plot(series, 'step', title, whole=True))
    if not plots:
        return ''
    names = [(run['name'], i) for i, run in enumerate(runs)]
    return charts.legend(names) + f'<div class="grid2">{"".join(plots)}</div>'


def deltas(runs: Sequence[Figures]) -> str:
    """Norm and effective rank of what the merged weights add, by target and layer."""
    parts = [
        note(
            'delta = merged kernel - base kernel, in float32. Relative norm: |delta| / |W| '
            '(Frobenius). Effective rank: exp of the entropy of the normalised singular values, '
            'between 1 and the smaller side of the kernel. Colours are the same for all runs.'
        )
    ]
    measured = [d for run in runs for d in run['deltas']]
    scales = {key: _range([d[key] for d in measured]) for key in ('relative', 'effective_rank')}
    if measured:
        parts.append(_summary(runs))
    for run in runs:
        parts.append(f'<h3>{svg.text(run["name"])}</h3>' if len(runs) > 1 else '')
        parts.append(_without(run['without']))
        if run['deltas']:
            parts.append(_maps(run['deltas'], scales))
            parts.append(_every(run['deltas']))
    return ''.join(parts)


def _summary(runs: Sequence[Figures]) -> str:
    rows = []
    for run in runs:
        for target in _targets(run['deltas']):
            own = [d for d in run['deltas'] if d['target'] == target]
            whole = next((d['full_rank'] for d in own if d['full_rank']), None)
            means = [
                _mean([d[key] for d in own]) for key in ('relative', 'effective_rank', 'top_share')
            ]
            rows.append(
                [run['name'], target, str(len(own)), svg.number(means[0]), svg.number(means[1]),
                 svg.number(whole), svg.number(means[2])]
            )  # fmt: skip
    header = (
        'run', 'target', 'layers', 'relative norm', 'effective rank', 'of',
        "first direction's share",
    )  # fmt: skip
    return table(header, rows, left=2)


def _without(places: Mapping[str, str]) -> str:
    """Names the adapted places that have no delta."""
    if not places:
        return ''
    methods = sorted(set(places.values()))
    listed = ', '.join(sorted(places)[:4]) + (
        f' and {len(places) - 4} more' if len(places) > 4 else ''
    )
    return note(
        f'{", ".join(methods)}: no delta. It depends on its input or acts on a whole module, so no '
        f'merged kernel stands for it ({listed}).'
    )


def _maps(found: Sequence[Figures], scales: Mapping[str, Any]) -> str:
    """A heat map a figure, targets by layers."""
    targets = _targets(found)
    layers = sorted({d['layer'] for d in found})
    at = {(d['target'], d['layer']): d for d in found}
    titles = {'relative': 'relative norm', 'effective_rank': 'effective rank'}
    drawn = [
        charts.heatmap(
            targets,
            [str(n) for n in layers],
            [[at[t, n][key] if (t, n) in at else None for n in layers] for t in targets],
            title,
            'layer',
            scales[key],
        )
        for key, title in titles.items()
        if scales[key]
    ]
    return f'<div class="row">{"".join(drawn)}</div>'


def _every(found: Sequence[Figures]) -> str:
    """All layers' figures, folded."""
    rows = [
        [d['target'], str(d['layer']), svg.number(d['norm']), svg.number(d['relative']),
         svg.number(d['effective_rank'], 4), svg.number(d['top_share'])]
        for d in found
    ]  # fmt: skip
    header = (
        'target',
        'layer',
        'norm',
        'relative norm',
        'effective rank',
        "first direction's share",
    )
    return f'<details><summary>Every layer</summary>{table(header, rows)}</details>'


def _targets(found: Sequence[Figures]) -> list[str]:
    return in_order({d['target'] for d in found})


def _range(values: Sequence[float | None]) -> tuple[float, float] | None:
    known = [v for v in values if v is not None]
    return (min(known), max(known)) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def cosines(groups: Sequence[Figures]) -> str:
    """How alike the runs' deltas are: all kernels together, then target by target."""
    parts = []
    for group in groups:
        names, whole = group['runs'], group['all']
        if whole is None:
            parts.append(note(f'{group["base"]}: fewer than two of the runs have deltas.'))
            continue
        rows = [f'{name} ({i})' for i, name in enumerate(names, 1)]
        columns = [f'({i})' for i in range(1, len(names) + 1)]
        parts.append(
            charts.heatmap(
                rows, columns, whole, f'all kernels of {group["base"]}', '', bounds=(-1.0, 1.0)
            )
        )
        pairs = [(i, j) for i in range(len(names)) for j in range(i)]
        targets = in_order(group['targets'])
        cells = [
            [f'{names[j]}, {names[i]}', svg.number(whole[i][j])]
            + [svg.number(group['targets'][t][i][j]) for t in targets]
            for i, j in pairs
        ]
        parts.append(table(['runs', 'all', *targets], cells))
    text = (
        'Cosine of the deltas as one long vector: 1 is the same change, 0 an unrelated one; of two '
        'random changes of n numbers it is about 1 / sqrt(n). Two runs are compared where both '
        'adapt; - where they never do.'
    )
    return note(text) + ''.join(parts) if parts else ''
