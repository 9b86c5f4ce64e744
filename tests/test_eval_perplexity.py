"""Perplexity: the windows' arithmetic, the three figures by hand, the program, and sharding."""

import json
import math

import jax
import numpy as np
import pytest

import jaxpeft as jp
from eval import perplexity, windows
from tests import eval_tiny
from train import mesh as meshes
from train.windows import cut

TEXTS = [np.random.default_rng(n).integers(0, 61, n).astype(np.int32) for n in (50, 1, 2, 33, 0, 9)]


def by_hand(tiny, ids, window, stride):
    """Each token's loss from plain forward passes: window after window, no packing, no padding."""
    found, seen, begin = [], 1, 0
    while seen < len(ids):
        end = min(begin + window, len(ids))
        logits = tiny.logits(np.asarray(ids[begin:end], np.int32)).astype(np.float64)
        logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        found += [-logp[i - 1 - begin, ids[i]] for i in range(seen, end)]
        seen, begin = end, begin + min(stride, window - 1)
    return np.array(found)


@pytest.mark.parametrize(
    ('n', 'window', 'stride'), [(0, 8, 4), (1, 8, 4), (2, 8, 8), (8, 8, 3), (9, 8, 8), (100, 8, 1)]
)
def test_every_token_but_the_first_is_a_target_once_and_nothing_is_dropped(n, window, stride):
    ids = np.arange(n) + 1000
    made = list(cut(ids, window, stride))
    targets = [int(t) for one in made for t in one.tokens[one.labelled]]
    assert targets == list(range(1001, 1000 + n))
    assert all(len(one.tokens) <= window and not one.labelled[0] for one in made)
    assert [one.row for one in made] == list(range(len(made)))
    fresh = [int(one.labelled.sum()) for one in made]
    assert all(count == min(stride, window - 1) for count in fresh[1:-1])
    for one in made:  # a window is a stretch of the text
        assert np.array_equal(one.tokens, np.arange(one.tokens[0], one.tokens[0] + len(one.tokens)))


@pytest.mark.parametrize(('window', 'stride', 'said'), [(1, 1, 'at least 2'), (8, 0, 'nearest: 1')])
def test_windows_out_of_range(window, stride, said):
    with pytest.raises(ValueError, match=said):
        list(cut([1, 2, 3], window, stride))
    with pytest.raises(ValueError, match='nearest: 8'):
        list(cut([1, 2, 3], 8, 9))


def test_the_figures_are_their_definitions():
    tiny = eval_tiny.make('llama')
    found = perplexity.measure(*tiny, TEXTS, window=16, stride=8, batch=3)
    expected = [by_hand(tiny, ids, 16, 8) for ids in TEXTS if len(ids) > 1]
    flat = np.concatenate(expected)
    assert found['tokens'] == len(flat) == 49 + 1 + 32 + 8
    assert (found['texts'], found['texts_unscored'], found['texts_in_positional']) == (4, 2, 2)
    assert found['nll'] == pytest.approx(flat.sum(), rel=1e-5)
    assert found['corpus_ppl'] == pytest.approx(math.exp(flat.mean()), rel=1e-5)
    means = [math.exp(own.mean()) for own in expected]
    assert found['mean_text_ppl'] == pytest.approx(np.mean(means), rel=1e-5)
    first = [own[: len(own) // 10].mean() for own in expected if len(own) >= 10]
    last = [own[9 * (len(own) // 10) :].mean() for own in expected if len(own) >= 10]
    assert found['positional_ppl'][0] == pytest.approx(math.exp(np.mean(first)), rel=1e-5)
    assert found['positional_ppl'][9] == pytest.approx(math.exp(np.mean(last)), rel=1e-5)
    assert len(found['positional_ppl']) == 10
    assert found['positional_mean_ppl'] == pytest.approx(np.mean(found['positional_ppl']))


def test_no_figure_depends_on_the_batch_and_nothing_compiles_twice():
    tiny = eval_tiny.make('gpt_neo')
    one = perplexity.measure(*tiny, TEXTS, window=16, stride=16, batch=1)
    compiled = windows.nll._cache_size()
    again = perplexity.measure(*tiny, TEXTS, window=16, stride=16, batch=1)
    assert windows.nll._cache_size() == compiled
    assert again == one
    other = perplexity.measure(*tiny, TEXTS, window=16, stride=16, batch=64)
    assert windows.nll._cache_size() == compiled + 1
    assert other['corpus_ppl'] == pytest.approx(one['corpus_ppl'], rel=1e-6)
    assert other['mean_text_ppl'] == pytest.approx(one['mean_text_ppl'], rel=1e-6)


def test_more_context_is_another_figure_and_a_whole_window_is_the_plain_pass():
    tiny = eval_tiny.make('llama')
    ids = TEXTS[0]
    whole = perplexity.measure(*tiny, [ids], window=64, stride=32)
    assert whole['nll'] == pytest.approx(by_hand(tiny, ids, 64, 1).sum(), rel=1e-5)
    short = perplexity.measure(*tiny, [ids], window=8, stride=8)
    assert abs(short['nll'] - whole['nll']) > 1e-3 * whole['nll']


def test_a_base_on_a_mesh_gives_the_same():
    tiny = eval_tiny.make('llama')
    mesh = meshes.make('4,1,2')
    layout = jp.models.base_shardings(jax.eval_shape(lambda x: x, tiny.params), mesh=mesh)
    spread = tiny._replace(params=jax.device_put(tiny.params, layout))
    alone = perplexity.measure(*tiny, TEXTS, window=16, stride=8, batch=8)
    found = perplexity.measure(*spread, TEXTS, window=16, stride=8, batch=8)
    assert found['corpus_ppl'] == pytest.approx(alone['corpus_ppl'], rel=1e-5)


def test_what_cannot_be_measured():
    tiny = eval_tiny.make('gpt_neo')
    with pytest.raises(ValueError, match='64 positions; nearest: 64'):
        perplexity.measure(*tiny, TEXTS, window=65, stride=8)
    with pytest.raises(ValueError, match='none of the 2 texts'):
        perplexity.measure(*tiny, [[1], []], window=8, stride=8)
    with pytest.raises(ValueError, match='batch must be at least 1, got 0'):
        perplexity.measure(*tiny, TEXTS, window=8, stride=8, batch=0)
    with pytest.raises(FloatingPointError, match='text 0 has a token'):
        perplexity.measure(*eval_tiny.broken(tiny), TEXTS, window=8, stride=8)


@pytest.mark.parametrize('nll', [math.nan, math.inf, 701.0, 1e30])
def test_a_diverged_model_has_no_perplexity(nll):
    """Also where the loss is finite and its exp would overflow."""
    with pytest.raises(FloatingPointError, match=r'text 1 has a token .*diverged'):
        windows.summarise([np.ones(20), np.array([1.0, nll])])
    found = windows.summarise([np.full(20, windows.LARGEST), np.ones(3)])
    assert all(map(math.isfinite, (found['mean_text_ppl'], *found['positional_ppl'])))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A tiny model of bytes, an adapter's run on it, and two texts in a file."""
    from train import cli as train_cli
    from train import config as train_config

    place = tmp_path_factory.mktemp('perplexity')
    tiny = eval_tiny.make('gpt_neo', vocab=257, positions=64)
    jp.models.save_pretrained(place / 'model', tiny.model, tiny.params, eval_tiny.tokenizer())
    config, _ = train_cli.parse([f'--model_name={place / "gone"}', '--dataset=boolq'])
    plan = {jp.targets(tiny.params, ['q_proj', 'v_proj']): jp.methods.lora(rank=2)}
    jp.save_adapter(place / 'run' / 'adapter', plan, tiny.state, tiny.params)
    (place / 'run' / 'config.json').write_text(json.dumps(train_config.to_dict(config)))
    lines = [{'text': 'A cat sat.\nIt sat on a mat.\n\nThen it went.'}, {'text': 'A dog.'}]
    (place / 'a.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return place


@pytest.fixture
def program(monkeypatch, folder):
    monkeypatch.setattr(perplexity.errors.cache, 'enable', lambda: None)
    monkeypatch.chdir(folder)
    return lambda *argv: perplexity.main(['--text=a.jsonl', '--no_progress', '--batch=4', *argv])


def test_the_program(program, folder, capsys):
    tiny = eval_tiny.make('gpt_neo', vocab=257, positions=64)
    bare = tiny._replace(forward=jp.bind({}, tiny.model.apply), state=jp.State({}, {}))
    texts = [json.loads(line)['text'] for line in (folder / 'a.jsonl').read_text().splitlines()]
    ids = [eval_tiny.tokenizer()(text)['input_ids'] for text in texts]
    figures = {}
    for name, who, model in (
        ('base', ['--model_name=model'], bare),
        ('run', ['--ckpt=run', '--model_name=model'], tiny),  # the base has moved
    ):
        assert program(*who, '--window=16', '--stride=8', f'--out={name}.json') == 0
        figures[name] = json.loads((folder / f'{name}.json').read_text())
        expected = perplexity.measure(*model, ids, window=16, stride=8)
        assert figures[name]['corpus_ppl'] == pytest.approx(expected['corpus_ppl'], rel=1e-6)
        assert figures[name]['tokens'] == sum(map(len, ids)) - 2
        assert len(figures[name]['positional_ppl']) == 10
    assert figures['base']['config']['window'] == 16
    assert figures['run']['config']['adapter']
    assert figures['base']['corpus_ppl'] != figures['run']['corpus_ppl']
    text = capsys.readouterr().out
    assert f'{figures["run"]["mean_text_ppl"]:,.4f}' in text
    assert max(map(len, text.splitlines())) <= 100

    assert program('--model_name=model', '--split=line', '--max_tokens=6', '--out=l.json') == 0
    lines = json.loads((folder / 'l.json').read_text())
    assert (lines['texts'], lines['tokens']) == (4, 4 * 5)
    assert (lines['config']['window'], lines['config']['stride']) == (64, 32)


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        (['--model_name=model', '--window=16', '--out=base.json'], 'stride is 1 there, 8 here'),
        (['--model_name=model', '--window=99'], '64 positions; nearest: 64'),
        (['--model_name=model', '--window=8', '--stride=9'], 'nearest: 8'),
        (['--model_name=model', '--text=b.jsonl'], 'nearest: a.jsonl'),
        (['--model_name=model', '--limit=-1'], '--limit must be at least 0'),
        (['--text='], 'give --text FILE'),
        ([], 'give --ckpt RUN'),
    ],
)
def test_errors_are_one_line_and_exit_2(program, capsys, folder, argv, said):
    (folder / 'base.json').write_text('{"config": {"stride": 1}}')
    assert program(*argv) == 2
    err = capsys.readouterr().err
    assert err.startswith('error: ')
    assert said in err
