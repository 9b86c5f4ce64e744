"""The tasks of eval.code and eval.structures: what their tokens, labels and features are."""

import gzip
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from eval import code as program
from eval import structures
from eval.structured import code, engine, graph, series, suffix
from jaxpeft import structure
from tests import models_tiny, toys
from train import model as train_model
from train.embedded import stdlib
from train.loss import lm_loss

SOURCE = 'def f(x):\n    if x:\n        return [x, (1,\n            "a)b")]\n\n\nprint(f(2))\n'


@pytest.fixture(scope='module')
def embedded():
    return jp.models.load('embedded')


@pytest.fixture(scope='module')
def tables(embedded):
    return structure.token_tables(embedded[2])


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A --data_dir with a few sources and MBPP tasks."""
    folder = tmp_path_factory.mktemp('data')
    texts = [SOURCE * 3 + f'x = {i}\n' for i in range(9)]
    splits = ['train'] * 5 + ['valid'] * 2 + ['test'] * 2
    sources = [
        {'path': f'{i}.py', 'split': split, 'text': text}
        for i, (split, text) in enumerate(zip(splits, texts, strict=True))
    ]
    asked = [1, 11, 12, 13, 511, 512, 601, 602, 603, 604]
    tasks = [
        {'task_id': i, 'text': f'Write {i}.', 'code': f'def f():\r\n\treturn {i}\r\n',
         'test_list': [f'assert f() == {i}', 'assert 1']}
        for i in asked
    ]  # fmt: skip
    tasks[-1]['code'] = SOURCE * 9
    for name, records in (('python', sources), ('mbpp', tasks)):
        path = folder / code.FILES[name]
        path.parent.mkdir()
        with gzip.open(path, 'wt') as out:
            out.write(''.join(json.dumps(r) + '\n' for r in records))
    return str(folder)


def make(name, data, embedded, window=32):
    return code.make(name, data, embedded[2], 1024, code.Amount(0, 0, 0, window))


def test_windows_of_a_source_begin_with_lines_and_label_every_token_once(embedded, tables):
    tokens = np.array(embedded[2](SOURCE * 4)['input_ids'], np.int32)
    newline = tables['newline'] != 0
    found = list(code.by_lines(tokens, newline, 24))
    assert len(found) > 3
    assert max(map(len, found)) <= 24
    np.testing.assert_array_equal(np.concatenate([found[0], *(x[1:] for x in found[1:])]), tokens)
    assert all(newline[x[0]] for x in found[1:])
    long = list(code.by_lines(np.ones(20, int), newline, 8))  # no line ends in it
    assert [len(x) for x in long] == [8, 8, 6]


def test_features_of_rows_together_are_those_of_each_alone(embedded, tables):
    rows = [np.array(embedded[2](text)['input_ids']) for text in (SOURCE, 'f(x', SOURCE[:30])]
    found = code.features(rows, tables)
    width = found['ids'].shape[1]
    run = models_tiny.jit(lambda tokens: structure.token_features(tables, tokens)[0])
    for i, row in enumerate(rows):
        alone = run(jnp.asarray(np.resize(row, width))[None])  # what follows changes nothing
        for name, x in alone.items():
            np.testing.assert_array_equal(found[name][i, : len(row)], x[0, : len(row)])
        assert not found['ids'][i, len(row) :].any()


def test_python_rows_come_from_the_splits_of_the_file(data, embedded):
    task = make('python', data, embedded)
    decode = lambda one: {embedded[2].decode(e.tokens) for e in one.examples}
    ends = lambda one: ''.join(sorted(decode(one)))
    assert 'x = 7' in ends(task.test)
    assert 'x = 7' not in ends(task.train)
    total = sum(int(e.labelled.sum()) for e in task.test.examples)
    whole = [len(embedded[2](SOURCE * 3 + f'x = {i}\n')['input_ids']) for i in (7, 8)]
    assert total == sum(whole) - 2
    assert task.notes[0] == '5 / 2 / 2 files by split of the path'
    few = code.make('python', data, embedded[2], 1024, code.Amount(3, 2, 2, 32))
    assert [len(x.examples) for x in (few.train, few.valid, few.test)] == [3, 2, 2]


def test_the_interpreters_library_is_split_by_path(monkeypatch):
    files = dict(itertools.islice(stdlib.sources(), 400))
    assert 'ast.py' in files
    assert not any('site-packages' in name for name in files)
    splits = [code.split_of(name) for name in files]
    assert splits == [code.split_of(name) for name in files]
    shares = [splits.count(name) / len(splits) for name in code.SPLITS]
    assert 0.8 < shares[0] < 0.98
    assert min(shares) > 0
    monkeypatch.setattr(stdlib, 'sources', lambda: iter(files.items()))
    found = code.sources('')
    assert sum(map(len, found.values())) == len(files)


def test_mbpp_labels_the_solution_and_leaves_out_what_is_too_long(data, embedded):
    task = make('mbpp', data, embedded, 96)
    assert [len(x.examples) for x in (task.train, task.valid, task.test)] == [3, 2, 3]
    assert 'left out: 1 of 4 / 0 of 2 / 0 of 3' in task.notes[0]
    seen = set()
    for one in task.test.examples:
        ask = embedded[2].decode(one.tokens[~one.labelled])
        said = embedded[2].decode(one.tokens[one.labelled])
        number = said.split('return ')[1].split('\n')[0]
        assert said == f'def f():\n\treturn {number}\n<|endoftext|>'
        assert ask == f'"""\nWrite {number}.\nassert f() == {number}\n"""\n'
        seen.add(number)
    assert seen == {'11', '12', '13'}


def test_features_in_the_batch_are_what_a_forward_pass_reads_off_its_tokens(data, embedded):
    """The comparison measures what train.run trains and decoding uses."""
    model, params, tokenizer = embedded
    task = make('python', data, embedded)
    plan = jp.compose(model, params, 'hylorada_v2', options={'hylorada_v2': {'rank': 2}})
    state = toys.moved(jp.init(plan, jax.random.key(0), params), jax.random.key(1), 0.5)
    raw = next(iter(engine.eval_batcher(task.test, 4).eval_batches()))
    batch = engine.with_features(raw, task.test.features)
    loss = models_tiny.jit(lm_loss, static_argnums=0)
    got = loss(jp.bind(plan, model.apply), state, params, batch)
    plain = {k: v for k, v in batch.items() if k != 'side'}
    want = loss(train_model.bound(plan, model, tokenizer), state, params, plain)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    without = loss(jp.bind(plan, model.apply), state, params, plain)
    assert abs(float(without[0] - want[0])) > 1e-2


@pytest.mark.parametrize('name', ['python', 'mbpp'])
def test_hidden_suffixes_of_code_change_no_feature_in_front(name, data, embedded):
    found = make(name, data, embedded, 64 if name == 'mbpp' else 32).hide(3, 0)
    assert suffix.features_changed(found) == 0
    for whole, other, cut in zip(
        found.whole.examples, found.replaced.examples, found.cuts, strict=True
    ):
        np.testing.assert_array_equal(whole.tokens[:cut], other.tokens[:cut])
        assert whole.labelled[:cut].any()
    changed = [
        (a.tokens != b.tokens).any()
        for a, b in zip(found.whole.examples, found.replaced.examples, strict=True)
    ]
    assert any(changed)


def test_series_values_follow_the_clock_and_the_floor_is_the_noises_entropy():
    raw = series.draw(400, 5, world=1)
    hours = raw.start[:, None] + np.cumsum(raw.gaps, axis=1)
    clean = series.clean_levels(hours, raw.signals, world=1)
    right = 1 - series.NOISE + series.NOISE / series.LEVELS
    share = (clean == raw.levels).mean()
    assert share == pytest.approx(right, abs=0.01)
    wrong = series.NOISE / series.LEVELS
    nll = -np.where(clean == raw.levels, np.log(right), np.log(wrong)).mean()
    assert nll == pytest.approx(series.floor(), abs=0.04)
    other = series.clean_levels(hours, raw.signals, world=2)
    assert (other != clean).mean() > 0.3
    assert raw.gaps.min() == 1
    assert raw.gaps.max() == series.LONGEST_GAP


def test_series_tokens_and_features_say_the_same_time():
    raw = series.draw(3, 0, world=1)
    tokens, found = series.tokens_of(raw), series.features_of(raw)
    for row, times, values in zip(tokens, found['times'], found['values'], strict=True):
        now = row[0] - series.START
        assert times[0] == now
        for k in range(series.OBSERVATIONS):
            gap, signal, level = row[1 + 3 * k : 4 + 3 * k]
            now += gap - series.GAP + 1
            assert times[1 + 3 * k : 4 + 3 * k].tolist() == [now] * 3
            assert values[1 + 3 * k, 0] == pytest.approx(np.log1p(gap - series.GAP + 1))
            assert series.SIGNAL <= signal < series.GAP
            assert 0 <= level < series.LEVELS
    assert tokens.max() < series.VOCABULARY
    one = series.part_of(raw)
    marked = one.examples[0].tokens[one.examples[0].labelled]
    np.testing.assert_array_equal(marked, raw.levels[0])
    assert one.features['times'].shape == (3, 64)


def test_graph_truths_are_those_of_matrix_powers():
    raw = graph.draw(20, 0)
    for edges, root in zip(raw.edges, raw.roots, strict=True):
        adjacent = np.zeros((graph.NODES, graph.NODES), int)
        adjacent[edges[:, 0], edges[:, 1]] = adjacent[edges[:, 1], edges[:, 0]] = 1
        degree, depth = graph.truths(edges, int(root))
        np.testing.assert_array_equal(degree, adjacent.sum(1))
        assert adjacent.sum() == 2 * graph.EDGES  # no pair twice
        reach = [np.linalg.matrix_power(adjacent + np.eye(8, dtype=int), k)[root] for k in range(8)]
        want = [next((k for k in range(8) if reach[k][i]), graph.NEVER) for i in range(8)]
        np.testing.assert_array_equal(depth, want)


def test_graph_tokens_ask_and_answer_and_features_are_of_the_named_node():
    raw = graph.draw(4, 1)
    tokens, values = graph.tokens_of(raw, np.arange(9)), graph.features_of(raw)['values']
    part = graph.part_of(raw)
    for i, row in enumerate(tokens):
        edges, root = row[: 2 * graph.EDGES].reshape(-1, 2), row[graph.PROMPT - 1]
        degree, depth = graph.truths(edges, int(root))
        known = structure.graph_features(edges, graph.NODES, roots=[int(root)])['values']
        assert row[graph.PROMPT - 2] == graph.ROOT
        for what, node, said in row[graph.PROMPT :].reshape(-1, 3):
            truth = depth[node] if what == graph.DEPTH else degree[node]
            assert said - graph.ANSWER == truth
        at = np.flatnonzero(row < graph.NODES)
        np.testing.assert_array_equal(values[i, at], known[row[at]])
        assert not values[i, row >= graph.NODES].any()
        answers = part.examples[i].tokens[part.examples[i].labelled]
        np.testing.assert_array_equal(answers, row[graph.PROMPT + 2 :: 3])
    assert tokens.max() < graph.VOCABULARY


@pytest.mark.parametrize('kind', [series, graph])
def test_hidden_suffixes_of_generated_rows_change_no_feature_in_front(kind):
    task = kind.make(8, 8, 16)
    found = task.hide(12, 0)
    assert suffix.features_changed(found) == 0
    for whole, other, cut in zip(
        found.whole.examples, found.replaced.examples, found.cuts, strict=True
    ):
        np.testing.assert_array_equal(whole.tokens[:cut], other.tokens[:cut])
        assert (whole.tokens[cut:] != other.tokens[cut:]).any()
        assert whole.labelled[:cut].any()
    moved = found._replace(cuts=np.full(12, whole.tokens.size))
    assert suffix.features_changed(moved) > 0  # behind the cuts they do change


@pytest.mark.parametrize('kind', [series, graph])
def test_a_base_is_pretrained_on_another_world(kind):
    mine, theirs = kind.make(8, 8, 8).train, kind.pretraining(8)
    assert not theirs.features
    assert all(e.labelled.sum() == len(e.tokens) - 1 for e in theirs.examples)
    assert {len(e.tokens) for e in theirs.examples} == {len(e.tokens) for e in mine.examples}
    assert not any(
        np.array_equal(a.tokens, b.tokens)
        for a, b in itertools.product(mine.examples, theirs.examples)
    )


@pytest.mark.parametrize(
    ('main', 'flags', 'said'),
    [
        (program.main, ['--tasks', 'mbpp'], 'needs --data_dir'),
        (program.main, ['--tasks', 'pyton'], "'pyton'"),
        (program.main, ['--data_dir', '/nowhere'], 'is not there'),
        (program.main, ['--window', '4000'], 'has 512 positions'),
        (program.main, ['--methods', 'lora', 'hira'], "called 'hira'"),
        (structures.main, ['--lrs', '-1'], 'positive rates'),
        (structures.main, ['--base_steps', '0'], 'at least 1'),
        (structures.main, ['--valid_rows', '0'], '--valid_rows must be at least 2'),
    ],
)
def test_a_command_line_that_cannot_work_is_refused(main, flags, said, capsys):
    assert main(flags) == 2
    assert said in capsys.readouterr().err


def test_the_structures_program_from_flags_to_report(tmp_path, capsys):
    """All four methods on a very small run; a second start trains nothing."""
    flags = [
        '--task=graph', '--steps=3', '--base_steps=3', '--batch=4', '--lrs=1e-2', '--extend=0',
        '--seeds=1', '--valid_rows=8', '--test_rows=8', '--eval_batch=8', '--rank=1',
        f'--run_dir={tmp_path / "run"}', f'--out={tmp_path / "x.json"}', '--no-progress',
    ]  # fmt: skip
    assert structures.main([*flags, '--traceback']) == 0
    found = json.loads((tmp_path / 'x.json').read_text())
    task = found['tasks']['graph']
    assert set(task['arms']) == {'lora', 'hylorada', 'hylorada_v2', 'hylorada_v2_shuffled'}
    assert task['suffix']['holds']
    assert task['arms']['lora']['nll']['interval'] is None
    assert (tmp_path / 'run' / 'plots' / 'loss.png').exists()
    assert '| hylorada_v2 ' in capsys.readouterr().out
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / 'run' / 'graph').rglob('*.json')}
    assert len(times) == 2 + 4 * 2  # config.json, before.json, and a rate and a seed each
    assert structures.main(flags) == 0
    assert {f: f.stat().st_mtime_ns for f in times} == times
    assert json.loads((tmp_path / 'x.json').read_text()) == found
    assert structures.main([*flags, '--steps=4']) == 2
    assert 'steps is 3 there, 4 here' in capsys.readouterr().err
