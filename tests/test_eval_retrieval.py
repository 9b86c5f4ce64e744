"""Retrieval: where the fact stands, what is counted as right, the middle gap, and the program."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

import jaxpeft as jp
from eval import decode, retrieval, stats
from eval.retrieval import __main__ as program
from eval.retrieval import prompts, scores, show, words
from tests import eval_tiny

LENGTHS, DEPTHS = [320, 500], [0, 0.25, 0.5, 1]


@pytest.fixture(scope='module')
def items():
    tokenizer = eval_tiny.tokenizer()
    return {
        task: prompts.build(task, tokenizer, LENGTHS, DEPTHS, 3, seed=7) for task in prompts.TASKS
    }


def lines_of(item):
    """The lines (sentences) of a prompt, without the question."""
    if item.task == 'kv':
        return item.text.split('\n\n')[1].split('\n')
    return words.split(item.text.split('\n\n')[1])


@pytest.mark.parametrize('task', prompts.TASKS)
def test_the_fact_stands_where_it_was_asked_to(items, task):
    for item in items[task]:
        lines = lines_of(item)
        assert len(lines) == item.units + 1
        assert [item.said in f' {line}' for line in lines].index(True) == item.at
        assert item.at == round(item.depth * item.units)
        assert item.text.count(item.said.strip()) == 1  # told once, and the question gives no hint
        name = item.text.rsplit('\n', 1)[1].removesuffix(':').removesuffix(' is').split('the ')[-1]
        assert sum(name in line for line in lines) == 1  # one line answers the question
    first, last = (items[task][i] for i in (0, len(DEPTHS) - 1))
    assert (first.at, last.at) == (0, last.units)


@pytest.mark.parametrize('task', prompts.TASKS)
def test_a_prompt_fills_its_length_and_no_more(items, task):
    tokenizer = eval_tiny.tokenizer()
    for item in items[task]:
        total = len(item.prompt) + len(item.answer)
        assert item.length - 80 < total <= item.length  # less by a line of bytes at most
        assert tokenizer.decode(item.prompt) == item.text
        assert tokenizer.decode(item.answer) == item.said


@pytest.mark.parametrize('task', prompts.TASKS)
def test_an_example_is_the_same_at_every_depth_and_another_by_seed(items, task):
    own = [item for item in items[task] if (item.length, item.number) == (320, 1)]
    assert len(own) == len(DEPTHS)
    assert len({(item.said, item.units, tuple(sorted(lines_of(item)))) for item in own}) == 1
    again = prompts.build(task, eval_tiny.tokenizer(), LENGTHS, DEPTHS, 3, seed=7)
    assert [item.text for item in again] == [item.text for item in items[task]]
    other = prompts.build(task, eval_tiny.tokenizer(), [320], [0], 3, seed=8)
    assert not {item.said for item in other} & {item.said for item in items[task]}
    fewer = prompts.build(task, eval_tiny.tokenizer(), [320], [0.5], 2, seed=7)
    expected = [i.text for i in items[task] if (i.length, i.depth) == (320, 0.5)][:2]
    assert [item.text for item in fewer] == expected  # no draw depends on what else is asked


def test_a_text_of_ones_own_hides_the_needle():
    hay = words.split('. '.join(f'Sentence {"abcdefghij"[i % 10]}{i}' for i in range(99)) + '.')
    (item,) = prompts.build('needle', eval_tiny.tokenizer(), [400], [0.5], 1, haystack=hay)
    own = [line for line in lines_of(item) if item.said.strip() not in line]
    first = hay.index(own[0])
    assert own == [*hay, *hay][first : first + len(own)]  # from its end it goes on at its beginning
    many = prompts.build('needle', eval_tiny.tokenizer(), [400], [0.5], 30, haystack=hay)
    starts = {hay.index(next(s for s in lines_of(i) if i.said.strip() not in s)) for i in many}
    assert len(starts) > 15  # examples are of different places, of the whole text
    assert max(starts) > 66
    assert min(starts) < 33
    with pytest.raises(ValueError, match='all 3 lines there are do not fill'):
        prompts.build('needle', eval_tiny.tokenizer(), [400], [0.5], 1, haystack=hay[:3])


@pytest.mark.parametrize('task', prompts.TASKS)
def test_the_answer_is_what_follows_the_prompt_whatever_the_tokenizer(task):
    """SentencePiece puts a blank in front of a text: an answer alone would get a second one."""
    letters = [chr(i) for i in range(32, 127)] + ['\n', '\u2581']
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    (item,) = prompts.build(task, tokenizer, [400], [0.5], 1)
    whole = tokenizer(item.text + item.said)['input_ids']
    assert [*item.prompt, *item.answer] == whole
    assert tokenizer.convert_ids_to_tokens(item.answer) == ['\u2581', *item.said.strip()]


def test_what_cannot_be_asked():
    tokenizer = eval_tiny.tokenizer()
    with pytest.raises(ValueError, match=r'no room for a kv question.*nearest: \d+') as error:
        prompts.build('kv', tokenizer, [60], [0, 1], 1)
    least = int(str(error.value).rsplit(' ', 1)[1])
    assert prompts.build('kv', tokenizer, [least], [0, 1], 1)[0].units == prompts.LEAST_UNITS
    with pytest.raises(ValueError, match='from 0'):
        prompts.build('kv', tokenizer, [300], [1.5], 1)
    with pytest.raises(ValueError, match='kv, needle'):
        prompts.build('kw', tokenizer, [300], [1], 1)


def test_right_is_what_greedy_decoding_writes(items):
    """Some answers are replaced by what the model writes: exactly those are right."""
    tiny = eval_tiny.make('llama', vocab=257, positions=512)
    asked = [item for item in items['kv'] if item.length == 320]
    chosen = [i for i, item in enumerate(asked) if (item.number + DEPTHS.index(item.depth)) % 2]
    length = len(asked[0].answer)
    written = decode.generate(
        *tiny, [asked[i].prompt for i in chosen], new_tokens=length, eos=999, batch=6
    )
    for i, row in zip(chosen, written, strict=True):
        asked[i] = asked[i]._replace(answer=row)
    found = retrieval.measure(*tiny, asked, batch=5)['kv']
    for cell in found['cells']:
        column = DEPTHS.index(cell['depth'])
        numbers = [n for n in range(3) if (n + column) % 2]
        assert cell['accuracy'] == pytest.approx(len(numbers) / 3)
        assert cell['interval'] == list(stats.wilson(len(numbers), 3))
        nll = []
        for item in asked:
            if item.depth == cell['depth']:
                logits = tiny.logits(np.concatenate([item.prompt, item.answer])).astype(float)
                logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
                start = len(item.prompt) - 1
                nll.append(-sum(logp[start + k, t] for k, t in enumerate(item.answer)))
        assert cell['answer_nll'] == pytest.approx(np.mean(nll), rel=1e-4)


def test_a_broken_model_finds_nothing_and_says_so(items):
    tiny = eval_tiny.broken(eval_tiny.make('llama', vocab=257, positions=512))
    with pytest.raises(FloatingPointError, match='likelihood is not a number'):
        retrieval.measure(*tiny, items['kv'][:2])


def made_up(right, nll, depths, length=100):
    """Scored items of one length: `right` and `nll` are [examples, depths]."""
    blank = np.zeros(1, np.int32)
    return [
        (prompts.Item('kv', length, depth, i, 0, 9, '', '', blank, blank), float(b), bool(a))
        for i, (row, values) in enumerate(zip(right, nll, strict=True))
        for depth, a, b in zip(depths, row, values, strict=True)
    ]


def test_the_middle_gap_by_hand():
    depths = [0, 0.4, 0.6, 0.9, 1]
    right = [[1, 0, 0, 1, 1], [1, 1, 0, 0, 1], [0, 0, 0, 0, 1], [1, 0, 0, 0, 1]]
    nll = [[1, 5, 6, 2, 1], [2, 5, 5, 5, 2], [3, 4, 6, 3, 1], [1, 9, 9, 1, 2]]
    found = scores.summarise({100: made_up(right, nll, depths), 50: made_up(right, nll, depths)})
    assert list(found['middle_gap']) == ['100', '50', 'all']
    gap = found['middle_gap']['100']
    assert gap['accuracy'] == pytest.approx(7 / 8 - 1 / 8)
    assert gap['accuracy_interval'] == pytest.approx(stats.difference(7 / 8, 4, 1 / 8, 4))
    own = [1 - 5.5, 2 - 5, 2 - 5, 1.5 - 9]
    assert gap['nll'] == pytest.approx(np.mean(own))
    assert gap['nll_interval'] == pytest.approx(stats.mean_interval(own))
    whole = found['middle_gap']['all']
    assert whole['accuracy'] == gap['accuracy']
    assert np.diff(whole['accuracy_interval'])[0] < np.diff(gap['accuracy_interval'])[0]
    assert [c['accuracy'] for c in found['cells'][:5]] == [0.75, 0.25, 0, 0.25, 1]
    for some in ([0, 1], [0.4, 0.6]):  # no middle, no ends
        flat = [[1] * len(some)]
        assert scores.summarise({1: made_up(flat, flat, some)})['middle_gap'] is None


def test_intervals_against_scipy_and_newcombes_own_example():
    from scipy import stats as theirs

    values = [0.3, -1.2, 2.5, 0.9]
    expected = theirs.t.interval(0.95, 3, np.mean(values), theirs.sem(values))
    assert stats.mean_interval(values) == pytest.approx(expected)
    assert stats.mean_interval([1.0]) is None
    # Newcombe 1998, table II, method 10: 9/10 against 3/10
    assert stats.difference(0.9, 10, 0.3, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    low, high = stats.difference(1.0, 20, 1.0, 20)
    assert low < -0.1
    assert high > 0.1


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp('retrieval')
    tiny = eval_tiny.make('llama', vocab=257, positions=512)
    jp.models.save_pretrained(place / 'model', tiny.model, tiny.params, eval_tiny.tokenizer())
    return place


@pytest.fixture
def ask(monkeypatch, folder):
    monkeypatch.setattr(program.errors.cache, 'enable', lambda: None)
    monkeypatch.chdir(folder)
    fixed = ['--model_name=model', '--method=none', '--no_progress', '--n=2', '--depths=0,.5,1']
    return lambda *argv: program.main([*fixed, *argv])


def test_the_program(ask, folder, capsys):
    assert ask('--lengths=320', '--out=r.json') == 0
    said = capsys.readouterr().out
    result = json.loads((folder / 'r.json').read_text())
    assert set(result) == {'config', 'versions', 'seconds', 'tasks'}
    assert set(result['tasks']) == {'kv', 'needle'}
    cells = result['tasks']['needle']['cells']
    assert [(c['length'], c['depth']) for c in cells] == [(320, 0), (320, 0.5), (320, 1)]
    assert set(result['tasks']['kv']['middle_gap']) == {'320', 'all'}
    assert max(map(len, said.splitlines())) <= 100
    page = (folder / 'r.md').read_text()
    assert '(r.png)' in page
    assert f'/ {cells[0]["answer_nll"]:.2f} |' in page
    assert (folder / 'r.png').stat().st_size > 5000
    figure = show.heat_map(result['tasks'], 'model')
    images = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert np.asarray(images[3]).ravel() == pytest.approx([c['answer_nll'] for c in cells])
    labels = [t.get_text() for t in figure.axes[3].texts]
    assert labels == [f'{c["answer_nll"]:.1f}' for c in cells]


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        (['--lengths=300,513'], 'has 512 positions; nearest: 512'),
        (['--lengths=300', '--out=old.json'], 'another configuration'),
        (['--task=kv,neddle'], 'nearest: needle'),
        (['--depths=0,x'], '--depths takes numbers'),
        (['--depths=0,2', '--lengths=300'], 'from 0'),
        (['--n=0'], '--n must be at least 1'),
        (['--out=r.txt'], 'must end in .json'),
        (['--lengths=20'], 'no room for a kv question'),
    ],
)
def test_errors_are_one_line_and_exit_2(ask, folder, capsys, argv, said):
    (folder / 'old.json').write_text('{"config": {"n": 5}}')
    assert ask(*argv) == 2
    err = capsys.readouterr().err
    assert err.startswith('error: ')
    assert said in err


def test_the_usual_lengths_are_those_that_fit():
    assert program.chosen_lengths('', 1 << 20) == list(program.USUAL)
    assert program.chosen_lengths('', 512) == [256, 512]
    assert program.chosen_lengths('', 200) == [200]
