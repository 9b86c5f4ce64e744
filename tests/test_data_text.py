"""Plain text as training data: which files are text, how it is cut, and a whole run on it."""

import gzip
import json
import math
import signal

import jax
import numpy as np
import pytest

from tests import eval_tiny, train_tiny
from train import data, errors, feed, loop, model, run, rundir, texts
from train.stop import Stop

ROW = {'instruction': 'Is ice cold?', 'input': '', 'output': 'it is true', 'answer': 'true'}


def write(path, records):
    text = records if isinstance(records, str) else ''.join(json.dumps(r) + '\n' for r in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == '.gz' else text.encode())
    return path


@pytest.mark.parametrize(
    ('name', 'records', 'text'),
    [
        ('a.txt', 'a', True),
        ('a.txt.gz', 'a', True),
        ('a.jsonl', [{'text': 'a'}], True),
        ('a.jsonl.gz', [{'id': 3, 'text': 'a'}], True),
        ('a.json', '[{"text": "a"}]', True),
        ('a.jsonl', [ROW], False),
        ('a.jsonl', [ROW | {'text': 'a'}], False),
        ('a.jsonl', [{'prompt': 'a', 'output': 'b', 'answer': 'b'}], False),
        ('a.jsonl', '{broken\n{"text": "a"}\n', True),
        ('a.jsonl', '', False),  # its reader says what is wrong
    ],
)
def test_what_is_text(tmp_path, name, records, text):
    assert data.is_text(str(write(tmp_path / name, records))) is text


def test_what_has_a_name_is_no_text_and_a_file_of_neither_form_names_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('embedded', 'boolq', 'common_170k', 'nothere.jsonl'):
        assert not data.is_text(name)
    path = write(tmp_path / 'a.jsonl', [{'question': 'a', 'body': 'b'}])
    said = r"neither the columns instruction.*nor the column text.*has \['body', 'question'\]"
    with pytest.raises(ValueError, match=said):
        data.is_text(path.name)


def test_parquet(tmp_path):
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet as pq

    path = tmp_path / 'a.parquet'
    pq.write_table(pa.Table.from_pylist([{'text': 'one'}, {'text': ''}, {'text': 'two'}]), path)
    notes = []
    assert data.is_text(str(path))
    assert texts.load(path, report=notes.append) == ['one', 'two']
    assert notes == [f'{path}: left out 1 of 3 texts, which are empty']


def test_a_text_file_is_one_text_read_as_python_reads_it(tmp_path):
    path = tmp_path / 'a.txt.gz'
    path.write_bytes(gzip.compress(b'\xef\xbb\xbfa\r\nb\rc\n'))
    assert texts.load(path) == ['a\nb\nc\n']
    (tmp_path / 'b.txt').write_bytes(b'fine\n\xff\n')
    with pytest.raises(ValueError, match=r'b\.txt, line 2: not UTF-8'):
        texts.load(tmp_path / 'b.txt')
    with pytest.raises(ValueError, match='holds no text'):
        texts.load(write(tmp_path / 'c.txt', ' \n'))
    with pytest.raises(FileNotFoundError, match=r'nearest: b\.txt'):
        texts.load(tmp_path / 'bb.txt')


def test_a_malformed_record_is_named_or_counted(tmp_path):
    path = write(tmp_path / 'a.jsonl', [{'text': 'a'}, {'txt': 'b'}, {'text': 3}, [1]])
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: no column 'text'.*nearest: txt"):
        texts.load(path)
    notes = []
    assert texts.load(path, skip_bad_rows=True, report=notes.append) == ['a']
    assert 'skipped 3 of 4 rows' in notes[0]


def test_windows_label_every_token_once_and_lose_none():
    tokenizer, notes = eval_tiny.tokenizer(), []
    docs = ['a' * 3, 'b' * 40, 'c' * 15]  # bytes are tokens
    made = texts.encode(docs, tokenizer, max_length=16, report=notes.append)
    a, b, c = (tokenizer(x)['input_ids'][0] for x in 'abc')
    labelled = [int(t) for one in made for t in one.tokens[one.labelled]]
    end = tokenizer.eos_token_id
    assert labelled == [a] * 2 + [end] + [b] * 39 + [end] + [c] * 14 + [end]
    assert [len(one.tokens) for one in made] == [4, 16, 16, 11, 16]  # 41: overlaps of one, a tail
    assert [one.row for one in made] == list(range(5))
    assert notes == ['3 texts of 61 tokens in 5 windows of at most 16; a window counts as a row']
    assert not any(one.labelled[0] for one in made)


def test_a_bos_begins_a_text_and_not_each_window():
    tokenizer = eval_tiny.tokenizer()
    tokenizer.bos_token = '<end>'

    class Begins:
        bos_token_id = eos_token_id = tokenizer.eos_token_id

        def __call__(self, text, add_special_tokens=True, **more):
            ids = tokenizer(text, add_special_tokens=False)['input_ids']
            return {'input_ids': [self.bos_token_id, *ids] if add_special_tokens else ids}

    made = texts.encode(['b' * 20], Begins(), max_length=8, report=lambda note: None)
    assert made[0].tokens[0] == tokenizer.eos_token_id
    assert all(one.tokens[0] != tokenizer.eos_token_id for one in made[1:])
    assert sum(int(one.labelled.sum()) for one in made) == 21


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """A model, and a text of its words in which a few sentences come again and again."""
    folder = tmp_path_factory.mktemp('text')
    train_tiny.write_model(folder / 'model')
    rng = np.random.default_rng(0)
    said = [' '.join(rng.choice(train_tiny.WORDS, 7)) for _ in range(4)]
    docs = [{'text': ' '.join(rng.choice(said, rng.integers(1, 30)))} for _ in range(24)]
    write(folder / 'data.jsonl', docs)
    return folder


@pytest.fixture(autouse=True)
def no_cache_of_the_user(monkeypatch):
    monkeypatch.setattr(errors.cache, 'enable', lambda: None)


def flags(tiny, place, *more):
    fixed = ('--mesh=1,1,1', '--eval_tasks=auto', '--max_steps=30', '--eval_batch=8')
    fixed += ('--method=lora', '--lr=5e-2', '--target_modules=all-linear', '--eval_steps=10')
    return train_tiny.flags(tiny, f'--run_dir={place}', *fixed, *more)


def test_packed_or_not_the_updates_hold_the_same_windows(tiny):
    config = train_tiny.config(tiny, '--mesh=1,1,1')
    built = model.setup(config)
    packed = feed.make(config, built.tokenizer, built.mesh, say=lambda note: None)
    assert len(packed.held_text) == 16
    loose = train_tiny.config(tiny, '--mesh=1,1,1', '--no_packing')
    apart = feed.make(loose, built.tokenizer, built.mesh, say=lambda note: None)
    for step in (0, 5):
        one, other = packed.batcher.at(step), apart.batcher.at(step)
        assert np.array_equal(one['rows'], other['rows'])
        assert one['weights'].sum() == other['weights'].sum()
        seen = {name: np.sort(b['labels'][b['weights'] > 0]) for name, b in
                (('one', one), ('other', other))}  # fmt: skip
        assert np.array_equal(seen['one'], seen['other'])


def test_a_run_on_text_measures_its_perplexity(tiny, tmp_path, capsys):
    assert run.main(flags(tiny, tmp_path / 'run')) == 0
    said = capsys.readouterr().out
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    assert set(results['before']) == set(results['after']) == {'perplexity'}
    was, now = (results[when]['perplexity'] for when in ('before', 'after'))
    assert now['corpus_ppl'] < 0.8 * was['corpus_ppl']
    assert now['tokens'] == was['tokens'] > 0
    assert now['texts'] == 16
    # the adapter that was kept, over the windows that validation saw
    assert math.log(now['corpus_ppl']) == pytest.approx(results['train']['best_val_loss'], rel=1e-5)
    assert f'{was["corpus_ppl"]:,.3f} before, {now["corpus_ppl"]:,.3f} after' in said
    report = (tmp_path / 'run' / 'report.md').read_text()
    assert f'| after | {now["corpus_ppl"]:.3f} |' in report
    assert (tmp_path / 'run' / 'plots' / 'loss.png').exists()
    assert run.main(flags(tiny, tmp_path / 'run')) == 0  # finished: shows the same
    assert f'{now["corpus_ppl"]:,.3f} after' in capsys.readouterr().out


def train_on(config, stop_at=None):
    """The outcome of a run, which a SIGTERM may cut short before update `stop_at`."""

    class Cut(feed.Feed):
        def at(self, step):
            if step == stop_at:
                signal.raise_signal(signal.SIGTERM)
            return super().at(step)

    with Stop() as stop, rundir.claim(config) as found:
        built = model.setup(config, fresh=not found.resumed)
        given = feed.make(config, built.tokenizer, built.mesh, say=lambda note: None)
        return loop.train(config, built, Cut(*given), found.folder, stop)


def test_a_run_on_text_goes_on_to_the_bit(tiny, tmp_path):
    def config(name):
        return train_tiny.config(tiny, f'--run_dir={tmp_path / name}', '--mesh=1,1,1')

    def metrics(name):
        lines = map(json.loads, (tmp_path / name / 'metrics.jsonl').read_text().splitlines())
        return [{k: v for k, v in line.items() if k != 'seconds'} for line in lines]

    whole = train_on(config('whole'))
    assert not train_on(config('cut'), stop_at=3).finished
    went_on = train_on(config('cut'))
    assert whole.finished
    assert went_on.finished
    assert metrics('whole') == metrics('cut')
    for a, b in zip(*map(jax.tree.leaves, (whole.state, went_on.state)), strict=True):
        assert np.array_equal(a, b)


def test_wrong_files_are_told(tiny, tmp_path, capsys):
    def told(*more):
        capsys.readouterr()
        assert run.main(flags(tiny, tmp_path / 'run', *more)) == 2
        return capsys.readouterr().err

    neither = write(tmp_path / 'n.jsonl', [{'question': 'a'}])
    assert 'nor the column text' in told(f'--dataset={neither}')
    assert 'nothere.txt' in told(f'--dataset={tmp_path / "nothere.txt"}')
    assert 'leave nothing to train on' in told('--val_size=5000')
