"""Local files: all formats read the same; what is wrong is said with file, line and reason."""

import gzip
import json
import re

import pytest

from train import data, files

GOOD = {'instruction': 'Is ice cold?', 'input': '', 'output': 'it is true', 'answer': 'true'}
ROWS = [GOOD | {'instruction': f'Is {n} cold? é'} for n in range(3)]


def _jsonl(rows):
    return ''.join(json.dumps(row) + '\n' for row in rows)


def _write(path, text):
    raw = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == '.gz' else raw)
    return path


def _parquet(path, rows):
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize('name', ['a.json', 'a.jsonl', 'a.json.gz', 'a.jsonl.gz', 'a.parquet'])
def test_every_format_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    if name.endswith('.parquet'):
        _parquet(path, ROWS)
    else:
        _write(path, _jsonl(ROWS) if '.jsonl' in name else json.dumps(ROWS, indent=4))
    rows = data.load(str(path))
    assert [row.instruction for row in rows] == [r['instruction'] for r in ROWS]
    assert rows[0] == ('Is 0 cold? é', '', 'it is true', 'true', 'a')


def test_json_lines_under_the_name_json_and_a_byte_order_mark(tmp_path):
    assert len(data.load(str(_write(tmp_path / 'a.json', _jsonl(ROWS))))) == 3
    marked = b'\xef\xbb\xbf' + json.dumps(ROWS).encode()
    assert len(data.load(str(_write(tmp_path / 'b.json', marked)))) == 3


def test_numbers_are_answers_as_written(tmp_path):
    path = _write(tmp_path / 'a.jsonl', _jsonl([GOOD | {'answer': 7}, GOOD | {'answer': 2.5}]))
    assert [row.answer for row in data.load(str(path))] == ['7', '2.5']


BAD = [
    ('{"instruction": "x", ', 'not JSON'),
    ('[1, 2]', r'a row must be an object of columns, got list \[1, 2\]'),
    (json.dumps({k: v for k, v in GOOD.items() if k != 'output'}), "no column 'output'"),
    (json.dumps({'instrction': 'x'} | {k: GOOD[k] for k in ('input', 'output', 'answer')}),
     "no column 'instruction'.*nearest: instrction"),
    (json.dumps(GOOD | {'output': ''}), "'output' is empty"),
    (json.dumps(GOOD | {'instruction': '  '}), "'instruction' is empty"),
    (json.dumps(GOOD | {'answer': None}), "'answer' must be text, got NoneType None"),
    (json.dumps(GOOD | {'answer': True}), "'answer' must be text, got bool True"),
    (json.dumps(GOOD | {'answer': float('nan')}), "'answer' must be text, got float nan"),
    (json.dumps(GOOD | {'input': None}), r"'input' must be text, got NoneType None \(write ''"),
    (json.dumps(GOOD | {'output': ['a']}), r"'output' must be text, got list \['a'\]"),
    (json.dumps(GOOD | {'output': '\ud800'}), "'output' is not valid Unicode"),
    (json.dumps(GOOD | {'task': 3}), "'task' must be text, got int 3"),
    (b'{"instruction": "\xff"}', r'not UTF-8: .*\(byte 17\)'),
]  # fmt: skip


@pytest.mark.parametrize(('line', 'reason'), BAD)
def test_a_malformed_line_gives_file_line_and_reason(tmp_path, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    text = _jsonl(ROWS[:2]).encode() + b'\n' + line + b'\n' + _jsonl(ROWS[2:]).encode()
    path = _write(tmp_path / 'mine.jsonl', text)
    with pytest.raises(ValueError, match=rf'{re.escape(str(path))}, line 4: {reason}'):
        data.load(str(path))
    notes = []
    rows = data.load(str(path), skip_bad_rows=True, report=notes.append)
    assert len(rows) == 3
    assert len(notes) == 1
    assert re.search(rf'mine.jsonl: skipped 1 of 4 rows: line 4: {reason}', notes[0])


def test_many_bad_rows_are_counted_and_the_first_listed(tmp_path):
    path = _write(tmp_path / 'a.jsonl', _jsonl([GOOD] + [GOOD | {'output': ''}] * 9))
    notes = []
    assert len(data.load(str(path), skip_bad_rows=True, report=notes.append)) == 1
    assert 'skipped 9 of 10 rows: line 2: ' in notes[0]
    assert notes[0].endswith("line 6: 'output' is empty; ...")


def test_a_malformed_row_of_an_array_gives_the_line_it_begins_on(tmp_path):
    array = json.dumps([GOOD, GOOD | {'output': 3}, GOOD], indent=2)
    line = 1 + array[: array.index('"output": 3')].count('\n') - 3
    assert array.split('\n')[line - 1].strip() == '{'
    path = _write(tmp_path / 'a.json', array)
    with pytest.raises(ValueError, match=rf"a.json, line {line}: 'output' must be text, got int 3"):
        data.load(str(path))
    notes = []
    assert len(data.load(str(path), skip_bad_rows=True, report=notes.append)) == 2
    assert f'skipped 1 of 3 rows: line {line}' in notes[0]


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('[\n{"a": 1}\n{"a": 2}]', "line 3: not JSON: expected ',' or '\\]' after a row"),
        ('[\n{"a": 1},\n]', 'line 3: not JSON'),
        ('[\n{"a": 1}', "line 2: not JSON: expected ',' or '\\]'"),
        ('[\n{"a": ', 'line 2: not JSON'),
        ('[\n', 'line 2: not JSON'),
        ('[{"a": 1}]\nmore', 'line 1: not JSON: more text after the array'),
        (b'[\n"\xff"]', 'line 2: not UTF-8'),
    ],
)
def test_a_broken_array_gives_file_and_line_and_cannot_be_skipped(tmp_path, text, reason):
    text = text.replace('{"a": 1}', json.dumps(GOOD)) if isinstance(text, str) else text
    path = _write(tmp_path / 'a.json', text)
    with pytest.raises(ValueError, match=reason):
        data.load(str(path), skip_bad_rows=True, report=lambda note: None)


def test_parquet_rows_are_numbered_and_columns_checked(tmp_path):
    path = _parquet(tmp_path / 'a.parquet', [GOOD, GOOD | {'output': None}])
    with pytest.raises(ValueError, match=r"a.parquet, row 2: 'output' must be text, got NoneType"):
        data.load(str(path))
    assert len(data.load(str(path), skip_bad_rows=True, report=lambda note: None)) == 1
    path = _parquet(tmp_path / 'b.parquet', [{'instruction': 'x', 'input': '', 'answer': 'y'}])
    with pytest.raises(ValueError, match=r"b.parquet, row 1: no column 'output'; the row has"):
        data.load(str(path))


@pytest.mark.parametrize('name', ['a.json', 'a.jsonl', 'a.jsonl.gz'])
@pytest.mark.parametrize('text', ['', '\n\n'])
def test_an_empty_file(tmp_path, name, text):
    with pytest.raises(ValueError, match=rf'{name} holds no rows'):
        data.load(str(_write(tmp_path / name, text)))


def test_an_empty_array_and_an_empty_parquet(tmp_path):
    with pytest.raises(ValueError, match=r'a.json holds no rows'):
        data.load(str(_write(tmp_path / 'a.json', ' [ ] ')))
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet as pq

    pq.write_table(pa.table({k: pa.array([], pa.string()) for k in GOOD}), tmp_path / 'a.parquet')
    with pytest.raises(ValueError, match=r'a.parquet holds no rows'):
        data.load(str(tmp_path / 'a.parquet'))


def test_only_malformed_rows(tmp_path):
    path = _write(tmp_path / 'a.jsonl', _jsonl([{'question': 'x'}] * 2))
    with pytest.raises(ValueError, match=r"all 2 rows are malformed: line 1: no column 'instr"):
        data.load(str(path), skip_bad_rows=True)


def test_damaged_files_are_named(tmp_path):
    whole = gzip.compress(_jsonl(ROWS * 50).encode())
    for name, raw in [
        ('cut', whole[:-20]),
        ('no_gzip', b'{"a": 1}'),
        ('bad', whole[:30] + b'x' * 9),
    ]:
        (tmp_path / f'{name}.jsonl.gz').write_bytes(raw)
        with pytest.raises(ValueError, match=rf'{name}.jsonl.gz is not a whole gzip file'):
            data.load(str(tmp_path / f'{name}.jsonl.gz'), skip_bad_rows=True)
    raw = _parquet(tmp_path / 'a.parquet', ROWS).read_bytes()
    (tmp_path / 'cut.parquet').write_bytes(raw[:-30])
    with pytest.raises(ValueError, match=r'cut.parquet is not a whole parquet file'):
        data.load(str(tmp_path / 'cut.parquet'))


def test_wrong_paths_and_formats(tmp_path):
    _write(tmp_path / 'mine.jsonl', _jsonl(ROWS))
    with pytest.raises(FileNotFoundError, match=r'no data file .*; nearest: mine.jsonl'):
        data.load(str(tmp_path / 'mnie.jsonl'))
    with pytest.raises(FileNotFoundError, match=r'there is no folder .*nowhere'):
        data.load(str(tmp_path / 'nowhere' / 'mine.jsonl'))
    with pytest.raises(ValueError, match=r'is a folder; --dataset takes a file'):
        data.load(str(tmp_path))
    (tmp_path / 'mine.csv').write_text('a,b')
    with pytest.raises(ValueError, match=r"must end in one of \('.json', '.jsonl'"):
        data.load(str(tmp_path / 'mine.csv'))


def test_a_local_benchmark_row_must_have_its_task_and_labels(tmp_path):
    path = _write(tmp_path / 'a.jsonl', _jsonl([GOOD | {'answer': 'maybe'}]))
    with pytest.raises(ValueError, match=r"'answer' of boolq must be one of .*got 'maybe'"):
        files.read(path, task='boolq', labels=('true', 'false'))
    path = _write(tmp_path / 'b.jsonl', _jsonl([GOOD | {'task': 'piqa'}]))
    with pytest.raises(ValueError, match=r"'task' is 'piqa' in a file of 'boolq'"):
        files.read(path, task='boolq', labels=('true', 'false'))
