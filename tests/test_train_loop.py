"""The loop in one process: record, validation, early stop, best adapter, SIGTERM, resume."""

import json
import os
import signal

import jax
import numpy as np
import pytest

import jaxpeft as jp
from tests import train_tiny
from train import checkpoint, feed, loop, model, optimizer, record, step
from train.stop import Stop


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return train_tiny.write_all(tmp_path_factory.mktemp('tiny'))


class StopAfter(Stop):
    """A stop that is asked for once the loop has looked `n` times."""

    def __init__(self, n):
        super().__init__()
        self._left = n

    @property
    def asked(self):
        self._left -= 1
        return self._left < 0

    @asked.setter
    def asked(self, value):
        del value


def start(tiny, folder, *flags, stop=None):
    """Trains in `folder` from what it holds, as the program would; (built, feed, outcome)."""
    folder.mkdir(exist_ok=True)
    config = train_tiny.config(tiny, '--mesh=1,1,1', *flags)
    built = model.setup(config, fresh=not checkpoint.exists(folder / 'checkpoints'))
    data = feed.make(config, built.tokenizer, built.mesh)
    return built, data, loop.train(config, built, data, folder, stop or Stop())


def lines(folder):
    """metrics.jsonl without the times."""
    found = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != 'seconds'} for line in found]


def weights(folder):
    return (folder / 'adapter' / 'adapter_model.safetensors').read_bytes()


@pytest.fixture(scope='module')
def whole(tiny, tmp_path_factory):
    """One run without a break."""
    folder = tmp_path_factory.mktemp('whole')
    return folder, *start(tiny, folder, '--ortho_lambda=5')


def test_metrics_hold_every_logged_step(whole, capsys):
    folder, _, data, outcome = whole
    assert outcome.finished
    found = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in found] == [1, 2, 3, 4, 5, 6]
    keys = {'step', 'loss', 'penalty', 'lr', 'grad_norm', 'tokens', 'seconds'}
    for line in found:
        assert set(line) == keys | ({'val_loss'} if line['step'] % 3 == 0 else set())
    own = [data.batcher.indices(s).ravel() for s in range(6)]
    seen = [sum(len(data.batcher.examples[i].tokens) for i in part) for part in own]
    assert [line['tokens'] for line in found] == np.cumsum(seen).tolist()
    assert outcome.ledger.examples == 48
    assert np.all(np.diff([line['seconds'] for line in found]) > 0)
    events = list((folder / 'tensorboard').glob('events*'))
    assert len(events) == 1
    assert events[0].stat().st_size > 500


def test_validation_loss_is_the_held_out_rows_and_leaves_the_penalty_out(whole):
    folder, built, data, outcome = whole
    last = lines(folder)[-1]
    assert last['penalty'] > 1  # --ortho_lambda=5 would be seen
    held = sum(int(np.asarray(batch['weights']).sum()) for batch in data.validation)
    assert held > 0
    nll = 0.0
    forward = jax.jit(built.forward)
    for batch in data.validation:
        where = train_tiny.where(batch)
        logits = forward(outcome.state, {'params': built.params}, batch['tokens'], **where)
        each = jax.nn.log_softmax(logits.reshape(-1, logits.shape[-1]))[batch['select']]
        chosen = np.take_along_axis(np.asarray(each), np.asarray(batch['labels'])[:, None], 1)[:, 0]
        nll -= float((chosen * np.asarray(batch['weights'])).sum())
    np.testing.assert_allclose(last['val_loss'], nll / held, rtol=1e-5)


def test_checkpoints_keep_the_last_n_and_no_base_weight(whole):
    folder, built, _, outcome = whole
    kept = sorted(int(p.name) for p in (folder / 'checkpoints').iterdir())
    assert kept == [4, 6]  # --save_steps=2 --save_total_limit=2
    base = sum(x.size for x in jax.tree.leaves(built.params))
    saved = checkpoint.Checkpoints(folder / 'checkpoints', 2)
    with saved:
        meta = saved._manager.item_metadata(6)['state']
    sizes = [np.prod(x.shape) for x in jax.tree.leaves(meta)]
    assert sum(sizes) < 4 * jp.count(outcome.state) + 100 < base


def test_a_finished_run_started_again_changes_nothing(tiny, whole, capsys):
    folder, _, _, outcome = whole
    before = lines(folder), weights(folder)
    _, _, again = start(tiny, folder, '--ortho_lambda=5')
    assert again.finished
    assert again.ledger == outcome.ledger
    assert (lines(folder), weights(folder)) == before
    jax.tree.map(np.testing.assert_array_equal, again.state, outcome.state)


def test_a_cut_run_continues_to_the_same_bits(tiny, whole, tmp_path):
    folder, _, _, outcome = whole
    flags = ('--ortho_lambda=5',)
    _, _, first = start(tiny, tmp_path, *flags, stop=StopAfter(3))
    assert not first.finished
    assert first.ledger.step == 3  # saved although --save_steps=2 would not
    with (tmp_path / 'metrics.jsonl').open('a') as torn:
        torn.write('{"step": 4, "loss": 9.0}\n{"step": 5, "lo')  # what a SIGKILL leaves
    _, _, second = start(tiny, tmp_path, *flags)
    assert second.finished
    assert lines(tmp_path) == lines(folder)
    assert weights(tmp_path) == weights(folder)
    jax.tree.map(np.testing.assert_array_equal, second.state, outcome.state)
    same = ('seconds', 'warm_tokens', 'warm_seconds')
    assert {k: v for k, v in second.ledger._asdict().items() if k not in same} == {
        k: v for k, v in outcome.ledger._asdict().items() if k not in same
    }


def test_sigterm_in_the_loop_saves_and_outside_it_exits_0(tiny, tmp_path, monkeypatch, capsys):
    at = feed.Feed.at

    def raising_signal(self, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return at(self, step)

    monkeypatch.setattr(feed.Feed, 'at', raising_signal)
    with Stop() as stop:
        _, _, outcome = start(tiny, tmp_path, '--ortho_lambda=5', stop=stop)
        assert not outcome.finished
        assert outcome.ledger.step == 2
        with checkpoint.Checkpoints(tmp_path / 'checkpoints', 2) as saved:
            assert saved.latest() == 2
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 0
    assert 'the same command continues' in capsys.readouterr().out


def test_every_checkpoint_finds_the_board_on_disk(tiny, tmp_path, monkeypatch):
    told = []
    real_flush, real_save = record.Record.flush, checkpoint.Checkpoints.save
    monkeypatch.setattr(
        record.Record, 'flush', lambda self: (told.append('flush'), real_flush(self))
    )

    def save(self, train, consts, ledger):
        told.append(ledger.step)
        real_save(self, train, consts, ledger)

    monkeypatch.setattr(checkpoint.Checkpoints, 'save', save)
    start(tiny, tmp_path)
    assert told == ['flush', 2, 'flush', 4, 'flush', 6, 6]  # the last one after the board is closed


def test_early_stopping_survives_a_second_start(tiny, tmp_path, capsys):
    # A learning rate too small to change a float: no validation is better than the first.
    flags = ('--lr=1e-30', '--eval_steps=1', '--early_stop_patience=2', '--max_steps=50')
    _, _, outcome = start(tiny, tmp_path, *flags)
    assert outcome.finished
    assert outcome.ledger.stopped
    assert (outcome.ledger.step, outcome.ledger.best_step) == (3, 1)
    _, _, again = start(tiny, tmp_path, *flags)
    assert again.finished
    assert again.ledger == outcome.ledger
    assert len(lines(tmp_path)) == 3


def test_the_adapter_kept_is_the_best_by_validation(tiny, tmp_path, capsys, monkeypatch):
    flags = ('--eval_steps=1', '--schedule=constant')
    start(tiny, tmp_path / 'short', *flags, '--max_steps=2')
    said = iter([3.0, 1.0, 2.0, 1.5, 4.0, 1.25])
    monkeypatch.setattr(loop, 'validation_loss', lambda *args: (next(said), 0.0))
    _, _, outcome = start(tiny, tmp_path / 'long', *flags)
    assert (outcome.ledger.best_step, outcome.ledger.best_loss) == (2, 1.0)
    assert outcome.ledger.step == 6
    assert weights(tmp_path / 'long') == weights(tmp_path / 'short')


def test_the_validation_loss_is_that_of_the_adapter_kept(tiny, tmp_path, capsys):
    built, data, outcome = start(tiny, tmp_path, '--eval_steps=1')
    losses = {line['step']: line['val_loss'] for line in lines(tmp_path)}
    best = min(losses, key=losses.get)
    assert (outcome.ledger.best_step, outcome.ledger.best_loss) == (best, losses[best])
    _, kept = jp.load_adapter(tmp_path / 'adapter', built.params)
    programs = step.compile_programs(
        built.plan, built.forward, optimizer.make(train_tiny.config(tiny).optim, lambda n: 0.0),
        lambda n: 0.0, built.mesh, outcome.state.params, 0,
    )  # fmt: skip
    now = step.TrainState(kept.params, None, None, None)
    found, _ = loop.validation_loss(programs, now, kept.consts, built, data)
    np.testing.assert_allclose(found, losses[best], rtol=1e-6)


def test_without_validation_the_last_adapter_is_kept(tiny, tmp_path, capsys):
    built, data, outcome = start(tiny, tmp_path, '--eval_strategy=no', '--val_size=0')
    assert not data.validation
    assert all('val_loss' not in line for line in lines(tmp_path))
    _, kept = jp.load_adapter(tmp_path / 'adapter', built.params)
    jax.tree.map(np.testing.assert_array_equal, kept.params, outcome.state.params)


def test_a_loss_that_is_not_finite_stops_with_step_and_rows(tiny, tmp_path, capsys):
    flags = ('--lr=1e12', '--max_grad_norm=0', '--save_steps=1', '--eval_strategy=no')
    with pytest.raises(FloatingPointError, match=r' is (nan|inf)\. The batch holds') as told:
        start(tiny, tmp_path, *flags)
    bad = int(str(told.value).split(':')[0].removeprefix('step '))
    assert bad > 1
    data, _ = _data(tiny, flags)
    rows = ', '.join(map(str, sorted(data.batcher.at(bad - 1)['rows'].ravel().tolist())))
    assert f'rows {rows} of the data set' in str(told.value)
    with checkpoint.Checkpoints(tmp_path / 'checkpoints', 2) as saved:
        assert saved.latest() == bad - 1
    assert [line['step'] for line in lines(tmp_path)] == list(range(1, bad))


def _data(tiny, flags):
    config = train_tiny.config(tiny, '--mesh=1,1,1', *flags)
    built = model.setup(config, fresh=False)
    return feed.make(config, built.tokenizer, built.mesh), built


def test_epochs_end_where_the_rows_do(tiny):
    data, _ = _data(tiny, ('--eval_strategy=epoch', '--max_steps=0', '--epoch=2', '--batch=24'))
    assert data.steps == 7  # 80 rows twice, 24 an update
    assert [s for s in range(1, 8) if data.ends_epoch(s)] == [4, 7]


def test_init_from_starts_at_the_numbers_of_an_adapter(tiny, whole):
    folder, _, _, outcome = whole
    taken = model.setup(train_tiny.config(tiny, '--mesh=1,1,1', f'--init_from={folder}/adapter'))
    jax.tree.map(np.testing.assert_array_equal, taken.state.params, outcome.state.params)
    for flags, message in (
        (('--method=lora',), 'holds knowhira, --method is lora'),
        (('--r_ab=2',), 'another rank'),
        (('--target_modules=q_proj',), 'other layers'),
    ):
        config = train_tiny.config(tiny, f'--init_from={folder}/adapter', *flags)
        with pytest.raises(ValueError, match=message):
            model.setup(config)
    with pytest.raises(FileNotFoundError, match=r'no adapter\.json'):
        model.setup(train_tiny.config(tiny, f'--init_from={tiny}'))


def test_load_run_reads_a_run_back(tiny, whole, monkeypatch):
    folder, built, _, outcome = whole
    with pytest.raises(FileNotFoundError, match=r'no config\.json'):
        model.load_run(folder)
    from train import config as configs
    from train import rundir

    config = train_tiny.config(tiny, '--ortho_lambda=5')
    rundir.write_json(folder / 'config.json', configs.to_dict(config))
    run = model.load_run(folder)
    assert configs.identity(run.config) == configs.identity(config)
    jax.tree.map(np.testing.assert_array_equal, run.state.params, outcome.state.params)
    jax.tree.map(np.testing.assert_array_equal, run.params, built.params)
    assert run.tokenizer is not None
