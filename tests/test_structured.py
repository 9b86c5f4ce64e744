"""The comparison on structure-aware tasks: equal sizes, an honest control, no look ahead."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

import jaxpeft as jp
from eval.structured import arms, engine, program, report, study, suffix, summary
from eval.structured import task as tasks
from eval.structured.arms import ARMS, SHUFFLED, V2
from tests import structured_tiny as tiny
from tests import toys
from train import mesh as meshes
from train import optimizer
from train.batching import shared_shapes
from train.config import Optim
from train.step import compile_programs

OPTIM = Optim(batch=8)


@pytest.fixture(scope='module')
def toy():
    return tiny.task()


def fitted(name, toy, rank=2):
    return arms.fit(ARMS[name], *tiny.base(), rank, toy.encoder)


def test_shuffled_features_are_those_of_another_example_and_the_rest_stays(toy):
    found = tasks.shuffled(toy.train, ('ids',), seed=3)
    assert found.examples is toy.train.examples
    assert found.features['positions'] is toy.train.features['positions']
    kept = [row.tobytes() for row in toy.train.features['ids']]
    got = [row.tobytes() for row in found.features['ids']]
    assert set(got) <= set(kept)
    same = sum(a == b for a, b in zip(kept, got, strict=True))
    assert same <= 0.02 * len(kept)  # 2^8 different rows: a few are alike by chance
    again = tasks.shuffled(toy.train, ('ids',), seed=3)
    np.testing.assert_array_equal(again.features['ids'], found.features['ids'])
    with pytest.raises(ValueError, match='at least two'):
        tasks.shuffled(tiny.part_of(*tiny.rows(1, 0)), ('ids',), 0)


def test_donors_are_of_about_the_same_length():
    lengths = [3, 9, 4, 8, 3, 9]
    ids = np.repeat(np.arange(6)[:, None], 16, axis=1)
    rows = tasks.part([np.zeros(n) for n in lengths], [np.ones(n) for n in lengths], {'ids': ids})
    donors = tasks.shuffled(rows, ('ids',), 0).features['ids'][:, 0]
    assert all(donor != i for i, donor in enumerate(donors))
    assert all(abs(lengths[donor] - lengths[i]) <= 4 for i, donor in enumerate(donors))


@pytest.mark.parametrize('rank', [1, 3])
def test_ranks_are_the_nearest_to_v2s_count(toy, rank):
    model, params = tiny.base()
    v2 = fitted(V2, toy, rank)
    encoder = 8 * 8 + 4 + (64 + 64 + 3 + 36) * 8 + 8 * 32 + 2 * 8 + 1
    assert v2.trainable == 4 * 4 * (rank * 32 + 16 + 2 + 32) + encoder
    assert set(v2.ranks.values()) == {rank}
    assert fitted(SHUFFLED, toy, rank).trainable == v2.trainable
    for name, more in (('lora', 0), ('hylorada', 18)):
        found = fitted(name, toy, rank)
        state = jp.init(found.plan, jax.random.key(0), params)
        assert jp.count(state) == found.trainable
        sizes = [4 * (total * 32 + 4 * more) for total in range(4, 65)]
        assert abs(found.trainable - v2.trainable) == min(abs(s - v2.trainable) for s in sizes)
    with pytest.raises(ValueError, match='--rank must lie between 1 and 16'):
        arms.fit(ARMS['lora'], model, params, 17, toy.encoder)


def test_one_program_trains_every_rate_and_seed_as_the_trainer_does(toy):
    model, params = tiny.base()
    one = engine.Engine(model, params, fitted(V2, toy), OPTIM, steps=5)
    (shape,), _ = shared_shapes([engine.batcher(toy.train, 8, seed, 5) for seed in (0, 1)])
    first = one.train(toy.train, shape, 3e-2, 0)
    found = one.train(toy.train, shape, 1e-2, 1)
    assert one._programs.update._cache_size() == 1
    assert not np.allclose(first.losses, found.losses)

    plan, optim = fitted(V2, toy).plan, dataclasses.replace(OPTIM, lr=1e-2, seed=1)
    rate = optimizer.schedule(optim, 5)
    state = jax.device_put(
        jp.init(plan, jax.random.key(1), params), meshes.replicated(meshes.make('1,1,1'))
    )
    programs = compile_programs(
        plan, jp.bind(plan, model.apply), optimizer.make(optim, rate), rate,
        meshes.make('1,1,1'), state.params, 1,
    )  # fmt: skip
    now, losses = programs.start(state.params), []
    order = engine.batcher(toy.train, 8, 1, 5)
    for step in range(5):
        batch = engine.with_features(order.at(step), toy.train.features)
        now, metrics = programs.update(now, state.consts, params, batch)
        losses.append(float(metrics['loss']))
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found.state.params, now.params
    )


@functools.cache
def moved():
    """(engine, a v2 state whose structure acts)."""
    model, params = tiny.base()
    one = engine.Engine(model, params, fitted(V2, tiny.task()), OPTIM, 1, accuracy=True)
    state = jp.init(one.fitted.plan, jax.random.key(0), params)
    return one, toys.moved(state, jax.random.key(1), 0.5)


def test_the_hidden_suffix_check_holds_for_prefix_features():
    found = suffix.check(*moved(), tiny.hide(12, 0), batch=16)
    assert found['holds']
    assert found['worst'] < 1e-4
    assert found['features_changed'] == 0
    assert found['behind'] > 0.1
    assert found['labels'] > 20


def test_the_hidden_suffix_check_finds_features_that_look_ahead():
    found = suffix.check(*moved(), tiny.hide(48, 0, shift=2), batch=16)
    assert not found['holds']
    assert found['worst'] > 1e-2
    assert found['features_changed'] > 0
    said = summary.hidden(found)
    assert 'FAILS' in said
    nothing = tiny.hide(12, 0)._replace(replaced=tiny.hide(12, 0).whole)
    with pytest.raises(ValueError, match='another suffix'):
        suffix.check(*moved(), nothing, batch=16)


def test_measured_losses_are_totals_over_all_tokens(toy):
    one, state = moved()
    few = engine.held(toy.valid, 7, shape_of(toy.valid, 7), structure=True)
    many = engine.held(toy.valid, 24, shape_of(toy.valid, 24), structure=True)
    a, b = (one.measure(state, batches) for batches in (few, many))
    assert a['tokens'] == b['tokens'] == 24 * 8
    assert a['nll'] == pytest.approx(b['nll'], rel=1e-5)
    assert a['accuracy'] == pytest.approx(b['accuracy'])
    tokens = np.stack([e.tokens for e in toy.valid.examples])
    side = {'structure': toy.valid.features}
    logits = one.forward(state, {'params': one.params}, tokens, side=side)
    logp = np.asarray(jax.nn.log_softmax(logits))[:, ::2]
    want = -np.take_along_axis(logp, tokens[:, 1::2, None], axis=-1).mean()
    assert a['nll'] == pytest.approx(float(want), rel=1e-5)
    assert a['accuracy'] == pytest.approx((logp.argmax(-1) == tokens[:, 1::2]).mean())


def test_features_are_as_wide_as_the_batch():
    batch = {'tokens': np.zeros((2, 16), int), 'rows': np.array([1, -1])}
    short = {'ids': np.ones((3, 8, 4), int), 'times': np.ones((3, 24))}
    side = engine.with_features(batch, short)['side']['structure']
    assert side['ids'].shape == (2, 16, 4)
    assert side['times'].shape == (2, 16)
    assert side['ids'][0, :8].all()
    assert not side['ids'][0, 8:].any()
    assert not side['ids'][1].any()
    assert 'side' not in engine.with_features(batch, {})


def shape_of(one, batch):
    return shared_shapes([engine.eval_batcher(one, batch)])[1]


@pytest.fixture(scope='module')
def done(tmp_path_factory, toy):
    """(folder, what study.run gave for two seeds)."""
    folder = tmp_path_factory.mktemp('study')
    said = []
    found = study.run(toy, *tiny.base(), tiny.SETTINGS, folder, said.append)
    return folder, found


def test_a_structure_that_matters_is_learned_and_the_control_loses_it(done):
    found = summary.of_task(done[1])
    assert min(found['gains'][f'{SHUFFLED} -> {V2}']['values']) > 0.3
    assert found['gains'][f'lora -> {V2}']['mean'] > 0.3
    assert found['gains']['features -> other features']['mean'] > 0.3
    assert found['arms'][V2]['accuracy']['mean'] > 0.9
    assert found['suffix']['holds']
    lora = found['arms']['lora']
    assert lora['nll']['mean'] < found['before']['test']['nll'] - 0.5  # it learned the two answers
    assert lora['nll']['mean'] > np.log(2) - 0.03  # and no more than those
    assert summary.largest_mismatch(found) < 0.05


def test_a_finished_run_is_never_repeated(done, toy, monkeypatch):
    folder, found = done
    trained = []
    whole = engine.Engine.train
    monkeypatch.setattr(
        engine.Engine, 'train',
        lambda self, *args: trained.append((self.fitted.arm.name, args[3])) or whole(self, *args),
    )  # fmt: skip
    quiet = lambda line: None
    again = study.run(toy, *tiny.base(), tiny.SETTINGS, folder, quiet)
    assert not trained
    assert again == found
    (folder / 'toy' / 'lora' / 'seed-1.json').unlink()
    again = study.run(toy, *tiny.base(), tiny.SETTINGS, folder, quiet)
    assert trained == [('lora', 1)]
    new, old = (x['arms']['lora']['runs'][1]['test']['nll'] for x in (again, found))
    assert new == pytest.approx(old, rel=1e-6)


def test_the_report_and_its_table_fit(done, tmp_path):
    found = {'notes': ['A note.'], 'tasks': {'toy': summary.of_task(done[1])}}
    text = report.markdown(found, 'Title')
    rows = [line for line in text.splitlines() if line.startswith('|')]
    assert len(rows) == 2 + 1 + 3
    assert max(map(len, rows)) <= 100
    assert len({len(row) for row in rows}) == 1
    assert 'Hidden-suffix check holds' in text
    report.plot(found, tmp_path / 'plots' / 'loss.png')
    assert (tmp_path / 'plots' / 'loss.png').stat().st_size > 5000


def test_the_best_rate_is_searched_beyond_the_ends():
    tried = []

    def loss(lr):
        tried.append(lr)
        return None if lr > 0.05 else abs(np.log(lr / 3e-4))

    found, best, at_edge = study.search((1e-3, 3e-3, 0.1), 1, loss)
    assert (best, at_edge) == (pytest.approx(1e-3 / 3), True)
    assert found[0.1] is None
    assert len(tried) == 4
    found, best, at_edge = study.search((1e-3, 3e-3), 3, loss)
    assert (best, at_edge) == (pytest.approx(1e-3 / 3, rel=1e-4), False)
    with pytest.raises(ValueError, match='smaller --lrs'):
        study.search((1.0,), 2, loss)


def gains(*values):
    arm = {'at_edge': False, 'nll': {'mean': 1.0}}
    gain = summary.over_seeds(values)
    return {
        'arms': {'lora': arm, V2: arm | {'at_edge': True}},
        'gains': {f'lora -> {V2}': gain},
        'suffix': None,
    }


def test_verdicts_say_no_more_than_the_intervals():
    better, edge = summary.verdicts(gains(0.10, 0.11, 0.12))
    assert better == 'hylorada_v2 beats lora by 0.1100 nats (95 %: +0.0852 to +0.1348).'
    assert edge.startswith('The best rate of hylorada_v2 is at an end')
    assert 'WORSE than lora, by 0.1100' in summary.verdicts(gains(-0.10, -0.11, -0.12))[0]
    assert 'cannot be told apart' in summary.verdicts(gains(0.10, -0.11, 0.12))[0]
    assert 'one seed' in summary.verdicts(gains(0.1))[0]


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    flags = program.Flags(run_dir=str(tmp_path / 'x'))
    config = {'steps': 3, 'base': 'abc'}
    place = program.folder(flags, 'code', config)
    assert json.loads((place / 'config.json').read_text()) == config
    assert program.folder(flags, 'code', config) == place
    program.claim(place / 'python', {'data': 'abc'})
    with pytest.raises(ValueError, match=r"python holds .* data is 'abc' there, 'abd' here"):
        program.claim(place / 'python', {'data': 'abd'})
    with pytest.raises(ValueError, match=r'steps is 3 there, 4 here'):
        program.folder(flags, 'code', config | {'steps': 4})


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        ({'methods': ('lora', 'hylorda')}, "called 'hylorda'; .*hylorada"),
        ({'methods': ('lora', 'lora')}, 'each method once'),
        ({'seeds': 0}, '--seeds must be at least 1, got 0'),
        ({'extend': -1}, '--extend must be at least 0, got -1'),
        ({'test_rows': -5}, '--test_rows must be at least 0, got -5'),
        ({'lrs': (3e-3, 1e-3)}, r'rising order.*nearest: 0\.001 0\.003'),
    ],
)
def test_flags_out_of_range_are_refused(flags, said):
    with pytest.raises(ValueError, match=said):
        program.check(program.Flags(**flags))
