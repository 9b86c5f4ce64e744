"""The search space: every method's own, narrowed, drawn, and put back into a configuration."""

import types

import pytest

import jaxpeft as jp
from train import cli
from train.tune import outputs, plots, trials
from train.tune import space as spaces
from train.tune import study as studies
from train.tune.space import Range

pytest.importorskip('optuna')

BASE = ['--model_name=x', '--dataset=y.jsonl']


def config(method='lora', *more):
    return cli.parse([f'--method={method}', *BASE, *more])[0]


@pytest.mark.parametrize('method', jp.methods.names())
def test_every_method_has_a_space_that_its_factory_takes(method):
    mine = config(method)
    space = spaces.make(mine)
    assert next(iter(space)) == 'lr'
    search = getattr(jp.methods.module(method), 'SEARCH', None)
    assert set(space) - {'lr'} == set(search or ())
    for name, range_ in space.items():
        for value in range_.values:
            assert spaces.apply(mine, {name: value}) != mine or spaces.current(mine, space)[
                name
            ] == pytest.approx(value)


def test_a_method_without_search_gets_rate_rank_and_alpha(monkeypatch):
    file = jp.methods.module('lora')
    monkeypatch.setattr(
        jp.methods, 'module', lambda name: types.SimpleNamespace(TARGETS=file.TARGETS)
    )
    assert list(spaces.make(config('lora'))) == ['lr', 'rank', 'alpha_ratio']
    assert list(spaces.make(config('hira'))) == ['lr', 'rank']  # its factory has no alpha


def test_methods_together_keep_their_names_apart():
    mine = config('hylorada+daa')
    space = spaces.make(mine)
    assert {'lr', 'hylorada.rank', 'hylorada.alpha_ratio', 'daa.num_buckets'} <= set(space)
    assert 'loraplus_ratio' in space  # a flag, whoever lists it
    values = {'hylorada.alpha_ratio': 2.0, 'hylorada.rank': 8, 'daa.num_buckets': 16}
    found = spaces.apply(mine, values).options
    assert (found['hylorada']['alpha'], found['daa']['num_buckets']) == (16.0, 16)
    both = config('lora+hira')
    assert list(spaces.make(both, ['rank'])) == ['rank']  # one rank for both
    assert {o['rank'] for o in spaces.apply(both, {'rank': 4}).options.values()} == {4}


def test_names_of_flags_arguments_and_reference_programs():
    mine = config('hylorada')
    space = spaces.make(
        mine, ['base_lr', 'lora_rank,r_ab', 'lora_plus_ratio', 'hylorada.gate-init']
    )
    assert list(space) == ['lr', 'rank', 'loraplus_ratio', 'gate_init']
    found = spaces.apply(mine, {'loraplus_ratio': 4.0})
    assert (found.optim.loraplus, found.optim.loraplus_ratio) == (True, 4.0)
    assert not mine.optim.loraplus
    assert spaces.current(mine, space)['loraplus_ratio'] == 1.0  # LoRA+ is off, and 1 means off
    assert spaces.make(mine, ['rslora'])['rslora'] == Range('choice', (False, True))


def test_the_rates_lie_around_the_methods_own():
    assert spaces.make(config('lora'))['lr'] == Range('float', (1e-5, 1e-3), True)
    assert spaces.make(config('hira'))['lr'] == Range('float', (1e-4, 1e-2), True)
    assert spaces.make(config('hira', '--lr=0.02'))['lr'] == Range('float', (2e-3, 0.2), True)
    embedded = cli.parse(['--method', 'lora'])[0]  # its own rate is ten times the usual
    assert spaces.make(embedded)['lr'] == Range('float', (1e-4, 1e-2), True)


def test_a_file_narrows(tmp_path):
    file = tmp_path / 'space.yaml'
    file.write_text('lr: [float, 1e-4, 1e-3, log]\nlora_rank: [choice, 2, 4]\ndropout:\n')
    mine = config('lora')
    space = spaces.make(mine, file=str(file))
    assert space == {
        'lr': Range('float', (1e-4, 1e-3), True),
        'rank': Range('choice', (2, 4)),
        'dropout': Range('choice', (0.0, 0.05, 0.1)),
    }
    assert spaces.make(mine, ['rank', 'alpha_ratio'], str(file)) == {
        'rank': Range('choice', (2, 4)),
        'alpha_ratio': Range('float', (0.5, 4.0), True),
    }
    assert spaces.current(mine, space) == {'lr': 5e-4, 'dropout': 0.0}  # rank 32 is not among them


@pytest.mark.parametrize(
    ('names', 'text'),
    [
        (['rnk'], "lora has no 'rnk' to search; nearest: rank"),
        (['gate_init'], "lora has no 'gate_init' to search"),
        (['batch'], 'batch is the same for all trials'),
        (['seed'], 'seed is the same for all trials'),
        (['init'], 'no range is known for init; give it in a file'),
        (['alpha'], 'no range is known for alpha'),
    ],
)
def test_names_that_cannot_be_searched(names, text):
    with pytest.raises(ValueError, match=text):
        spaces.make(config('lora'), names)


@pytest.mark.parametrize(
    'written',
    [
        '[float, 1, 1]',
        '[float, 0, 1, log]',
        '[int, a, 2]',
        '[choice]',
        '[choice, 1, 1]',
        '3',
        '[x, 1, 2]',
    ],
)
def test_ranges_of_another_form(tmp_path, written):
    file = tmp_path / 's.yaml'
    file.write_text(f'lr: {written}\n')
    with pytest.raises(ValueError, match=r'lr: a range is \[float, LOW, HIGH\]'):
        spaces.make(config('lora'), file=str(file))
    with pytest.raises(FileNotFoundError, match='there is no nothere'):
        spaces.make(config('lora'), file='nothere.yaml')


def test_a_file_that_is_no_yaml_is_told_with_its_line(tmp_path):
    file = tmp_path / 's.yaml'
    file.write_text('rank: [choice, 4, 8]\nlr: ]\n')
    with pytest.raises(ValueError, match=r's\.yaml, line 2: not YAML'):
        spaces.make(config(), (), str(file))


def test_a_trials_values_survive_best_yaml(tmp_path):
    """What `train.run --config best.yaml` reads is the trial's configuration, to the last bit."""
    mine = config('hylorada', '--target_modules=q_proj,v_proj', '--no_packing', '--lr=0.1')
    values = {'lr': 1.2345678901234e-05, 'rank': 8, 'alpha_ratio': 0.7, 'loraplus_ratio': 16.0}
    best = {'trial': 3, 'val_loss': 1.0, 'best_step': 4, 'values': values}
    file = tmp_path / 'best.yaml'
    file.write_text(outputs.best_yaml(mine, best))
    found, notes = cli.parse(['--config', str(file)])
    wanted = spaces.apply(mine, values)
    assert notes == []
    assert cli.configs.identity(found) == cli.configs.identity(wanted)
    embedded = cli.parse(['--method=kasa'])[0]
    file.write_text(outputs.best_yaml(embedded, best | {'values': {'rank': 4}}))
    again = cli.parse(['--config', str(file)])[0]
    assert cli.configs.identity(again) == cli.configs.identity(spaces.apply(embedded, {'rank': 4}))


def test_what_one_program_must_share():
    space = spaces.make(config('hylorada'))
    assert trials.fixed(config('hylorada'), space) == ['rank', 'dropout', 'loraplus_ratio']
    shared = trials.fixed(config('knowhira'), spaces.make(config('knowhira')))
    assert 'rank' in shared
    assert not {'lr', 'knowledge_alpha', 'ortho_lambda', 'gate_init'} & set(shared)


def asked(values):
    return [studies.Asked(None, v) for v in values]


def test_trials_are_grouped_by_what_they_must_share():
    mine = config('lora')
    batch = asked([{'lr': 1e-3, 'rank': 4}, {'lr': 1e-4, 'rank': 8}, {'lr': 2e-3, 'rank': 4}])
    assert [numbers for _, numbers in trials.groups(mine, batch)] == [[0, 2], [1]]
    plus = asked([{'loraplus_ratio': 1.0}, {'loraplus_ratio': 4.0}])
    found = trials.groups(mine, plus)
    assert [numbers for _, numbers in found] == [[0], [1]]
    assert [shared.optim.loraplus_ratio for shared, _ in found] == [1.0, 4.0]


SPACE = {'lr': Range('float', (1e-5, 1e-2), True), 'rank': Range('choice', (2, 4, 8))}


def drawn(folder, rounds, together=2):
    """Asks and tells without training; the study is opened anew for each round."""
    folder.mkdir(exist_ok=True)
    for _ in range(rounds):
        study = studies.open_study(folder)
        studies.begin(study, {'lr': 1e-3, 'rank': 4}, SPACE)
        for one in studies.ask(study, SPACE, together, ['rank'], seed=1, startup=2):
            study.tell(one.trial, one.values['lr'] * one.values['rank'])
    return [trial.params for trial in studies.open_study(folder).trials]


def test_a_search_that_was_cut_draws_on_as_one_that_was_not(tmp_path):
    import optuna

    study = studies.open_study(tmp_path)
    studies.begin(study, {'lr': 1e-3, 'rank': 4}, SPACE)
    for _ in range(3):
        for one in studies.ask(study, SPACE, 2, ['rank'], seed=1, startup=2):
            study.tell(one.trial, one.values['lr'] * one.values['rank'])
    whole = [trial.params for trial in study.trials]
    assert drawn(tmp_path / 'cut', 3) == whole
    assert len({tuple(p.items()) for p in whole}) == 6  # no draw is repeated
    assert whole[0] == {'lr': 1e-3, 'rank': 4}  # the configuration as it was given
    assert all(a['rank'] == b['rank'] for a, b in zip(whole[::2], whole[1::2], strict=True))
    assert len({p['rank'] for p in whole}) > 1
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING


def test_a_configuration_outside_the_space_is_not_called_the_default(tmp_path, capsys):
    study = studies.open_study(tmp_path)
    studies.begin(study, {'lr': 1e-3}, SPACE)  # its rank is none of the choices
    assert 'a value of rank outside the range' in capsys.readouterr().out
    (one,) = studies.ask(study, SPACE, 1, [], seed=1, startup=2)
    assert one.values['lr'] == 1e-3
    assert 'default' not in one.trial.user_attrs


def test_what_a_killed_process_left_is_failed_and_asked_again(tmp_path):
    study = studies.open_study(tmp_path)
    studies.begin(study, {'lr': 1e-3, 'rank': 4}, SPACE)
    left = studies.ask(study, SPACE, 2, ['rank'], seed=1, startup=2)
    again = studies.open_study(tmp_path)  # as the next process does
    assert studies.finished(again) == 0
    studies.begin(again, {'lr': 1e-3, 'rank': 4}, SPACE)  # the study has begun: no second default
    redone = studies.ask(again, SPACE, 2, ['rank'], seed=1, startup=2)
    assert [one.values for one in redone] == [one.values for one in left]
    for one in redone:
        again.tell(one.trial, 1.0)
    rows = outputs.trials_of(again)
    assert [row['outcome'] for row in rows] == ['cut', 'cut', 'complete', 'complete']
    assert [row['retry_of'] for row in rows] == [None, None, 0, 1]
    assert [row['default'] for row in rows] == [True, False, True, False]
    assert studies.finished(again) == 2


def claimed(folder, settings):
    with studies.claim(folder, settings):
        studies.settle(folder, settings)


def test_the_folder_is_one_searchs_and_one_process(tmp_path):
    with studies.claim(tmp_path, {'lr': 3}):
        pass  # refused before it began: the folder is still free
    with studies.claim(tmp_path, {'lr': 1, 'space': {}}):
        studies.settle(tmp_path, {'lr': 1, 'space': {}})
        with pytest.raises(ValueError, match='another process works in'):
            claimed(tmp_path, {})
    with pytest.raises(ValueError, match='lr is 1 there, 2 here'):
        claimed(tmp_path, {'lr': 2, 'space': {}})
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.json').write_text('{}')
    with pytest.raises(ValueError, match='holds a run of another program'):
        claimed(tmp_path / 'run', {})


def test_too_few_trials_have_no_importance_and_nothing_is_no_picture(tmp_path):
    row = {'outcome': 'complete', 'values': {'lr': 1.0, 'rank': 2}}
    assert plots.importances(None, [row] * 3) == {}
    assert plots.history([]) is None
    assert outputs.best_of([{'outcome': 'pruned', 'val_loss': 1.0}]) is None


@pytest.mark.parametrize('name', ['median', 'hyperband', 'none'])
def test_a_pruner_ends_bad_trials_early_and_never_the_best(name):
    """Losses by hand, validated after 10, 20, 30 and 40 updates; every third trial is bad."""
    import optuna

    looks, ended = (10, 20, 30, 40), {}
    # Hyperband draws a trial's bracket by the study's name.
    study = optuna.create_study(study_name='losses', pruner=studies.pruner_of(name, 2, looks))
    for number in range(16):
        trial, bad = study.ask(), number % 3 == 2
        for step in looks:
            trial.report((10.0 if bad else 1.0) + 0.01 * number - 0.001 * step, step)
            if step < looks[-1] and trial.should_prune():
                ended[number] = step
                break
        state = optuna.trial.TrialState.PRUNED if number in ended else None
        study.tell(trial, *([] if state else [1.0]), state=state)
    bad = set(range(2, 16, 3))
    assert 0 not in ended
    if name == 'none':
        assert ended == {}
    elif name == 'median':
        assert bad - {2} <= set(ended)  # the median of two trials needs both
        assert {ended[number] for number in bad - {2}} == {10}
    else:
        assert len(bad & set(ended)) >= 2  # brackets let some run longer
