"""`train.run` as a stranger uses it: one command, its files, and what wrong commands are told."""

import gzip
import json
import pathlib
import re
import runpy
import shutil
import sys

import pytest
import safetensors.numpy

from tests import train_tiny
from train import errors, run

LABELS = ('true', 'false')


@pytest.fixture(autouse=True)
def no_cache_of_the_user(monkeypatch):
    monkeypatch.setattr(errors.cache, 'enable', lambda: None)  # tests keep to the folder of theirs


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    folder = train_tiny.write_all(tmp_path_factory.mktemp('tiny'))
    with gzip.open(folder / 'boolq.test.jsonl.gz', 'wt') as out:
        for i in range(8):
            answer = LABELS[i % 3 == 0]
            row = {
                'instruction': 'please answer : cat is red\n\nAnswer format: true/false',
                'input': '',
                'output': f'the correct answer is {answer}',
                'answer': answer,
                'task': 'boolq',
                'row': i,
            }
            print(json.dumps(row), file=out)
    return folder


def refused(capsys, *argv):
    """The message of a command that must end with exit code 2 and no traceback."""
    capsys.readouterr()
    assert run.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith('error: ')
    assert 'Traceback' not in err
    return err


def flags(tiny, tmp_path, *more):
    return train_tiny.flags(tiny, f'--run_dir={tmp_path / "run"}', '--mesh=1,1,1', *more)


def test_one_command_trains_evaluates_before_and_after_and_reports(
    tiny, tmp_path, capsys, monkeypatch
):
    more = (
        '--eval_tasks=boolq',
        f'--data_dir={tiny}',
        '--eval_decodings=loglik',
        f'--out={tmp_path / "figures.json"}',
    )
    argv = flags(tiny, tmp_path, *more)
    assert run.main(argv) == 0
    text, folder = capsys.readouterr().out, tmp_path / 'run'
    assert 'transformer/h/attn/attention/q_proj/kernel' in text  # what was adapted
    assert f'{folder}/results.json' in text
    assert max(map(len, text.splitlines())) <= 100 or str(folder) in text

    results = json.loads((folder / 'results.json').read_text())
    assert set(results) == {'config', 'versions', 'train', 'before', 'after'}
    assert results['config'] == json.loads((folder / 'config.json').read_text())
    assert results['config']['method_options']['knowhira']['rank'] == 4
    assert results['train']['steps'] == 6
    assert results['train']['trainable'] == 2 * 2 * (4 * (32 + 32) + 4)
    assert results['train']['seconds'] > 0
    assert results['train']['tokens_per_second'] > 0
    for moment in ('before', 'after'):
        assert set(results[moment]) == {'loglik'}
        for found in results[moment].values():
            one = found['tasks']['boolq']
            assert one['n'] == 8
            assert one['majority'] == 0.625
            assert {'accuracy', 'interval', 'parsable', 'histogram'} <= set(one)
            assert 'mean' in found
    assert json.loads((tmp_path / 'figures.json').read_text()) == results
    for name in ('metrics.jsonl', 'adapter/adapter.json', 'report.md', 'before.json'):
        assert (folder / name).exists(), name
    assert 'boolq' in text
    assert 'majority' in text

    assert run.main(argv) == 0  # finished: shows the same, does nothing
    again = capsys.readouterr().out
    assert 'finished' in again
    assert 'boolq' in again

    # Cut after training: the second start neither trains nor repeats the evaluation before.
    (folder / 'results.json').unlink()
    kept = json.loads((folder / 'before.json').read_text())
    kept['loglik']['mark'] = 1
    (folder / 'before.json').write_text(json.dumps(kept))
    assert run.main(argv) == 0
    once_more = json.loads((folder / 'results.json').read_text())
    assert once_more['before']['loglik'].pop('mark') == 1
    once_more['train']['seconds'] = results['train']['seconds']
    assert once_more == results

    other = [*flags(tiny, tmp_path, *more), '--lr=1e-3']
    assert 'lr is 0.01 there, 0.001 here' in refused(capsys, *other)
    other[other.index(f'--run_dir={tmp_path / "run"}')] = f'--run_dir={tmp_path / "new"}'
    assert '--out' in refused(capsys, *other)


def unfinish(folder):
    """As a run that was killed after its last checkpoint."""
    (folder / 'results.json').unlink()


def test_ranks_by_layer_are_told_when_a_run_continues(tiny, tmp_path, capsys):
    argv = flags(tiny, tmp_path, '--rank_strategy=decreasing')
    assert run.main(argv) == 0
    first = capsys.readouterr().out
    unfinish(tmp_path / 'run')
    assert run.main(argv) == 0
    again = capsys.readouterr().out
    assert 'continuing' in again
    table = re.compile(r'^path +method.*trainable over.*?$', re.M | re.S)
    assert table.search(again)[0] == table.search(first)[0]
    trained = 2 * (4 + 2) * (32 + 32 + 1)  # q and v; ranks 4 and 2; a, b and the gate
    assert f'{trained:,} trainable over' in first
    assert 'active in each forward pass' not in first  # all of them are


def test_a_run_is_not_continued_on_other_data_or_another_base(tiny, tmp_path, capsys):
    for name in ('model', 'data.jsonl'):
        copy = shutil.copytree if (tiny / name).is_dir() else shutil.copy
        copy(tiny / name, tmp_path / name)
    argv = train_tiny.flags(tmp_path, '--mesh=1,1,1', '--method=lora')
    folder, data = tmp_path / 'run', tmp_path / 'data.jsonl'
    assert run.main(argv) == 0
    rows = data.read_text()
    data.write_text(rows.replace('true', 'false'))
    changed = 'other content of the training data than'
    assert changed in refused(capsys, *argv)  # finished
    unfinish(folder)
    assert changed in refused(capsys, *argv)
    data.write_text(rows)

    weights = tmp_path / 'model' / 'model.safetensors'
    whole, size = weights.read_bytes(), weights.stat().st_size
    tensors = {k: 1.5 * v for k, v in safetensors.numpy.load(whole).items()}
    safetensors.numpy.save_file(tensors, weights, {'format': 'pt'})
    assert weights.stat().st_size == size  # nothing but the numbers tells
    assert 'other content of the adapted kernels than' in refused(capsys, *argv)
    weights.write_bytes(whole)

    known = (folder / 'content.json').read_text()
    (folder / 'content.json').unlink()  # as an earlier version left it
    assert run.main([*argv, '--resume=must']) == 0
    assert (folder / 'content.json').read_text() == known
    data.write_text(rows.replace('true', 'false'))
    assert run.main([*argv, f'--run_dir={tmp_path / "new"}']) == 0


def test_out_overwrites_nothing_else_also_when_the_run_is_finished(tiny, tmp_path, capsys):
    argv = flags(tiny, tmp_path)
    assert run.main(argv) == 0
    own = tmp_path / 'thesis.tex'
    own.write_text('chapter one')
    assert 'is no result of this program' in refused(capsys, *argv, f'--out={own}')
    assert own.read_text() == 'chapter one'
    assert f'{tmp_path} is a folder' in refused(capsys, *argv, f'--out={tmp_path}')
    below = refused(capsys, *argv, f'--out={own / "x.json"}')
    assert f'lies below {own}, which is a file' in below
    there = tmp_path / 'new' / 'found.json'
    for more in ([], ['--mesh=-1,1,1']):  # the same results, from wherever they were asked for
        assert run.main([*argv, f'--out={there}', *more]) == 0
        assert json.loads(there.read_text())['train']['steps'] == 6
        there.write_text(there.read_text().replace('"resume": "auto"', '"resume": "must"'))


def test_the_folder_of_a_search_or_a_file_is_no_run_dir(tiny, tmp_path, capsys):
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'tune.json').write_text('{}')
    assert 'holds a search of train.tune' in refused(capsys, *flags(tiny, tmp_path))
    assert {path.name for path in folder.iterdir()} == {'tune.json', '.lock'}
    for where in (folder / 'tune.json', folder / 'tune.json' / 'run'):
        told = refused(capsys, *flags(tiny, tmp_path, f'--run_dir={where}'))
        assert f'--run_dir {where} is a file, or lies below one' in told


def test_a_warm_up_as_long_as_the_run_is_noted(tiny, tmp_path, capsys):
    assert run.main(flags(tiny, tmp_path, '--warmup=6')) == 0
    assert 'note: a warm-up of 6 in 6 updates: --lr is never reached' in capsys.readouterr().out
    assert run.main(flags(tiny, tmp_path, '--warmup=5', f'--run_dir={tmp_path / "b"}')) == 0
    assert 'note:' not in capsys.readouterr().out


def test_wrong_commands_are_told_what_to_do(tiny, tmp_path, capsys):
    def told(*more):
        return refused(capsys, *flags(tiny, tmp_path, *more))

    assert 'knowhira' in told('--method=knowhria')
    assert 'nearest: q_proj' in told('--target_modules=q_prj')
    assert 'no preset' in told('--preset=embeded')
    assert 'needs 16 devices, but 8' in told('--mesh=16,1,1')
    idle = told('--mesh=-1,3,1')
    assert '8 devices are no multiple of 3, so -1 would leave 2 idle' in idle
    assert 'the other two sizes may multiply to 1, 2, 4, 8' in idle
    empty = tmp_path / 'empty.jsonl'
    empty.write_text('')
    assert 'empty.jsonl' in told(f'--dataset={empty}')
    assert 'nothere' in told(f'--model_name={tmp_path / "nothere"}')
    assert 'nothere.jsonl' in told(f'--dataset={tmp_path / "nothere.jsonl"}')
    assert 'leave nothing to train on' in told('--val_size=500')
    assert 'boolq' in told('--eval_tasks=bolq')
    assert 'remat' in told('--remat=all')
    assert 'loglik' in told('--eval_tasks=boolq', f'--data_dir={tiny}', '--eval_decodings=logik')
    assert 'rank' in told('--r_ab=64')


def test_traceback_shows_all_and_defects_are_never_hidden(tiny, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='no method is called'):
        run.main(flags(tiny, tmp_path, '--method=nothing', '--traceback'))

    def defect(*args, **kwargs):
        return json.loads('{')  # a ValueError, but of a library that we called wrongly

    monkeypatch.setattr(run.model, 'setup', defect)
    with pytest.raises(ValueError, match='Expecting property name'):
        run.main(flags(tiny, tmp_path))


def test_run_is_short_and_the_only_one_to_import_eval():
    folder = pathlib.Path(run.__file__).parent
    assert len((folder / 'run.py').read_text().splitlines()) <= 80
    for path in folder.rglob('*.py'):
        imports = re.search(r'^\s*(from|import) eval\b', path.read_text(), re.MULTILINE)
        assert not imports or path.name == 'run.py', path


@pytest.mark.parametrize('command', ['eval.perplexity', 'eval.retrieval --depths x'])
def test_an_error_in_the_programs_own_file_is_a_message_as_well(command, monkeypatch, capsys):
    """Under `python -m` that file is called __main__."""
    monkeypatch.setattr(sys, 'argv', command.split())
    for name in (command.split()[0], f'{command.split()[0]}.__main__'):
        monkeypatch.delitem(sys.modules, name, raising=False)  # runpy warns of one that is there
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(command.split()[0], run_name='__main__', alter_sys=True)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith('error: ')


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('config.json', '{"model_type": "gpt_neo"}'),  # a model's folder, such as --model_name's
        ('config.json', 'no JSON'),
        ('metrics.jsonl', '{"mine": 1}'),
        ('report.md', '# mine'),
    ],
)
def test_a_folder_with_files_of_someone_else_is_no_run_dir(name, text, tiny, tmp_path, capsys):
    file = tmp_path / 'run' / name
    file.parent.mkdir()
    file.write_text(text)
    assert f'holds {name}, and is no run' in refused(capsys, *flags(tiny, tmp_path))
    assert file.read_text() == text
