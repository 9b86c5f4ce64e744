"""What a run writes and counts: metrics.jsonl cut back, W&B, the ledger."""

import json
import struct
import time

import pytest
from tensorboardX.proto import event_pb2

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


def board(folder):
    """(step, value) of the losses that TensorBoard shows: a START hides what came at or after."""
    shown = []
    for path in sorted(
        (folder / 'tensorboard').glob('events*'), key=lambda p: p.stat().st_mtime_ns
    ):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack('<Q', data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.HasField('session_log'):
                shown = [entry for entry in shown if entry[0] < event.step]
            shown += [(event.step, v.simple_value) for v in event.summary.value if v.tag == 'loss']
    return shown


def test_the_board_is_on_disk_before_a_checkpoint_and_hides_what_is_done_again(tmp_path):
    setting = train_tiny.config(tmp_path)
    with record.Record(tmp_path, 0, setting) as lines:
        lines.write({'step': 1, 'loss': 1.0})
        lines.write({'step': 2, 'loss': 2.0})
        lines.flush()
        assert board(tmp_path) == [(1, 1.0), (2, 2.0)]
    time.sleep(1.1)  # a file's name holds the second
    with record.Record(tmp_path, 0, setting) as lines:  # killed before its first checkpoint
        lines.write({'step': 1, 'loss': 3.0})
    assert board(tmp_path) == [(1, 3.0)]
    time.sleep(1.1)
    with record.Record(tmp_path, 1, setting) as lines:
        lines.write({'step': 2, 'loss': 4.0})
    assert board(tmp_path) == [(1, 3.0), (2, 4.0)]


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
