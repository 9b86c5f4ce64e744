"""`python -m train.data`: hub rows become the files of `--data_dir`, checked and never torn."""

import gzip
import hashlib
import itertools
import json
import shutil
import subprocess
import sys

import pytest

from tests.test_benchmarks import HUB_SHAPES
from train import benchmarks, common, data, download, hub, shelf, sources

# Raw fields by hand, for machines without the real files.
RAW = {
    'boolq': {'question': 'is ice cold?'},
    'piqa': {'goal': 'Cool a drink'},
    'social_i_qa': {'context': 'Kim left.', 'question': 'Why?'},
    'hellaswag': {'ctx_with_label': 'Roof: A man sits. he'},
    'winogrande': {'sentence': 'Kim met Lee because _ was near.'},
    'ARC-Easy': {'question': 'What is hot?'},
    'ARC-Challenge': {'question': 'What is cold?'},
    'openbookqa': {'question': 'A fire is'},
}


def made(task, split, n=4):
    """Hub rows of a benchmark, made by hand; their question says which set they are of."""
    labels = benchmarks.get(task).LABELS[:4]
    choices = labels if task == 'boolq' else [f'choice {i} of {split}' for i in range(len(labels))]
    return [HUB_SHAPES[task](RAW[task], choices, i % len(labels)) for i in range(n)]


class FakeHub:
    """Stands in for `hub.download`: serves rows, counts calls, and loses what it is told to."""

    def __init__(self):
        self.calls, self.lost, self.changed = [], set(), {}

    def __call__(self, where, split):
        name = f'{where.repo}/{where.config}' if where.config else where.repo
        self.calls.append((name, split))
        if name in self.lost:
            raise ConnectionError(f'cannot load {where.repo!r} from the Hugging Face hub: gone.')
        if (name, split) in self.changed:
            return self.changed[name, split]
        if where == hub.COMMON_170K:
            return [dict(zip(data.COLUMNS, ('q', '', 'the correct answer is a', 'a'), strict=True))]
        task = next(t for t in benchmarks.EIGHT if self.same(benchmarks.get(t).HUB, where))
        return made(task, split)

    @staticmethod
    def same(known, where):
        big = known.config == 'winogrande_xl'
        return known.repo == where.repo and (big or known.config == where.config)


@pytest.fixture
def fake(monkeypatch):
    made_up = FakeHub()
    monkeypatch.setattr(hub, 'download', made_up)
    return made_up


def run(folder, *argv):
    return download.main(['--out_dir', str(folder), *argv])


def test_one_set_is_written_for_data_dir_with_checksums_and_a_report(fake, tmp_path, capsys):
    out = tmp_path / 'report.json'
    assert run(tmp_path / 'd', '--datasets', 'siqa', '--out', str(out)) == 0
    assert fake.calls == [('allenai/social_i_qa', 'train'), ('allenai/social_i_qa', 'test')]
    folder = tmp_path / 'd'
    names = ['social_i_qa.train.jsonl.gz', 'social_i_qa.test.jsonl.gz']
    assert {p.name for p in folder.iterdir()} == {*names, 'checksums.json', 'SHA256SUMS'}

    rows = data.load('siqa', 'train', folder)
    expected = [benchmarks.from_hub('social_i_qa', r) for r in made('social_i_qa', 'train')]
    assert rows == expected
    line = json.loads(gzip.decompress((folder / names[0]).read_bytes()).splitlines()[0])
    assert list(line) == ['instruction', 'input', 'output', 'answer', 'task']

    entry = json.loads((folder / 'checksums.json').read_text())[names[0]]
    packed = (folder / names[0]).read_bytes()
    assert entry['sha256'] == hashlib.sha256(packed).hexdigest()
    assert entry['text_sha256'] == hashlib.sha256(gzip.decompress(packed)).hexdigest()
    assert entry['labels'] == {'answer1': 2, 'answer2': 1, 'answer3': 1}
    assert (entry['rows'], entry['bytes'], entry['malformed']) == (4, len(packed), 0)
    if shutil.which('sha256sum'):
        subprocess.run(['sha256sum', '-c', 'SHA256SUMS'], cwd=folder, check=True)

    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert 'answer 1:50 2:25 3:25' in text
    assert '33,410 rows were published, 4 are here' in text
    report = json.loads(out.read_text())
    assert report['files'][names[0]] | {'state': 0, 'note': 0} == entry | {'state': 0, 'note': 0}
    assert report['files'][names[0]]['state'] == 'fetched'


def test_a_second_start_verifies_and_mends_only_what_is_damaged(fake, tmp_path, capsys):
    assert run(tmp_path, '--datasets', 'boolq', 'piqa') == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    fake.calls.clear()
    assert run(tmp_path, '--datasets', 'boolq', 'piqa') == 0
    assert fake.calls == []
    assert capsys.readouterr().out.count('verified') == 4

    file = tmp_path / 'piqa.test.jsonl.gz'
    file.write_bytes(file.read_bytes()[:-1] + b'x')  # one byte, the size is the same
    (tmp_path / 'boolq.train.jsonl.gz').write_bytes(b'')
    (tmp_path / 'boolq.test.jsonl.gz').unlink()
    assert run(tmp_path, '--datasets', 'boolq', 'piqa') == 0
    text = capsys.readouterr().out
    assert f'{file} is damaged (sha256 ' in text
    assert 'boolq.train.jsonl.gz is damaged (0 bytes, ' in text
    assert 'boolq.test.jsonl.gz is gone: fetching it again' in text
    assert sorted(fake.calls) == [
        ('google/boolq', 'test'),
        ('google/boolq', 'train'),
        ('ybisk/piqa', 'test'),
    ]
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before  # the same bytes again


def test_a_kill_between_file_and_checksums_or_while_writing_loses_nothing(
    fake, tmp_path, monkeypatch
):
    """Every write is a rename: whatever is there under its own name is whole."""

    def killed(path, content, real=shelf.write):
        if path.name == 'checksums.json':
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(shelf, 'write', killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, '--datasets', 'boolq', '--splits', 'test')
    monkeypatch.undo()
    monkeypatch.setattr(hub, 'download', fake)
    assert [p.name for p in tmp_path.iterdir()] == ['boolq.test.jsonl.gz']
    assert run(tmp_path, '--datasets', 'boolq', '--splits', 'test') == 0
    assert shelf.read(tmp_path)['boolq.test.jsonl.gz'].rows == 4


def test_a_file_of_ones_own_is_not_overwritten(fake, tmp_path, capsys):
    own = tmp_path / 'boolq.test.jsonl.gz'
    own.write_bytes(gzip.compress(b'mine\n'))
    assert run(tmp_path, '--datasets', 'boolq', '--splits', 'test') == 2
    assert 'is not in checksums.json and holds something else' in capsys.readouterr().out
    assert gzip.decompress(own.read_bytes()) == b'mine\n'


def test_malformed_rows_refuse_the_set_or_are_counted(fake, tmp_path, capsys):
    bad = [*made('boolq', 'train'), {'question': 'x', 'answer': 'yes'}]
    fake.changed['google/boolq', 'train'] = bad
    argv = ['--datasets', 'boolq', 'openbookqa', '--splits', 'train']
    assert run(tmp_path, *argv) == 2
    out, err = capsys.readouterr()
    assert 'google/boolq, train, row 5: ' in out
    assert 'openbookqa' in out
    assert 'not all could be had: boolq.train.jsonl.gz' in err
    assert not (tmp_path / 'boolq.train.jsonl.gz').exists()
    assert shelf.read(tmp_path)['openbookqa.train.jsonl.gz'].rows == 4  # the others go on

    assert run(tmp_path, *argv, '--skip_bad_rows') == 0
    assert 'skipped 1 of 5 rows: row 5' in capsys.readouterr().out
    entry = shelf.read(tmp_path)['boolq.train.jsonl.gz']
    assert (entry.rows, entry.malformed) == (4, 1)


def test_common_170k_is_the_hubs_one_file(fake, tmp_path):
    assert run(tmp_path, '--datasets', 'common_170k', '--splits', 'train') == 0
    assert fake.calls == [('zwhe99/commonsense_170k', 'train')]
    rows = data.load('common_170k', 'train', tmp_path)
    assert [(row.instruction, row.task) for row in rows] == [('q', 'common_170k')]


def test_common_170k_from_its_parts_names_what_cannot_be_had(fake, tmp_path, capsys):
    fake.lost = {hub.COMMON_170K.repo, 'Rowan/hellaswag', 'allenai/winogrande/winogrande_debiased'}
    assert run(tmp_path, '--datasets', 'boolq', 'common_170k', '--splits', 'train') == 2
    out, err = capsys.readouterr()
    assert 'missing: hellaswag.train (39,905 rows); winogrande_debiased (9,248 rows)\n' in out
    assert 'so it was joined from its parts' in out
    assert 'not all could be had: common_170k.train.jsonl.gz' in err
    assert fake.calls.count(('google/boolq', 'train')) == 1  # read from the folder, not again
    rows = data.load('common_170k', 'train', tmp_path)
    tasks = [task for task, _ in itertools.groupby(row.task for row in rows)]
    assert tasks == [t for t in benchmarks.EIGHT if t != 'hellaswag'] + ['winogrande']
    assert sum(row.task == 'winogrande' for row in rows) == 5 * 4  # xl, l, m, s, xs

    fake.lost = {hub.COMMON_170K.repo}  # the hub is back: the incomplete file is not kept
    assert run(tmp_path, '--datasets', 'common_170k', '--splits', 'train') == 0
    assert 'is incomplete: fetching it again' in capsys.readouterr().out
    assert shelf.read(tmp_path)['common_170k.train.jsonl.gz'].missing == []
    assert len(data.load('common_170k', 'train', tmp_path)) == 13 * 4


def test_without_any_part_nothing_is_written(fake, tmp_path, capsys):
    fake.lost = {hub.COMMON_170K.repo} | {
        f'{h.repo}/{h.config}' if h.config else h.repo
        for h in (benchmarks.get(t).HUB for t in benchmarks.EIGHT)
    }
    fake.lost |= {f'allenai/winogrande/{config}' for config in common.REPEATS}
    assert run(tmp_path, '--datasets', 'common_170k', '--splits', 'train') == 2
    assert 'Nor can any of its parts be had' in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_published_numbers_of_the_parts_add_up():
    eight = sum(benchmarks.get(task).ROWS['train'] for task in benchmarks.EIGHT)
    assert eight + sum(common.REPEATS.values()) == common.ROWS == 170_420


def test_all_is_the_eight_in_both_splits_and_the_joined_set():
    every = download.jobs(['all'], ['train', 'test'])
    assert len(every) == len(set(every)) == 17
    assert ('common_170k', 'train') in every
    assert download.jobs(['common_170k'], ['test']) == [(t, 'test') for t in benchmarks.EIGHT]
    assert download.jobs(['hellas', 'hellaswag'], ['test']) == [('hellaswag', 'test')]


def test_wrong_commands_are_told(fake, tmp_path, capsys):
    for argv, text in (
        (['--datasets', 'bolq'], "no data set 'bolq'; nearest: boolq"),
        (['--datasets', 'boolq', '--splits', 'tset'], "no split 'tset'; nearest: test"),
    ):
        assert run(tmp_path, *argv) == 2
        assert text in capsys.readouterr().err
    (tmp_path / 'checksums.json').write_text('{')
    assert run(tmp_path, '--datasets', 'boolq') == 2
    assert 'checksums.json is damaged' in capsys.readouterr().err
    (tmp_path / 'r.json').write_text('{"config": {"files": []}}')
    assert run(tmp_path / 'n', '--datasets', 'boolq', '--out', str(tmp_path / 'r.json')) == 2
    assert 'holds a finished result of another configuration' in capsys.readouterr().err
    assert not (tmp_path / 'n').exists()


@pytest.mark.parametrize('task', benchmarks.EIGHT)
def test_the_real_rows_come_out_as_the_real_files(shared_data, fake, tmp_path, task):
    """The hub's rows, rebuilt from the raw fields of the real files, give those files again."""
    for path in sorted((shared_data / 'commonsense').glob(f'{task}.*.jsonl.gz')):
        split = path.name.split('.')[1]
        with gzip.open(path, 'rt', encoding='utf-8') as lines:
            real = [json.loads(line) for line in itertools.islice(lines, 300)]
        place = benchmarks.get(task).HUB
        name = f'{place.repo}/{place.config}' if place.config else place.repo
        fake.changed[name, split] = [
            HUB_SHAPES[task](r['raw'], r['choices'], r['label']) for r in real
        ]
        assert run(tmp_path, '--datasets', task, '--splits', split) == 0
        rows = data.load(task, split, tmp_path)
        assert [tuple(row) for row in rows] == [
            (r['prompt'], r['input'], r['output'], r['answer'], task) for r in real
        ]


def test_the_module_runs_as_a_program():
    argv = [sys.executable, '-m', 'train.data', '--help']
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '--datasets' in done.stdout
    assert 'warning' not in done.stderr.lower()  # of runpy: a module imported before it is run


def test_a_folder_without_the_one_file_still_joins_the_eight(fake, tmp_path):
    assert run(tmp_path, '--datasets', 'boolq', 'piqa', '--splits', 'train') == 0
    rows = sources.load('common_170k', 'train', tmp_path, report=lambda note: None)
    assert [row.task for row in rows] == ['boolq'] * 4 + ['piqa'] * 4
