"""`train.tune` as a stranger uses it: trials, pruning, a kill, a budget, a best.yaml that runs."""

import csv
import json

import pytest

from tests import train_tiny
from train import errors, run, sources
from train.tune import __main__ as tune
from train.tune import outputs, trials
from train.tune import study as studies

optuna = pytest.importorskip('optuna')

STEPS = 6


@pytest.fixture(autouse=True)
def no_cache_of_the_user(monkeypatch):
    monkeypatch.setattr(errors.cache, 'enable', lambda: None)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return train_tiny.write_all(tmp_path_factory.mktemp('tiny'))


def flags(tiny, folder, *more):
    """A search of three validations a trial, two trials at once."""
    mine = ('--mesh=1,1,1', '--eval_steps=2', f'--run_dir={folder}', '--together=2')
    return [*train_tiny.flags(tiny), *mine, *more]


def rows_of(folder):
    return json.loads((folder / 'trials.json').read_text())


def enqueued(folder, *values):
    """A study whose first trials are given."""
    folder.mkdir(parents=True, exist_ok=True)
    study = studies.open_study(folder)
    for one in values:
        study.enqueue_trial(one)


KNOWHIRA = ('--method=knowhira', '--ortho_lambda=100', '--vary', 'lr', 'knowledge_alpha')


@pytest.fixture(scope='module')
def searched(tiny, tmp_path_factory):
    """A finished search; its penalty is far larger than the loss. (folder, data splits it read)"""
    folder, read = tmp_path_factory.mktemp('search') / 'tune', []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors.cache, 'enable', lambda: None)
        real = sources.files.read
        spy = lambda path, **how: read.append(str(path)) or real(path, **how)
        patch.setattr(sources.files, 'read', spy)
        argv = flags(tiny, folder, *KNOWHIRA, '--n_trials=4', '--pruner=none')
        assert tune.main([*argv, f'--out={folder.parent / "out.json"}']) == 0
    return folder, read


def test_a_search_leaves_its_trials_its_pictures_and_its_best(searched, tiny):
    folder, read = searched
    assert read == [str(tiny / 'data.jsonl')]  # training rows, once; no test set
    rows = rows_of(folder)
    assert [row['outcome'] for row in rows] == ['complete'] * 4
    assert rows[0]['default']
    assert rows[0]['values'] == {'lr': 0.01, 'knowledge_alpha': 0.6}
    assert len({row['values']['lr'] for row in rows}) == 4
    for row in rows:
        assert list(row['validation']) == ['2', '4', '6']
        assert row['val_loss'] == min(row['validation'].values())
        assert row['trained'] == 2 * 2 * (4 * (32 + 32) + 4)
        assert row['steps'] == STEPS
    with open(folder / 'trials.csv') as file:
        table = list(csv.DictReader(file))
    assert [float(line['lr']) for line in table] == [row['values']['lr'] for row in rows]
    report = json.loads((folder.parent / 'out.json').read_text())
    assert report['trials'] == rows
    assert report['best'] == min(rows, key=lambda row: row['val_loss'])
    for name in ('history.png', 'importance.png'):
        assert (folder / name).read_bytes()[:4] == b'\x89PNG', name


def test_best_yaml_is_the_run_whose_loss_the_search_reports(searched, tmp_path, capsys):
    folder, _ = searched
    argv = ['--config', str(folder / 'best.yaml'), '--run_dir', str(tmp_path / 'run')]
    assert run.main(argv) == 0
    assert 'note:' not in capsys.readouterr().out
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    best = outputs.best_of(rows_of(folder))
    assert results['train']['best_val_loss'] == pytest.approx(best['val_loss'], rel=1e-5)
    assert results['train']['best_step'] == best['best_step']
    assert results['train']['trainable'] == best['trained']
    assert results['config']['lr'] == best['values']['lr']
    penalties = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    assert json.loads(penalties[-1])['penalty'] > 1.0  # of which the objective holds nothing


def test_the_same_command_shows_the_finished_search_and_another_is_refused(
    searched, tiny, capsys, monkeypatch
):
    folder, _ = searched
    monkeypatch.setattr(trials, 'prepare', lambda *args: pytest.fail('nothing is to be trained'))
    before = rows_of(folder)
    same = flags(tiny, folder, *KNOWHIRA, '--n_trials=4', '--pruner=none')
    assert tune.main(same) == 0
    out = capsys.readouterr().out
    assert '4 of 4 trials are there' in out
    assert max(len(line) for line in out.splitlines() if str(folder) not in line) <= 100
    assert rows_of(folder) == before
    assert tune.main([*same, '--lr=0.5']) == 2
    assert 'lr is 0.01 there, 0.5 here' in capsys.readouterr().err


def test_a_bad_trial_is_pruned_before_its_last_update(tiny, tmp_path):
    good, bad = ({'lr': 1e-2}, {'lr': 2e-2}), ({'lr': 1e-9}, {'lr': 2e-9})
    enqueued(tmp_path, *good, *bad)
    space = tmp_path / 's.yaml'
    space.write_text('lr: [float, 1e-9, 1e-1, log]\n')
    argv = flags(tiny, tmp_path, '--method=lora', '--n_trials=4', '--startup=2')
    assert tune.main([*argv, f'--space={space}']) == 0
    rows = rows_of(tmp_path)
    assert [row['outcome'] for row in rows] == ['complete', 'complete', 'pruned', 'pruned']
    assert [row['steps'] for row in rows] == [STEPS, STEPS, 2, 2]  # no update was made after
    assert [list(row['validation']) for row in rows[2:]] == [['2'], ['2']]
    pruned = (optuna.trial.TrialState.PRUNED,)
    kept = studies.open_study(tmp_path).get_trials(states=pruned)
    assert [trial.number for trial in kept] == [2, 3]


def test_a_killed_search_goes_on_to_its_number_of_trials(tiny, tmp_path, monkeypatch):
    """The second batch is cut in its middle, as by SIGKILL: Optuna is told nothing."""
    argv = flags(tiny, tmp_path, '--method=lora', '--vary=lr', '--n_trials=4', '--pruner=none')
    real, batches = trials.sweep.train, []

    def train(*args, on_eval, **kwargs):
        batches.append(1)

        def judge(look):
            if len(batches) == 2 and look.step == 4:
                raise KeyboardInterrupt
            return on_eval(look)

        return real(*args, on_eval=judge, **kwargs)

    monkeypatch.setattr(trials.sweep, 'train', train)
    with pytest.raises(KeyboardInterrupt):
        tune.main(argv)
    assert [row['outcome'] for row in rows_of(tmp_path)] == ['complete', 'complete']
    assert tune.main(argv) == 0
    rows = rows_of(tmp_path)
    assert [row['outcome'] for row in rows] == ['complete'] * 2 + ['cut'] * 2 + ['complete'] * 2
    assert [row['retry_of'] for row in rows] == [None] * 4 + [2, 3]
    assert [row['values'] for row in rows[2:4]] == [row['values'] for row in rows[4:]]
    assert rows[2]['steps'] == 0  # what it did is not counted
    assert len(batches) == 3


def test_a_parameter_budget_refuses_before_training(tiny, tmp_path, capsys):
    enqueued(tmp_path, *[{'rank': rank} for rank in (16, 16, 4, 4)])
    space = tmp_path / 's.yaml'
    space.write_text('rank: [choice, 4, 16]\nlr: null\n')
    argv = flags(tiny, tmp_path, '--method=lora', '--pruner=none', f'--space={space}')
    four = 2 * 2 * 4 * (32 + 32)
    assert tune.main([*argv, '--n_trials=2', f'--max_params={four}']) == 0
    rows = [row for row in rows_of(tmp_path) if row['outcome'] == 'complete']
    assert [row['values']['rank'] for row in rows] == [4, 4]
    for refused in rows_of(tmp_path)[:2]:
        assert (refused['outcome'], refused['trained']) == ('refused', 4 * four)
        assert (refused['steps'], refused['validation']) == (0, {})
    other = [f'--run_dir={tmp_path / "none"}', f'--max_params={four - 1}']
    assert tune.main([*argv, *other]) == 2
    assert f'refuses every trial: the smallest trains {four:,} numbers (rank=4)' in (
        capsys.readouterr().err
    )
    space.write_text('rank: [choice, 4, 16]\ntarget_modules: [choice, "q_proj,v_proj", q_proj]\n')
    both = ('--method=lora', f'--run_dir={tmp_path / "both"}', '--pruner=none', '--n_trials=1')
    argv = [*flags(tiny, tmp_path, *both), f'--space={space}']
    assert tune.main([*argv, f'--max_params={four // 2 - 1}']) == 2
    assert f'trains {four // 2:,} numbers (rank=4, target_modules=q_proj)' in (
        capsys.readouterr().err
    )


def test_a_trial_that_diverges_is_told_and_never_best(tiny, tmp_path):
    enqueued(tmp_path, {'lr': 1e-2}, {'lr': 1e38})
    space = tmp_path / 's.yaml'
    space.write_text('lr: [float, 1e-3, 1e38, log]\n')
    argv = flags(tiny, tmp_path, '--method=lora', '--pruner=none', '--n_trials=2')
    assert tune.main([*argv, f'--space={space}']) == 0
    good, bad = rows_of(tmp_path)
    assert (good['outcome'], bad['outcome']) == ('complete', 'diverged')
    assert 'not finite' in bad['why']
    assert bad['steps'] < STEPS


def test_wrong_commands_are_told_what_to_do(tiny, tmp_path, capsys, monkeypatch):
    def told(*more):
        assert tune.main(flags(tiny, tmp_path / 'run', '--method=lora', *more)) == 2
        return capsys.readouterr().err

    assert 'the validation loss, got --eval_strategy no' in told('--eval_strategy=no')
    once = told('--eval_steps=100', f'--run_dir={tmp_path / "b"}')
    assert 'are validated 1 time, at the end' in once
    assert 'give --eval_steps 1' in once
    assert '--n_trials must be at least 1, got 0' in told('--n_trials=0')
    assert "no 'rnk' to search; nearest: rank" in told('--vary', 'rnk')
    assert 'no method is called' in told('--method=lroa')
    assert 'a search takes no --resume never: the same command' in told('--resume=never')
    assert 'a search takes no --wandb: its trials are in' in told('--wandb')
    wide = tmp_path / 's.yaml'
    wide.write_text('rank: [choice, 4, 64]\n')
    assert 'the search would try rank=64: lora: rank must be' in told(
        f'--space={wide}', f'--run_dir={tmp_path / "c"}'
    )
    (tmp_path / 'o.json').write_text('{"config": {"lr": 1}}')
    assert 'holds a finished result of another' in told(f'--out={tmp_path / "o.json"}')
    monkeypatch.setattr(studies.importlib.util, 'find_spec', lambda name: None)
    assert "pip install 'jaxpeft[tune]'" in told()
