"""The benchmark program: its statistics, table, workers, counts, and one tiny real row."""

import dataclasses
import io
import json
import math
import os
import time

import jax
import jax.numpy as jnp
import pytest

from eval.bench import __main__ as program
from eval.bench import budget, floors, flops, measure, pool, report, rows, table, worker
from eval.bench.context import Context, config_of
from eval.bench.rows import Row, Subject
from eval.bench.sides import counts
from tests import bench_fake

FAKE = 'tests.bench_fake'


def fake(fresh=False, **spec):
    return Subject(FAKE, spec, fresh)


def row(ours, theirs, target=1.0, **more):
    return Row('name', 'what is compared', ours, theirs, target, 'group', **more)


def measured(one, context):
    samples = measure.group([one], context, say=lambda line: None)
    return report.entry(one, samples, {'cores': 2})


@pytest.fixture
def context(tmp_path):
    return Context(str(tmp_path), quick=True, rounds=3)


# ---- statistics ----


def test_paired_ratios_are_of_the_same_round():
    """A slow minute strikes both sides: the ratio of the two medians would be 1 here."""
    assert report.paired([1.0, 10.0, 100.0], [4.0, 40.0, 10.0]) == (0.25, [0.25, 10.0])


@pytest.mark.parametrize(('ours', 'theirs'), [([], []), ([1.0], [1.0, 2.0])])
def test_paired_needs_rounds_of_both(ours, theirs):
    with pytest.raises(ValueError, match='as many rounds'):
        report.paired(ours, theirs)


def test_sides_that_disagree_are_never_ok():
    samples = {
        'a': measure.Samples([1.0], [{'loss': 2.0}, {'loss': 2.0}]),
        'b': measure.Samples([2.0], [{'loss': 2.0}, {'loss': 2.01}]),
    }
    one = row(fake(value=0), fake(value=1), agree=('loss',))
    found = {one.ours.key: samples['a'], one.theirs.key: samples['b']}
    entry = report.entry(one, found, {})
    assert entry['ratio'] == 0.5
    assert entry['ok'] is False
    assert entry['differ'] == pytest.approx(0.01 / 2.01)
    assert 'differ by 5.0e-03 in loss' in entry['note']
    assert report.entry(one._replace(first=True), found, {})['ok'] is True


# ---- the workers ----


def test_subjects_take_turns_in_processes_of_their_own(context):
    """A fake pair: values 10, 11, 12, .. over 20, 21, ..; the second of a turn counts."""
    one = row(fake(value=10.0), fake(value=20.0), target=0.5, agree=('loss',))
    said = []
    samples = measure.group([one], context, say=said.append)
    assert samples[one.ours.key].values == [11.0, 13.0, 15.0]
    assert len(samples[one.ours.key].facts) == 6
    assert [line.split('10.0')[0].strip() == FAKE for line in said] == [True, False] * 4
    entry = report.entry(one, samples, {'cores': 2})
    assert entry['ratio'] == pytest.approx(13 / 23)
    assert entry['spread'] == pytest.approx([11 / 21, 15 / 25])
    assert (entry['ok'], entry['ours'], entry['theirs']) == (False, 13.0, 23.0)
    assert entry['rounds'] == {'ours': [11.0, 13.0, 15.0], 'theirs': [21.0, 23.0, 25.0]}
    assert entry['differ'] == 0.0
    json.dumps(entry)


def test_rounds_of_different_work_are_taken_together(context):
    """Values 10 to 18 over 20 to 28, three calls a turn, of which the last two count."""
    one = row(fake(value=10.0), fake(value=20.0), target=0.59, batches=2)
    samples = measure.group([one], context, say=lambda line: None)
    assert samples[one.ours.key].values == [11.5, 14.5, 17.5]
    entry = report.entry(one, samples, {})
    assert entry['ratio'] == pytest.approx(43.5 / 73.5)
    assert entry['spread'] == pytest.approx([11.5 / 21.5, 17.5 / 27.5])
    assert (entry['ok'], entry['ours']) == (False, 14.5)


def test_a_group_whose_time_is_up_makes_three_rounds(context):
    one, said = row(fake(value=1.0), fake(value=2.0)), []
    many = dataclasses.replace(context, rounds=6)
    samples = measure.group([one], many, said.append, until=time.monotonic())
    assert [len(part.values) for part in samples.values()] == [3, 3]
    assert said[-1] == '  3 rounds, not 6: the time is up'
    few = measure.group([one], dataclasses.replace(context, rounds=2), until=time.monotonic())
    assert [len(part.values) for part in few.values()] == [2, 2]


def test_a_group_with_time_makes_all_its_rounds(context):
    one, until = row(fake(value=1.0), None), time.monotonic() + 600
    samples = measure.group([one], dataclasses.replace(context, rounds=6), until=until)
    assert len(samples[one.ours.key].values) == 6


def test_deadlines_share_the_minutes_in_order():
    groups = list(dict.fromkeys(one.group for one in rows.every()))
    assert budget.SHARES.keys() <= set(groups)
    ends = list(budget.deadlines(groups, 40, clock=lambda: 0.0).values())
    assert ends == sorted(ends)
    assert ends[-1] == pytest.approx(2400)
    assert set(budget.deadlines(groups, math.inf).values()) == {math.inf}


def test_one_warm_process_a_side_and_fresh_ones_where_asked(context):
    one = row(fake(value=1.0), fake(value=2.0), agree=('loss',))
    samples = measure.group([one], context, say=lambda line: None)
    pids = {facts['pid'] for part in samples.values() for facts in part.facts}
    assert len(pids) == 1
    assert os.getpid() not in pids
    fresh = row(fake(fresh=True, value=1.0), None, rounds=2)
    facts = measure.group([fresh], context, say=lambda line: None)[fresh.ours.key].facts
    assert len({one['pid'] for one in facts}) == 2
    assert [one['call'] for one in facts] == [0, 0]


def test_a_figure_without_a_peer_is_held_against_its_target(context):
    entry = measured(row(fake(value=1.0), None, target=5.0), context)
    assert (entry['ratio'], entry['theirs'], entry['ok']) == (4.0, None, True)
    assert entry['spread'] == [2.0, 6.0]


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ({'fail': 'prepare'}, 'ValueError: no such thing'),
        ({'fail': 2}, 'RuntimeError: call 2 failed'),
        ({'exit': 1}, 'the worker ended with code 7'),
    ],
)
def test_a_side_that_fails_is_reported_and_the_other_goes_on(context, spec, message):
    broken = row(fake(fresh=True, value=1.0), fake(**spec))
    samples = measure.group([broken], context, say=lambda line: None)
    entry = report.entry(broken, samples, {})
    assert entry['ok'] is None
    assert entry['note'] == f'not measured, theirs: {message}'
    assert len(samples[broken.ours.key].values) == 3
    assert 'MISSED' not in table.render([entry], 'title')


def test_serve_answers_line_by_line():
    context = {'work': '/nowhere'}
    requests = [
        {'prepare': 'k', 'spec': {'value': 5}, 'context': context},
        {'run': 'k'},
        {'run': 'unknown'},
    ]
    replies = io.StringIO()
    worker.serve(bench_fake, io.StringIO('\n'.join(map(json.dumps, requests))), replies)
    ready, ran, failed = map(json.loads, replies.getvalue().splitlines())
    assert ready == {'ready': 'k'}
    assert ran['facts']['value'] == 5
    assert ran['seconds'] >= 0
    assert failed == {'error': "KeyError: 'unknown'"}


def test_an_ended_worker_says_so(context, tmp_path):
    alone = pool.Worker(FAKE, context, tmp_path / 'log')
    alone.process.kill()
    alone.process.wait()
    with pytest.raises(pool.WorkerError, match='ended with code -9'):
        alone.prepare(fake(value=1))
    alone.close()


# ---- the rows and the table ----


def test_rows_have_names_of_their_own_and_groups_one_count_of_rounds():
    every = rows.every()
    assert len({one.name for one in every}) == len(every) > 40
    assert all(one.target > 0 for one in every)
    for name in {one.group for one in every}:
        assert len({one.rounds for one in every if one.group == name}) == 1


def test_only_takes_names_groups_and_patterns():
    every = rows.every()
    names = lambda *only: [one.name for one in rows.chosen(only, every)]
    assert names('lora') == ['lora']
    assert names('own-*-attention-all') == [
        f'own-{method}-attention-all' for method in ('hira', 'knowhira', 'dora', 'kasa', 'hylorada')
    ]
    assert {'lora', 'qwix-all'} <= set(names('attention-all'))
    assert names() == [one.name for one in every]
    with pytest.raises(ValueError, match=r"--only knowhra: no such row; .*'?knowhira"):
        names('lora', 'knowhra')


def test_the_table_fits(context):
    entry = measured(row(fake(value=1.0), fake(value=2.0), target=0.1, agree=('loss',)), context)
    entry['facts'] = {side: [{'loss': 10.25}] for side in ('ours', 'theirs')}
    long = [entry, {**entry, 'what': 'w' * 90, 'note': 'n' * 150, 'ok': None, 'ratio': 1234.5}]
    text = table.render(long, 'title')
    assert max(map(len, text.splitlines())) <= 100
    assert 'MISSED' in text
    assert 'ours loss 10.25, theirs loss 10.25, largest difference 0.0e+00' in text


# ---- counts ----


def test_flops_of_nested_loops_conditions_and_gradients():
    w = jnp.ones((4, 4))
    once = 2 * 3 * 4 * 4

    def twice(x):
        inner = lambda x, _: (jax.checkpoint(lambda x: x @ w)(x), None)
        outer = lambda x, _: (jax.lax.scan(inner, x, length=3)[0], None)
        return jax.lax.scan(outer, x, length=2)[0]

    x = jnp.ones((3, 4))
    assert flops.count(twice, x) == 6 * once
    branch = lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x @ w, x)
    assert flops.count(branch, x) == 2 * once
    assert flops.count(jax.grad(lambda w: (x @ w).sum()), w) >= once
    with pytest.raises(ValueError, match='while'):
        flops.count(lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ w, x), x)


@pytest.mark.parametrize('method', ['lora', 'hira', 'kasa'])
def test_our_step_is_above_its_floor_and_near_it(context, method):
    """A floor above what is counted would be a wrong formula."""
    spec = {'method': method, 'targets': 'linear', 'labels': 'answer'}
    counted, floor = (
        counts.prepare(context, {**spec, 'count': count})()['value'] for count in ('flops', 'floor')
    )
    assert 1.0 <= counted / floor < 1.2


def test_the_floor_of_lora_by_hand(context):
    config, tokens = config_of(context), 64
    d, f, t = 32, 128, 32
    layer = 2 * 2 * tokens * (4 * d * d + 2 * d * f) + 6 * tokens * (t + 1) * d
    adapter = 4 * (2 * 2 * d * d * 4 + 4 * tokens * 4 * (d + d))  # W + A B twice; xA, dyB, dA, dB
    below = 3 * (2 * tokens * d * d + 2 * d * d * 4)  # q, k, v of the first layer
    head = 4 * 10 * d * config.vocab_size
    expected = 4 * (layer + adapter) - below + head
    assert floors.step(config, 'lora', 'attention', 4, 2, 32, 10) == expected


def test_temporaries_of_hira_are_those_of_lora(tmp_path):
    """At the bench's own shape, of which nothing is loaded; to 1 %, whatever the version of XLA."""
    full = Context(str(tmp_path))
    spec = {'targets': 'linear', 'labels': 'all', 'count': 'temp'}
    lora, hira = (counts.prepare(full, spec | {'method': m})()['value'] for m in ('lora', 'hira'))
    assert 0 < hira <= 1.01 * lora


# ---- the program ----


def test_list_and_unknown_names(capsys):
    assert program.main(['--list', '--only', 'kasa']) == 0
    assert 'KaSA / PEFT' in capsys.readouterr().out
    assert program.main(['--only', 'cassa']) == 2
    assert 'no such row' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['hira', 'commonsense'])
def test_a_real_row(tmp_path, capsys, name):
    """Against PEFT on a tiny GPT-Neo: same weights, same ids, same loss and gradient norm."""
    if name == 'commonsense' and not program.DATA.exists():
        pytest.skip(f'real questions are not at {program.DATA}')
    pytest.importorskip('torch', reason='compares with torch (extra: test)')
    pytest.importorskip('peft', reason='compares with peft (extra: test)')
    out = tmp_path / 'bench.json'
    program.main(['--quick', '--only', name, '--rounds', '1', '--out', str(out)])
    (entry,) = json.loads(out.read_text())
    assert {'what', 'ratio', 'spread', 'target', 'ok', 'ours', 'theirs'} <= entry.keys()
    assert entry['differ'] < 1e-4, entry['note']
    assert 0 < entry['ours'] < 60
    assert entry['facts']['ours'][0]['grad_norm'] > 0
    assert entry['machine']['quick'] is True
    assert 'QUICK' in capsys.readouterr().out
