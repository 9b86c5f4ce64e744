"""What a run writes and counts: metrics.jsonl cut back, W&B, the ledger."""

import json

import pytest

from tests import train_tiny
from train import ledger, record


def test_rewind_cuts_what_came_after_the_step_and_a_torn_line(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    record.rewind(path, 3)
    assert not path.exists()
    path.write_text(''.join(json.dumps({'step': s}) + '\n' for s in (1, 2, 3, 4)) + '{"st')
    record.rewind(path, 3)
    assert [json.loads(line)['step'] for line in path.read_text().splitlines()] == [1, 2, 3]
    record.rewind(path, 0)
    assert path.read_text() == ''


def test_wandb_asked_for_and_missing_is_an_error(monkeypatch):
    assert record.find_wandb(False) is None
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ValueError, match='pip install wandb'):
        record.find_wandb(True)


def test_wandb_gets_what_metrics_get(tmp_path):
    class Fake:
        def __init__(self):
            self.calls = []

        def __getattr__(self, name):
            return lambda *args, **kwargs: (self.calls.append((name, args, kwargs)), self)[1]

    wandb, config = Fake(), train_tiny.config(tmp_path)
    with record.Record(tmp_path, 0, config, wandb) as lines:
        lines.write({'step': 3, 'loss': 1.5})
    names = [name for name, _, _ in wandb.calls]
    assert names == ['init', 'log', 'finish']
    assert wandb.calls[0][2]['config']['method'] == 'knowhira'
    assert wandb.calls[1][1:] == (({'loss': 1.5},), {'step': 3})


def test_ledger_counts_worse_validations():
    counts = ledger.Ledger(step=1).judged(2.0, 2, 0.0)
    assert (counts.best_loss, counts.best_step) == (2.0, 1)
    counts = counts._replace(step=2).judged(2.0, 2, 0.0)
    assert (counts.worse, counts.stopped) == (1, False)
    better = counts._replace(step=3).judged(1.0, 2, 0.0)
    assert (better.worse, better.best_step) == (0, 3)
    assert counts._replace(step=3).judged(3.0, 2, 0.0).stopped
    assert not counts._replace(step=3).judged(3.0, 0, 0.0).stopped
    with pytest.raises(FloatingPointError, match='validation loss after step 2 is nan'):
        counts.judged(float('nan'), 0, 0.0)
