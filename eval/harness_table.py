"""The figures of lm-evaluation-harness as a table of at most 100 columns."""

import io
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.table import WIDTH


def figures(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str, Any, Any]]:
    """Each (task, metric, filter, value, standard error) of lm_eval's `results`.

    Example:
      >>> list(figures({'t': {'alias': 't', 'acc,none': 0.5, 'acc_stderr,none': 0.1}}))
      [('t', 'acc', 'none', 0.5, 0.1)]
    """
    for task, own in results.items():
        for key, value in own.items():
            metric, comma, kind = key.partition(',')
            if comma and not metric.endswith('_stderr'):
                yield task, metric, kind, value, own.get(f'{metric}_stderr,{kind}')


def text(record: Mapping[str, Any]) -> str:
    """The table of a result of `eval.harness`.

    Args:
      record: with 'harness': {'results', 'n-shot', 'n-samples', maybe 'groups'}.
    """
    found = record['harness']
    table = Table(title='lm-evaluation-harness', title_justify='left')
    table.add_column('task')
    for name in ('n', 'n-shot', 'metric', 'filter', 'value', 'std. error'):
        table.add_column(name, justify='left' if name in ('metric', 'filter') else 'right')
    for task, metric, kind, value, error in figures(found['results']):
        n = found.get('n-samples', {}).get(task, {}).get('effective', '')
        shots = found.get('n-shot', {}).get(task, '')
        table.add_row(task, str(n), str(shots), metric, kind, _number(value), _number(error))
    out = io.StringIO()
    Console(file=out, width=WIDTH).print(table)
    return out.getvalue().rstrip()


def _number(value: Any) -> str:
    return f'{value:.4f}' if isinstance(value, float) else '' if value is None else str(value)
