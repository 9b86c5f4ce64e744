"""eval.compare: what is compared, at which ranks, what is kept, and the figures' arithmetic."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxpeft as jp
from eval.compare import __main__ as program
from eval.compare import (
    content,
    cost,
    entries,
    figures,
    forget,
    jobs,
    match,
    plots,
    run,
    table,
    worker,
)
from eval.compare.entries import Entry
from eval.compare.figures import Line
from tests import train_tiny
from train import cache, cli, feed, model, shapes

ROOT = pathlib.Path(__file__).resolve().parents[1]


def parse(methods, seeds=2, seeds_of=(), lrs=(), lrs_of=()):
    return entries.parse(methods, seeds, seeds_of, lrs, lrs_of)


def resolved(label, *flags):
    """An entry and its configuration, on the embedded base."""
    (entry,) = parse([label])
    config, _ = cli.parse([*flags, f'--method={entry.method}', *entry.flags])
    return entry, config


def test_entries_are_read_as_they_are_spelled():
    found = parse(
        ['none', 'lora', 'knowhira:adaptive_gating=false,init_ab=zero,kaiming', 'lora:epoch=2'],
        seeds_of=['lora=3,lora:epoch=2=4'],
        lrs=[1e-3],
        lrs_of=['lora=1e-4,2e-4'],
    )
    assert [entry.seeds for entry in found] == [1, 3, 2, 4]
    assert [entry.rates for entry in found] == [(), (1e-4, 2e-4), (1e-3,), (1e-3,)]
    assert found[2].flags == (
        '--set=knowhira.adaptive_gating=false',
        '--set=knowhira.init_ab=zero,kaiming',
    )
    assert found[3].flags == ('--epoch=2',)
    assert len({entry.slug for entry in found}) == 4
    assert entries.flags('lora', 'loraplus=true') == ('--loraplus',)
    (two,) = parse(
        ['lora:rslora=true,alpha=8'],
        seeds_of=['lora:rslora=true,alpha=8=4'],
        lrs_of=['lora:rslora=true,alpha=8=1e-3,3e-3'],
    )
    assert (two.seeds, two.rates) == (4, (1e-3, 3e-3))


def test_rates_lie_around_the_usual_one_or_that_of_a_file(tmp_path):
    there = ('--model_name=x', '--dataset=boolq')
    grid = lambda label, *flags: entries.with_rates(*resolved(label, *flags)).rates
    assert grid('hira') == (3.33e-3, 1e-2, 3e-2)
    assert grid('full', *there)[1] == 1e-5
    best = tmp_path / 'best.yaml'
    best.write_text('lr: 0.5\n')
    assert grid('lora', *there, f'--config={best}') == (0.167, 0.5, 1.5)
    entry, config = resolved('lora')
    assert entries.with_rates(entry._replace(rates=(7.0,)), config).rates == (7.0,)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: parse(['lora', 'lora']), "names 'lora' twice"),
        (lambda: parse(['none']), 'nothing to train'),
        (lambda: parse(['lroa']), 'lora'),
        (lambda: parse(['lora:alhpa=3']), "takes no 'alhpa'.*alpha"),
        (lambda: parse(['lora:alpha']), 'key=value'),
        (lambda: parse(['lora'], seeds_of=['hira=2']), 'METHOD=value with a method of --methods'),
        (lambda: parse(['lora'], seeds_of=['lora=0']), '1 or more'),
        (lambda: parse(['lora'], lrs_of=['lora=x']), 'learning rates are numbers'),
        (lambda: parse(['lora'], lrs_of=['lora=1e-3,hira=1e-3']), 'learning rates are numbers'),
        (lambda: parse(['lora:seed=3']), 'sets seed for each run; give --seeds N'),
        (lambda: entries.check_flags(['--seed=3']), 'give --seeds N'),
    ],
)
def test_what_is_misspelled_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize('method', ['hira', 'knowhira', 'dora', 'kasa', 'hylorada'])
def test_ranks_match_the_reference_within_one(method):
    """No other rank is nearer; counted on the real trees as well."""
    of = lambda name: cli.parse([f'--method={name}', '--r_ab=8'])[0]
    pairs = [(parse([name])[0], of(name)) for name in ('lora', method)]
    (_, lora), (_, found) = match.equalise(pairs)[0]
    count = match.Counter(lora)
    target, rank = count(lora), found.options[method]['rank']
    gaps = {r: abs(count(match.with_rank(found, r)) - target) for r in (rank - 1, rank, rank + 1)}
    assert min(gaps, key=lambda r: (gaps[r], r)) == rank
    one = count(match.with_rank(found, rank + 1)) - count(match.with_rank(found, rank))
    assert 2 * gaps[rank] <= one
    built = model.setup(found, fresh=False)
    assert jp.count(built.state) == count(found)


def test_matching_counts_layerwise_ranks_and_leaves_a_rank_that_is_asked_for():
    flags = ('--rank_strategy=decreasing',)
    eight = (*flags, '--r_ab=8')
    pairs = [resolved('lora', *eight), resolved('hira', *eight), resolved('hira:rank=6', *flags)]
    (_, lora), (_, hira), (_, own) = match.equalise(pairs)[0]
    assert own.options['hira']['rank'] == 6
    count = match.Counter(lora)
    near = [abs(count(match.with_rank(hira, r)) - count(lora)) for r in range(1, 17)]
    rank = hira.options['hira']['rank']
    assert near[rank - 1] == min(near)
    assert jp.count(model.setup(hira).state) == count(hira)  # of the ranks that act
    assert count(hira) < count(match.with_rank(resolved('hira')[1], rank))
    pattern = '--rank_pattern=q_proj=4,v_proj=4,k_proj=4,out_proj=4'
    pairs = [resolved('lora'), resolved('hira', pattern)]
    with pytest.raises(ValueError, match='at every rank'):
        match.equalise(pairs)


def test_matching_says_what_it_cannot_do():
    pairs = [(parse(['full'])[0], cli.parse(['--method=full'])[0])]
    with pytest.raises(ValueError, match='none of --methods has one'):
        match.equalise(pairs)
    lora = (parse(['lora'])[0], cli.parse(['--method=lora'])[0])
    with pytest.raises(ValueError, match=r"got 'lore'.*lora"):
        match.equalise([*pairs, lora], 'lore')
    found, said = match.equalise([*pairs, lora])
    assert found == [*pairs, lora]
    assert '`lora` at rank 16' in said


def line(label, accuracies=(), seconds=(), lr=1e-3, seeds=3):
    entry = Entry(label, label, (), seeds, (lr,))
    runs = [{'config': {'seed': i}, 'after': {}} for i in range(max(len(accuracies), len(seconds)))]
    values = {'accuracy': list(accuracies), 'seconds': list(seconds)}
    return Line(entry, lr, False, runs, 0, {k: v for k, v in values.items() if v})


def test_intervals_are_students_over_seeds_and_gaps_are_paired():
    lora, hira = line('lora', [50.0, 52.0, 54.0]), line('hira', [51.0, 54.0])
    assert lora.centre('accuracy') == 52.0
    low, high = lora.interval('accuracy')  # t(0.975, 2) = 4.302653, s / sqrt(3) = 2 / sqrt(3)
    assert (low, high) == pytest.approx((52 - 4.302653 * 2 / 3**0.5, 52 + 4.302653 * 2 / 3**0.5))
    gap, interval = figures.against(hira, lora, 'accuracy')  # +1 and +2 on seeds 0 and 1
    assert gap == 1.5
    assert interval == pytest.approx((1.5 - 12.7062 * 0.5, 1.5 + 12.7062 * 0.5), rel=1e-5)
    assert figures.against(lora, lora, 'accuracy') is None
    assert figures.against(line('hira', [60.0]), lora, 'accuracy') == (10.0, None)
    assert line('x', [1.0]).interval('accuracy') is None


def test_perplexities_are_averaged_and_compared_by_their_logarithms():
    """Values a factor of 10 apart: no interval of theirs may reach below zero."""
    seeds = lambda label, *values: line(label, values)._replace(values={'forgetting': [*values]})
    lora, hira = seeds('lora', 10.0, 100.0, 1000.0), seeds('hira', 20.0, 200.0, 2000.0)
    assert lora.centre('forgetting') == pytest.approx(100)
    far = 10 ** (4.302653 / 3**0.5)  # t s / sqrt(3), s = 1 of the decimal logarithms
    assert lora.interval('forgetting') == pytest.approx((100 / far, 100 * far), rel=1e-5)
    gap, interval = figures.against(hira, lora, 'forgetting')
    assert (gap, *interval) == pytest.approx((1.0, 1.0, 1.0))  # twice as much on every seed
    alone = seeds('hira', 5.0)
    assert figures.against(alone, lora, 'forgetting') == (pytest.approx(-0.5), None)
    assert alone.interval('forgetting') is None
    _, rows = table._rows([lora, hira, alone])
    assert rows[0][-1] == '100.0 (0.3280 to 30,489)'


def test_the_sampling_error_is_that_of_the_mean_of_tasks():
    tasks = {'a': {'accuracy': 0.5, 'n': 100}, 'b': {'accuracy': 0.8, 'n': 50}}
    want = 100 * 1.959964 * (0.25 / 100 + 0.16 / 50) ** 0.5 / 2
    assert figures.sampling_error([{'after': {'loglik': {'tasks': tasks}}}]) == pytest.approx(want)
    sure = {name: {**one, 'accuracy': 0.99} for name, one in tasks.items()}
    whole = [{'after': {'loglik': {'tasks': each}}} for each in (sure, tasks, sure)]
    assert figures.sampling_error(whole) == pytest.approx(want)  # the largest of all runs
    assert figures.sampling_error([{'after': {}}]) is None


def test_the_front_is_what_nobody_beats():
    points = [(1.0, 10.0), (2.0, 12.0), (3.0, 12.0), (1.0, 10.0), (4.0, 20.0)]
    assert figures.front(points, (-1, +1)) == [0, 1, 3, 4]  # less time, more accuracy
    assert figures.front(points, (+1, +1)) == [4]


def test_many_methods_look_different_and_long_names_leave_the_plot_its_width():
    kinds = [
        (plots.COLOURS[i % len(plots.COLOURS)], plots.MARKERS[i % len(plots.MARKERS)])
        for i in range(40)
    ]
    assert len(set(kinds)) == 40
    lines = [line('lora', [50.0], [1.0]), line('hylorada:init=kaiming,alpha=8', [51.0], [2.0])]
    figure = plots.draw(lines, 'seconds', 'accuracy')
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ['lora', 'hylorada:\ninit=kaiming,\nalpha=8']


def test_plots_join_the_front_and_leave_out_what_is_not_measured(tmp_path):
    lines = [
        line('none', [40.0]),
        line('lora', [50.0, 52.0], [1.0, 1.2]),
        line('hira', [49.0], [2.0]),
    ]
    assert plots.write(lines, tmp_path) == ['accuracy-seconds']
    figure = plots.draw(lines[1:], 'seconds', 'accuracy', lines[:1])
    front = figure.axes[0].lines[0]
    assert np.asarray(front.get_xydata()).tolist() == [[1.1, 51.0]]
    texts = {text.get_text() for text in figure.legends[0].get_texts()}
    assert texts == {'none', 'lora', 'hira'}


def test_forgetting_reads_the_beginning_of_the_text(tmp_path):
    _, _, tokenizer = jp.models.load('embedded')
    file = tmp_path / 'text.raw'
    file.write_text('A dog is an animal. ' * 50)
    ids = forget.tokens(forget.Text(str(file), 40, 16, 8), tokenizer)
    assert [len(one) for one in ids] == [40]
    assert ids[0].tolist() == tokenizer('A dog is an animal. ' * 50)['input_ids'][:40]
    own = forget.tokens(forget.Text('embedded', 300, 16, 8), tokenizer)
    assert sum(map(len, own)) == 300
    assert forget.tokens(forget.Text('', 300, 16, 8), tokenizer) == []


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    folder = train_tiny.write_all(tmp_path_factory.mktemp('tiny'))
    (folder / 'text.txt').write_text(train_tiny.TEXT * 5)
    return folder


@pytest.fixture
def here(monkeypatch):
    """Jobs are done in this process, whose programs are compiled already; gives what was done."""
    done = []

    def wait(self, file, log):
        task = json.loads(file.read_text())
        done.append([pathlib.Path(job['file']).stem for job in task['jobs']])
        worker.perform(task)
        return 0

    monkeypatch.setattr(run.Runner, '_wait', wait)
    update = jax.config.update  # the process of the tests has its platform already
    monkeypatch.setattr(
        jax.config, 'update', lambda name, value: name == 'jax_platforms' or update(name, value)
    )
    monkeypatch.setattr(cache, 'enable', lambda: '')
    return done


def flags(tiny, out, *more):
    own = [f for f in train_tiny.flags(tiny) if not f.startswith(('--run_dir', '--lr', '--r_ab'))]
    return [
        *own, f'--out_dir={out}', '--r_ab=4', '--mesh=1,1,1', f'--forget_text={tiny / "text.txt"}',
        '--forget_tokens=100', '--forget_window=16', '--forget_stride=8', '--sweep_rows=24',
        '--max_steps=4', *more,
    ]  # fmt: skip


METHODS = (
    '--methods',
    'none',
    'lora',
    'hira',
    '--seeds=2',
    '--seeds_of=hira=1',
    '--lrs',
    '1e-3',
    '1e-2',
)


def test_a_comparison_from_end_to_end(tiny, tmp_path, here, capsys):
    """In turn, then again (nothing is repeated), on another machine, and together (the same)."""
    out = tmp_path / 'out'
    command = flags(tiny, out, *METHODS, '--no_together')
    assert program.main(command) == 0, capsys.readouterr().err
    assert here == [
        ['base'],
        ['lora-lr0.001', 'lora-lr0.01'],
        ['hira-lr0.001', 'hira-lr0.01'],
        ['lora-seed0'], ['hira-seed0'], ['lora-seed1'],
        ['lora-seed0', 'hira-seed0'],
    ]  # fmt: skip
    found = {p.stem: json.loads(p.read_text()) for p in out.glob('runs/*.json')}
    assert found.keys() == {'lora-seed0', 'lora-seed1', 'hira-seed0'}
    base = json.loads((out / 'base.json').read_text())
    for one in found.values():
        assert one['forget']['tokens'] == base['forget']['tokens'] == 99
        assert one['forget']['corpus_ppl'] != base['forget']['corpus_ppl']
        assert one['config']['lr'] == 1e-2  # the lower validation loss of the short runs
        assert one['seconds_per_step'] > 0
        assert one['process_bytes'] > 1e6
        assert one['train']['trainable'] == 2 * 2 * (32 * 4 + 4 * 32)
    short = json.loads((out / 'sweep' / 'lora-lr0.01.json').read_text())
    assert short['config']['train_rows'] == 24
    assert short['steps'] == 4
    costs = json.loads((out / 'costs.json').read_text())['entries']
    assert costs.keys() == {'lora', 'hira'}
    for label, one in costs.items():
        assert one['config']['method'] == label
        assert not {'lr', 'seed'} & one['config'].keys()
        assert len(one['seconds']) == 6
        assert min(one['seconds']) > 0
        assert one['program']['total'] > one['program']['arguments'] > 0
    assert costs['lora']['tokens'] == costs['hira']['tokens']  # the same rows
    page = (out / 'compare.md').read_text()
    assert '| `lora` | 4 | 1,024 | 0.01* | 2 |' in page
    assert '| `hira` | 4 | 1,024 | 0.01* | 1 |' in page
    assert 'validation loss' in page
    folder = out / 'work' / 'runs' / 'lora-seed0'  # an ordinary run of train.run
    assert (folder / 'results.json').exists()
    assert (folder / 'adapter' / 'adapter.json').exists()
    assert sum(p.stat().st_size for p in out.glob('*/*.json')) < 100_000

    here.clear()
    (out / 'work').rename(tmp_path / 'lost')  # only the small files came to this machine
    assert program.main(command) == 0
    assert here == []

    other = tmp_path / 'other'
    assert program.main(flags(tiny, other, *METHODS, '--only', 'lora')) == 0
    assert here == [
        ['base'], ['lora-lr0.001', 'lora-lr0.01'], ['lora-seed0', 'lora-seed1'], ['lora-seed0'],
    ]  # fmt: skip
    for seed in ('lora-seed0', 'lora-seed1'):
        mine = json.loads((other / 'runs' / f'{seed}.json').read_text())
        assert mine['config'] == found[seed]['config']
        assert mine['together'] == 2
        assert 'seconds_per_step' not in mine  # a share of the time of all is nobody's own
        alone = found[seed]['forget']['corpus_ppl']
        assert mine['forget']['corpus_ppl'] == pytest.approx(alone, rel=1e-4)
        loss = found[seed]['train']['best_val_loss']
        assert mine['train']['best_val_loss'] == pytest.approx(loss, rel=1e-5)
    capsys.readouterr()
    assert program.main([*command, '--batch=4']) == 2
    assert 'batch is 8 there, 4 here' in capsys.readouterr().err
    assert program.main(flags(tiny, out, *METHODS, '--table_only')) == 0
    assert program.main(flags(tiny, tmp_path / 'new', *METHODS, '--table_only')) == 2
    assert 'no finished base.json' in capsys.readouterr().err


PLAIN = (
    '--methods', 'none', 'lora', '--seeds=2', '--max_length=16', '--val_size=3', '--batch=4',
    '--max_steps=40',
)  # fmt: skip


def test_plain_text_is_judged_by_its_perplexity(tiny, tmp_path, here):
    """The held-out windows are a seed's own, so each run has its own figure of the base."""
    more = ('--lrs=1e-2', f'--dataset={tiny / "text.txt"}')
    assert program.main(flags(tiny, tmp_path, *PLAIN, *more)) == 0
    before = []
    for file in sorted(tmp_path.glob('runs/*.json')):
        found = json.loads(file.read_text())
        after = found['after']['perplexity']['corpus_ppl']
        before.append(found['before']['perplexity']['corpus_ppl'])
        assert after < before[-1]
        assert np.log(after) == pytest.approx(found['train']['best_val_loss'], rel=1e-4)
    assert before[0] != before[1]
    page = (tmp_path / 'compare.md').read_text()
    assert '| held-out ppl |' in page
    assert 'Each seed holds windows of its own out' in page
    figures_ = json.loads((tmp_path / 'compare.json').read_text())
    assert figures_['none']['figures']['perplexity']['values'] == before


def test_a_test_text_judges_and_chooses_nothing(tiny, tmp_path, here, capsys):
    other = tmp_path / 'other.txt'
    other.write_text('The sun is hot. ' * 9)
    rates = ('--lrs', '1e-3', '1e-2', '--sweep_rows=500')  # more rows than there are: all are taken
    data = f'--dataset={tiny / "text.txt"}'
    command = flags(tiny, tmp_path / 'out', *PLAIN, *rates, data, f'--test_text={other}')
    assert program.main(command) == 0, capsys.readouterr().err
    base = json.loads((tmp_path / 'out' / 'base.json').read_text())['test']
    runs = [json.loads(f.read_text()) for f in (tmp_path / 'out').glob('runs/*.json')]
    for one in runs:
        assert one['test']['tokens'] == base['tokens'] > 20
        assert one['test']['corpus_ppl'] != one['after']['perplexity']['corpus_ppl']
    page = (tmp_path / 'out' / 'compare.md').read_text()
    assert f'perplexity of other.txt ({base["tokens"]} tokens)' in page
    assert f'| `none` | - | - | - | 1 | {base["corpus_ppl"]:#.4g} |' in page
    assert 'The test text was not looked at.' in page
    capsys.readouterr()
    other.write_text('The sun is cold. ' * 9)  # the same name, another text
    assert program.main(command) == 2
    assert 'other content of the text of --test_text' in capsys.readouterr().err
    assert program.main(flags(tiny, tmp_path / 'q', '--methods=lora', f'--test_text={other}')) == 2
    assert 'which have test rows of their own' in capsys.readouterr().err


def test_a_rate_is_not_chosen_without_validation(tiny, tmp_path, capsys):
    out = tmp_path / 'out'
    assert program.main(flags(tiny, out, *METHODS, '--eval_strategy=no')) == 2
    assert 'is chosen by validation' in capsys.readouterr().err
    assert not (out / 'base.json').exists()
    assert program.main(flags(tiny, out, *METHODS, '--forget_tokens=1')) == 2
    assert 'one token predicts nothing' in capsys.readouterr().err


def test_what_figures_were_made_of_is_known_by_content(tmp_path):
    folder = tmp_path / 'model'
    folder.mkdir()
    (folder / 'config.json').write_text('{"n": 1}')
    (tmp_path / 'boolq.train.jsonl.gz').write_bytes(b'rows')
    config, _ = cli.parse(
        ['--method=lora', f'--model_name={folder}', '--dataset=boolq', f'--data_dir={tmp_path}']
    )
    first = content.of(config, {'text': forget.NO_TEXT})
    assert first.keys() == {'base', 'training data'}  # the questions are not there
    (tmp_path / 'boolq.train.jsonl.gz').write_bytes(b'others')
    (tmp_path / 'boolq.test.jsonl.gz').write_bytes(b'questions')
    then = content.of(config, {})
    assert content.differences(first, then) == ['training data']
    (folder / 'model.safetensors').write_bytes(b'12')
    assert content.differences(then, content.of(config, {})) == ['base']
    embedded, _ = cli.parse(['--method=lora'])
    assert content.of(embedded, {}) == {}


def test_a_rate_that_diverges_is_written_down_and_not_taken(tiny, tmp_path, here):
    more = ('--methods', 'lora', '--seeds=1', '--lrs', '1e-2', '1e30', '--max_grad_norm=0')
    assert program.main(flags(tiny, tmp_path, *more)) == 0
    bad = json.loads((tmp_path / 'sweep' / 'lora-lr1e+30.json').read_text())
    assert bad['val_loss'] is None
    assert 'is' in bad['diverged']
    assert here[-2:] == [['lora-seed0']] * 2  # the run, and the cost of its update
    assert '1e+30: diverged' in (tmp_path / 'compare.md').read_text()


def test_killed_at_once_it_continues_and_no_worker_is_left(tiny, tmp_path, here):
    """A real process, killed with SIGKILL while its worker trains."""
    out = tmp_path / 'out'
    more = ('--methods', 'lora', '--seeds=1', '--lrs', '1e-2', '--max_steps=120', '--save_steps=5')
    command = flags(tiny, out, *more)
    env = os.environ | {'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT), 'JAXPEFT_CACHE': str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, '-m', 'eval.compare', *command], env=env, stdout=subprocess.DEVNULL
    )
    checkpoints = out / 'work' / 'runs' / 'lora-seed0' / 'checkpoints'
    until(lambda: list(checkpoints.glob('[0-9]*')), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    worker_file = str(out / 'work' / 'logs' / 'lora-seed0.job.json')
    until(lambda: not running(worker_file))
    assert not (out / 'runs').exists()
    when = (out / 'base.json').stat().st_mtime_ns
    assert program.main(command) == 0
    assert here == [['lora-seed0']] * 2  # the rest of the run, and the cost of its update
    assert (out / 'base.json').stat().st_mtime_ns == when
    steps = json.loads((out / 'runs' / 'lora-seed0.json').read_text())['steps']
    assert steps == 120


def test_stopped_while_it_evaluates_it_ends_and_goes_on_with_nothing(tiny, tmp_path):
    """A real process: SIGTERM while its worker loads or measures the base."""
    out = tmp_path / 'out'
    command = flags(tiny, out, '--methods', 'lora', '--seeds=1', '--lrs=1e-2')
    env = os.environ | {'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT), 'JAXPEFT_CACHE': str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, '-m', 'eval.compare', *command],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    until((out / 'work' / 'logs' / 'base.log').exists, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    assert 'the same command continues here' in said
    assert not (out / 'runs').exists()
    assert not running(str(out / 'work' / 'logs' / 'base.job.json'))


def until(happened, process=None, limit=500):
    """Waits; a process that ends before is an error."""
    end = time.monotonic() + limit
    while not happened():
        assert process is None or process.poll() is None, f'ended with {process.returncode}'
        assert time.monotonic() < end, 'nothing happened in time'
        time.sleep(0.05)


def running(argument):
    """Whether some process has this in its command line."""
    for file in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
        try:
            if argument in file.read_text(errors='replace'):
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended between the two calls
    return False


def test_the_cost_is_of_the_largest_batch_and_is_measured_anew_for_another_setting(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(shapes, 'WORTH', 0)  # so that even a short run has batches of several sizes
    config, _ = cli.parse([*train_tiny.flags(tiny), '--max_steps=40', '--batch=4', '--mesh=1,1,1'])
    job = jobs.Job('run', 'lora', tmp_path / 'x.json', config, forget.Text('', 1, 1, 1))
    found = cost.measure([job], 2, lambda: False)
    built = model.setup(config)
    fed = feed.make(config, built.tokenizer, built.mesh)
    assert fed.batcher.fits(0) < len(fed.batcher.shapes) - 1  # the first update is not the largest
    fed.batcher.shapes = fed.batcher.shapes[-1:]
    assert cost.Update(config, built, fed).prepare(1) == found['lora']['program']
    file = tmp_path / 'costs.json'
    assert cost.read(file, [job]) == {}
    cost.write(file, [job], 2, found)
    assert cost.read(file, [job])['lora']['seconds'] == found['lora']['seconds']
    assert cost.read(file, [job], 2) == cost.read(file, [job])
    assert cost.read(file, [job], 50) == {}
    faster = dataclasses.replace(config.optim, lr=1.0, seed=5)
    same = job._replace(config=dataclasses.replace(config, optim=faster))
    assert cost.read(file, [same])
    wider = dataclasses.replace(config.optim, batch=2)
    assert not cost.read(file, [job._replace(config=dataclasses.replace(config, optim=wider))])
    assert cost.measure([job], 2, lambda: True) is None


def test_an_update_is_compared_turn_by_turn():
    own = [50.0] * 3
    lora, hira = line('lora', own, [1.0, 2.0, 4.0]), line('hira', own, [1.5, 2.0, 6.0])
    assert figures.slower(hira, lora) == 1.5
    assert figures.slower(line('none', [40.0]), lora) is None
    page = table.render(
        [one._replace(values={**one.values, 'trained': [8.0]}) for one in (lora, hira)], {}, '', []
    )
    assert (
        '| method | s/step | tokens/s | update MB | process MB | adapter MB | time / lora |' in page
    )
    assert '| `hira` | 2.000 | - | - | - | - | 1.50 |' in page  # medians, all of them


def test_the_table_marks_what_is_missing():
    page = table.render([line('none', [40.0], seeds=1), line('lora', [50.0])], {}, 'Matched.', [])
    assert 'Matched.' in page
    assert 'Not finished: lora 1 of 3 seeds.' in page
    lost = line('hira', [50.0, 51.0])._replace(diverged=1)
    assert 'Not finished' not in table.render([lost], {}, '', [])
    assert '| `lora` | - | - | 0.001 | 1 | 50.0 | - | - |' in page


@pytest.mark.parametrize('seeds', [1, 2])  # alone, and together as one program
def test_a_run_whose_evaluation_is_no_number_is_one_that_diverged(
    seeds, tiny, tmp_path, here, monkeypatch
):
    measured = worker._texts

    def broken(job, *others):
        if job.kind == 'run':
            raise FloatingPointError('the perplexity is not finite')
        return measured(job, *others)

    monkeypatch.setattr(worker, '_texts', broken)
    more = ('--methods', 'none', 'lora', f'--seeds={seeds}', '--lrs=1e-2')
    assert program.main(flags(tiny, tmp_path, *more)) == 0
    for seed in range(seeds):
        found = json.loads((tmp_path / 'runs' / f'lora-seed{seed}.json').read_text())
        assert found['diverged'] == 'the perplexity is not finite'
    assert f'0 ({seeds} diverged)' in (tmp_path / 'compare.md').read_text()


def test_a_narrow_terminal_keeps_every_column(monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '40')
    table.show([line('lora', [50.0, 51.0]), line('hira', [52.0, 53.0])])
    printed = capsys.readouterr().out
    for name in ('lora', 'hira', 'accuracy %', 'against lora', '50.5'):
        assert name in printed


def test_a_run_with_ranks_by_layer_goes_on(tiny, tmp_path, here):
    more = ('--methods', 'lora:rank_strategy=decreasing', '--seeds=1', '--lrs=1e-2')
    assert program.main(flags(tiny, tmp_path, *more)) == 0
    (file,) = (tmp_path / 'runs').iterdir()
    first = json.loads(file.read_text())
    file.unlink()  # as if killed before it was written: the checkpoint is there
    assert program.main(flags(tiny, tmp_path, *more)) == 0
    again = json.loads(file.read_text())
    assert [job for job in here if job == [file.stem]] == [[file.stem]] * 3  # two runs, one cost
    assert again['train']['trainable'] == first['train']['trainable']
    assert again['after'] == first['after']
