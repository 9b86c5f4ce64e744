"""Data sets by name: local copies, what is missing, what is unknown; nothing heavy is imported."""

import gzip
import json
import subprocess
import sys

import pytest

from train import benchmarks, data, sources


def _row(task, n):
    label = benchmarks.get(task).LABELS[n % 2]
    return {
        'task': task,
        'split': 'train',
        'prompt': f'{task} question {n}\n\nAnswer format: x/y',
        'input': '',
        'output': f'the correct answer is {label}',
        'answer': label,
        'choices': ['x', 'y'],
        'label': n % 2,
        'raw': {},
    }


def _file(folder, task, split='train', n=2):
    with gzip.open(folder / f'{task}.{split}.jsonl.gz', 'wt', encoding='utf-8') as out:
        out.writelines(json.dumps(_row(task, i)) + '\n' for i in range(n))


def test_a_benchmark_and_its_alias_from_data_dir(tmp_path):
    _file(tmp_path, 'social_i_qa')
    rows = data.load('siqa', 'train', tmp_path)
    assert rows == data.load('social_i_qa', 'train', str(tmp_path))
    assert rows[1] == (
        'social_i_qa question 1\n\nAnswer format: x/y',
        '',
        'the correct answer is answer2',
        'answer2',
        'social_i_qa',
    )


def test_common_170k_joins_the_folder_in_order_and_says_what_is_missing(tmp_path):
    for task in ('piqa', 'openbookqa', 'boolq'):
        _file(tmp_path, task)
    notes = []
    rows = data.load('common_170k', 'train', tmp_path, report=notes.append)
    assert [row.task for row in rows] == ['boolq'] * 2 + ['piqa'] * 2 + ['openbookqa'] * 2
    assert notes == [
        f'{tmp_path} has no train file of social_i_qa, hellaswag, winogrande, ARC-Easy, '
        'ARC-Challenge: joined the other 3 tasks'
    ]


def test_the_note_is_printed_by_default(tmp_path, capsys):
    _file(tmp_path, 'boolq')
    data.load('common_170k', 'train', tmp_path)
    assert 'has no train file of piqa' in capsys.readouterr().out


def test_all_eight_need_no_note(tmp_path):
    for task in benchmarks.EIGHT:
        _file(tmp_path, task, 'test', 1)
    notes = []
    rows = data.load('common_170k', 'test', tmp_path, report=notes.append)
    assert [row.task for row in rows] == list(benchmarks.EIGHT)
    assert notes == []


def test_the_embedded_set_is_read_by_the_same_path(tmp_path, monkeypatch):
    for task in benchmarks.EIGHT:
        _file(tmp_path, task, 'train', 3)
    monkeypatch.setattr(sources, 'ASSETS', tmp_path)
    assert len(data.load('embedded')) == 24
    assert data.load('embedded') == data.load('common_170k', 'train', tmp_path)


def test_a_local_copy_given_as_a_path(tmp_path):
    _file(tmp_path, 'boolq')
    assert data.load(str(tmp_path / 'boolq.train.jsonl.gz')) == data.load(
        'boolq', 'train', tmp_path
    )


def test_missing_files_and_folders(tmp_path):
    _file(tmp_path, 'boolq')
    with pytest.raises(FileNotFoundError, match=r"no piqa.train.jsonl.gz in .*holds: \['boolq'\]"):
        data.load('piqa', 'train', tmp_path)
    with pytest.raises(FileNotFoundError, match=r'holds no <task>.test.jsonl.gz'):
        data.load('common_170k', 'test', tmp_path)
    for name in ('boolq', 'common_170k'):
        with pytest.raises(FileNotFoundError, match=r'--data_dir .*nowhere is not a folder'):
            data.load(name, 'train', tmp_path / 'nowhere')


@pytest.mark.parametrize(
    ('name', 'near'),
    [
        ('bolq', 'boolq'),
        ('common_17k', 'common_170k'),
        ('winogrnde', 'winogrande'),
        ('zz', 'there are: common_170k, embedded, boolq, piqa'),
    ],
)
def test_an_unknown_data_set_lists_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"no data set '{name}'.*{near}.*must end in one of"):
        data.load(name)


def test_an_unknown_split():
    with pytest.raises(ValueError, match=r"no split 'tset'; nearest: test"):
        data.load('boolq', 'tset')


def test_skip_bad_rows_reaches_the_joined_files(tmp_path):
    _file(tmp_path, 'boolq')
    bad = _row('piqa', 0) | {'answer': 'answer9'}
    with gzip.open(tmp_path / 'piqa.train.jsonl.gz', 'wt', encoding='utf-8') as out:
        out.writelines(json.dumps(r) + '\n' for r in (_row('piqa', 0), bad))
    with pytest.raises(ValueError, match=r'piqa.train.jsonl.gz, line 2: .answer. of piqa'):
        data.load('common_170k', 'train', tmp_path, report=lambda note: None)
    notes = []
    assert len(data.load('common_170k', 'train', tmp_path, True, report=notes.append)) == 3
    assert 'skipped 1 of 2 rows: line 2' in notes[1]


def test_the_real_copies(shared_data):
    folder, notes = shared_data / 'commonsense', []
    rows = data.load('common_170k', 'train', folder, report=notes.append)
    assert len(rows) == 107_675
    assert list(dict.fromkeys(row.task for row in rows)) == [
        task for task in benchmarks.EIGHT if task != 'hellaswag'
    ]
    assert notes == [f'{folder} has no train file of hellaswag: joined the other 7 tasks']
    tests = data.load('common_170k', 'test', folder)
    assert len(tests) == 11_210
    assert all(row.answer in benchmarks.options(row) for row in tests)


def test_importing_the_data_path_is_light():
    heavy = ('datasets', 'transformers', 'torch', 'jax', 'pyarrow')
    code = (
        f'import sys, train.data, train.batching; print([m for m in {heavy} if m in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'
