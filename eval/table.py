"""Figures as tables of at most 100 columns."""

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 100
HEADLINE = 8  # tasks in the headline mean


def percent(share: float) -> str:
    """0.4567 -> '45.7'."""
    return f'{100 * share:.1f}'


def interval(low_high: list[float]) -> str:
    """[0.401, 0.512] -> '40.1-51.2'."""
    return f'{percent(low_high[0])}-{percent(low_high[1])}'


def mean_of(found: Mapping[str, Any]) -> str:
    """'mean of 8', the headline; 'mean of 3 of 8' where tasks are missing."""
    n = found['tasks_in_mean']
    return f'mean of {n}' + ('' if n == HEADLINE else f' of {HEADLINE}')


def commonest(histogram: Mapping[str, int]) -> str:
    """The most frequent prediction and its share: a model that always says one thing shows here."""
    label = max(histogram, key=lambda name: histogram[name])
    return f'{label} {percent(histogram[label] / sum(histogram.values()))}'


def evaluation(found: Mapping[str, Any], title: str) -> str:
    """An evaluation, a task a line."""
    table = Table(title=f'{title}, in %', title_justify='left')
    table.add_column('task', no_wrap=True)
    for name in ('n', 'accuracy', '95 % interval', 'majority', 'parsable', 'said most'):
        table.add_column(name, justify='right', no_wrap=True)
    for task, one in found['tasks'].items():
        table.add_row(
            task,
            str(one['n']),
            percent(one['accuracy']),
            interval(one['interval']),
            percent(one['majority']),
            percent(one['parsable']),
            commonest(one['histogram']),
        )
    table.add_section()
    rows = sum(one['n'] for one in found['tasks'].values())
    mean, majority = percent(found['mean']), percent(found['majority_mean'])
    table.add_row(mean_of(found), str(rows), mean, '', majority)
    text = io.StringIO()
    Console(file=text, width=WIDTH).print(table)
    return text.getvalue().rstrip()


def perplexity(found: Mapping[str, Any], title: str) -> str:
    """The figures of `eval.perplexity`, a line each."""
    table = Table(title=title, title_justify='left', show_header=False)
    table.add_column('what', no_wrap=True)
    table.add_column('figure', justify='right')
    table.add_row('corpus perplexity', f'{found["corpus_ppl"]:,.4f}')
    table.add_row("mean of the texts' perplexities", f'{found["mean_text_ppl"]:,.4f}')
    if found['positional_ppl'] is not None:
        table.add_row('by tenth of a text', ' '.join(f'{x:,.2f}' for x in found['positional_ppl']))
    table.add_row('tokens scored', f'{found["tokens"]:,}')
    table.add_row('texts', f'{found["texts"]:,}')
    text = io.StringIO()
    Console(file=text, width=WIDTH).print(table)
    return text.getvalue().rstrip()
