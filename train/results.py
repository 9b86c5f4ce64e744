"""results.json: configuration, versions, how training went, the benchmarks before and after."""

import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxpeft as jp
from train import benchmarks, data, model
from train import config as configs
from train.config import Config
from train.ledger import Ledger
from train.loop import Outcome
from train.model import Built
from train.rows import Row
from train.rundir import write_json

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'transformers', 'numpy')
WIDTH = 100  # columns of a printed table at most

Rows = Mapping[str, Sequence[Row]]


class Probe(NamedTuple):
    """What a run is measured by, before and after.

    Attributes:
      evaluate: `eval.run.evaluate`; handed in, since train does not import eval.
      perplexity: `eval.perplexity.measure`.
      rows: the benchmarks' rows.
      texts: held-out windows of plain text, as token ids; none where the data set is questions.
    """

    evaluate: Callable
    perplexity: Callable
    rows: Rows
    texts: Sequence[np.ndarray]


def benchmark_rows(config: Config, say: Callable[[str], None] = print) -> dict[str, list[Row]]:
    """The benchmark rows that the run is measured on: task -> at most `--eval_limit` rows.

    Raises:
      ValueError: for an unknown task or decoding, a task without rows.
      FileNotFoundError: for a local copy that is not there.
    """
    asked, name = config.evaluation.eval_tasks.strip(), config.data.dataset
    own = name in data.JOINED or benchmarks.known(name)
    if asked == 'none' or (asked == 'auto' and not own):
        return {}
    if asked == 'auto':
        asked = 'all' if name in data.JOINED else name
    names = benchmarks.EIGHT if asked == 'all' else configs.listed(asked)
    tasks = [benchmarks.get(part).NAME for part in names]
    limit = config.evaluation.eval_limit or None
    if name == 'embedded':
        found = data.load(name, 'test', report=say)
        rows = {task: [row for row in found if row.task == task] for task in tasks}
    else:
        where, skip = config.data.data_dir or None, config.data.skip_bad_rows
        rows = {task: data.load(task, 'test', where, skip, report=say) for task in tasks}
    return {task: found[:limit] for task, found in rows.items()}


def measure(
    probe: Probe, config: Config, built: Built, plan: Any, state: jp.State
) -> dict[str, Any]:
    """An EVAL: decoding -> what `eval.run.evaluate` gives; empty without rows.

    For plain text it holds `perplexity` too: what `eval.perplexity.measure` gives for the held-out
    windows, whose `corpus_ppl` is exp of the validation loss.

    Args:
      plan, state: the adapter; `{}` and an empty State for the bare base.
    """
    # Once: programs are cached by this function.
    forward = model.bound(plan, built.model, built.tokenizer)
    parts = forward, state, built.params, built.model
    found = {}
    if probe.texts:
        size, batch = max(map(len, probe.texts)), config.evaluation.eval_batch
        found['perplexity'] = probe.perplexity(
            *parts, probe.texts, window=size, stride=size, batch=batch
        )
    if not probe.rows:
        return found
    return found | {
        decoding: probe.evaluate(
            *parts,
            built.tokenizer,
            tasks=list(probe.rows),
            rows=probe.rows,
            style=config.data.template,
            decoding=decoding,
            batch=config.evaluation.eval_batch,
            max_new_tokens=config.evaluation.max_new_tokens,
        )
        for decoding in configs.listed(config.evaluation.eval_decodings)
    }


def before(probe: Probe, config: Config, built: Built, folder: pathlib.Path) -> Any:
    """The bare base's EVAL, kept in the run's folder: a second start does not repeat it."""
    kept = folder / 'before.json'
    if not kept.exists():
        write_json(kept, measure(probe, config, built, {}, jp.State({}, {})))
    return json.loads(kept.read_text())


def after(
    probe: Probe, config: Config, built: Built, folder: pathlib.Path, outcome: Outcome
) -> Any:
    """The EVAL of the adapter that `adapter/` holds: the best, or the last without validation."""
    state = outcome.state
    if outcome.ledger.best_loss is not None and outcome.ledger.best_step != outcome.ledger.step:
        _, best = jp.load_adapter(folder / 'adapter', built.params)
        state = jax.device_put(best, jax.tree.map(lambda x: x.sharding, state))
    return measure(probe, config, built, built.plan, state)


def build(
    config: Config, trainable: int, ledger: Ledger, before: Any, after: Any
) -> dict[str, Any]:
    """What results.json holds."""
    return {
        'config': configs.to_dict(config),
        'versions': versions(),
        'train': {
            'steps': ledger.step,
            'seconds': round(ledger.seconds, 3),
            'tokens_per_second': round(ledger.tokens_per_second, 1),
            'trainable': trainable,
            'tokens': ledger.tokens,
            'examples': ledger.examples,
            'best_step': ledger.best_step or None,
            'best_val_loss': ledger.best_loss,
            'stopped_early': ledger.stopped,
        },
        'before': before,
        'after': after,
    }


def versions() -> dict[str, str]:
    """What the figures were made with."""
    device = jax.devices()[0]
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        'python': platform.python_version(),
        **found,
        'device': f'{len(jax.devices())} x {device.platform} {device.device_kind}',
    }


def questions(found: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an EVAL that is about questions: its decodings."""
    return {decoding: found[decoding] for decoding in found if decoding in configs.DECODINGS}


def show(results: Mapping[str, Any]) -> None:
    """Prints how training went, then accuracy before and after beside the majority baseline."""
    print(_trained(results['train']))
    start, end = (questions(results[when]) for when in ('before', 'after'))
    if 'perplexity' in results['after']:
        was, now = (results[when]['perplexity'] for when in ('before', 'after'))
        print(
            f'perplexity of {now["texts"]:,} held-out windows ({now["tokens"]:,} tokens): '
            f'{was["corpus_ppl"]:,.3f} before, {now["corpus_ppl"]:,.3f} after'
        )
    if not end:
        return
    table = Table(title='accuracy in %', title_justify='left')
    table.add_column('task')
    for name in ('n', 'majority'):
        table.add_column(name, justify='right')
    for decoding in end:
        table.add_column(f'{decoding}\nbefore', justify='right')
        table.add_column(f'{decoding}\nafter', justify='right')
    first = next(iter(end.values()))
    for task, one in first['tasks'].items():
        cells = [_percent(e[d]['tasks'][task]['accuracy']) for d in end for e in (start, end)]
        table.add_row(task, str(one['n']), _percent(one['majority']), *cells)
    table.add_section()
    means = [_percent(e[d]['mean']) for d in end for e in (start, end)]
    table.add_row(f'mean of {len(first["tasks"])}', '', _percent(first['majority_mean']), *means)
    console = Console()
    console.print(table, width=min(console.width, WIDTH))


def _trained(train: Mapping[str, Any]) -> str:
    best = train['best_val_loss']
    parts = [
        f'{train["trainable"]:,} numbers trained in {train["steps"]:,} updates and '
        f'{train["seconds"]:,.0f} s at {train["tokens_per_second"]:,.0f} tokens/s',
        '' if best is None else f', best validation loss {best:.4f} after {train["best_step"]}',
        ' (stopped early)' if train['stopped_early'] else '',
    ]
    return ''.join(parts)


def _percent(share: float) -> str:
    return f'{100 * share:.1f}'
